"""Ahead-of-time compilation: every Triton kernel compiles for every target without a GPU, and spills nothing on sm_90.

The command runs once, in a process of its own, because kernels cannot be compiled where they are interpreted.
"""

import json
import os
import subprocess
import sys

import pytest

from kernels.backends import BackendUnavailable
from kernels.inspect import OPS, TARGETS, compile_kernels

KERNELS = {
    "propagation": {
        "scan_rows", "scan_columns", "adjoint_rows", "adjoint_columns", "gate_gradient", "input_gradient",
        "weight_gradient", "normalise", "normalise_gradient",
    },
    "attention": {"forward_kernel", "query_kernel", "key_value_kernel", "bias_kernel"},
}  # fmt: skip


@pytest.fixture(scope="session")
def compiled():
    """What `workbench kernels --json` prints, a dict for each line."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "from workbench.cli import app; app()", "kernels", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def function_of(row):
    """The kernel function that a row is a configuration of: its name without the variant."""
    return next(name for name in sorted(KERNELS[row["op"]], key=len, reverse=True) if row["name"].startswith(name))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942"])
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_compiled_for_every_target(op, target, compiled):
    rows = [row for row in compiled if row["op"] == op and row["target"] == target]
    assert {function_of(row) for row in rows} == KERNELS[op]
    assert len({row["name"] for row in rows}) == len(rows)
    for storage in ("fp32", "bf16"):
        assert {function_of(row) for row in rows if storage in row["name"]} == KERNELS[op]


def test_each_row_says_what_the_kernel_uses(compiled):
    assert {row["target"] for row in compiled} == set(TARGETS)
    for row in compiled:
        assert 0 < row["registers"] <= 512, row
        assert row["spills"] >= 0, row
        assert 0 <= row["shared"] <= 228 * 1024, row
        assert row["num_warps"] in (1, 2, 4, 8, 16, 32), row


def test_nothing_spills_on_sm_90(compiled):
    spilling = {row["name"]: row["spills"] for row in compiled if row["target"] == "sm_90" and row["spills"]}
    assert spilling == {}


def test_registers_fit_the_threads_of_a_program(compiled):
    """A streaming multiprocessor has 65,536 registers; a program that needs more cannot be launched."""
    for row in compiled:
        if row["target"].startswith("sm_"):
            assert row["registers"] * 32 * row["num_warps"] <= 65536, row


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"targets must be among {', '.join(TARGETS)}; got sm_42, sm_43."):
        next(compile_kernels(("sm_90", "sm_42", "sm_43")))


def test_kernels_that_are_interpreted_cannot_be_compiled(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendUnavailable, match="while TRITON_INTERPRET=1 is set: start Python without it"):
        next(compile_kernels(("sm_90",)))
