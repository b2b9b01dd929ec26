"""Ahead-of-time compilation: every Triton kernel compiles for every target without a GPU, and spills nothing on sm_90.

The command runs once, in a process of its own, because kernels cannot be compiled where they are interpreted.
"""

import json
import os
import subprocess
import sys

import pytest

from kernels.attention import neighborhood, swin
from kernels.backends import BackendUnavailable
from kernels.inspect import MAPS, OPS, TARGETS, compile_kernels, plans

KERNELS = {
    "propagation": {
        "scan_rows", "scan_columns", "adjoint_rows", "adjoint_columns", "gate_gradient", "input_gradient",
        "weight_gradient", "normalise", "normalise_gradient",
    },
    "attention": {
        "forward_kernel", "window_kernel", "delta_kernel", "query_kernel", "key_value_kernel", "bias_kernel",
    },
}  # fmt: skip


def run(*options):
    """What `workbench kernels` prints, line by line, without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "from workbench.cli import app; app()", "kernels", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="session")
def printed():
    """What `workbench kernels --json` prints, a dict for each line."""
    return [json.loads(line) for line in run("--json")]


@pytest.fixture(scope="session")
def compiled(printed):
    """The lines of kernels."""
    return [row for row in printed if "op" in row]


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


def test_attention_is_compiled_for_exact_and_masked_tiles_a_radius_parts_and_narrow_and_wide_heads(compiled):
    names = {row["name"] for row in compiled if row["op"] == "attention"}
    cases = {name.rsplit(" ", 1)[0] for name in names}
    for pattern in ("window", "neighborhood", "disc", "power", "full"):
        assert f"forward_kernel bf16 {pattern}" in cases
    for pattern in ("window", "neighborhood", "disc"):
        assert f"forward_kernel fp32 {pattern}" in cases
    for channels in (16, 32, 64, 128):
        assert f"forward_kernel bf16 window {channels}" in names
    assert "forward_kernel fp16 window 32" in names


def test_the_forward_pass_of_swins_windows_leaves_registers_for_six_programs(compiled):
    """What hides the latency of memory on an H200: 24 warps of a multiprocessor's 64, at 4 warps a program."""
    (row,) = (r for r in compiled if (r["name"], r["target"]) == ("forward_kernel bf16 window 32", "sm_90"))
    assert row["registers"] * 32 * row["num_warps"] * 6 <= 65536, row


def test_nothing_spills_on_sm_90(compiled):
    spilling = {row["name"]: row["spills"] for row in compiled if row["target"] == "sm_90" and row["spills"]}
    assert spilling == {}


def test_registers_fit_the_threads_of_a_program(compiled):
    """A streaming multiprocessor has 65,536 registers; a program that needs more cannot be launched."""
    for row in compiled:
        if row["target"].startswith("sm_"):
            assert row["registers"] * 32 * row["num_warps"] <= 65536, row


def test_the_tiles_of_every_pattern_are_printed_after_the_kernels(printed):
    tiled = [row for row in printed if "plan" in row]
    assert printed == [*(row for row in printed if "op" in row), *tiled]
    assert {tuple(row["map"]) for row in tiled} == {(side, side) for side in MAPS}
    for row in tiled:
        rows, cols, key_rows, key_cols = *row["queries"], *row["keys"]
        assert row["slots"] == rows * cols * key_rows * key_cols
        assert 0 <= row["masked"] < 1
    named = {row["plan"] for row in tiled}
    assert {swin(7).name, swin(7, 3).name, neighborhood(7).name, "full", "axial, own row"} <= named
    for name in named:
        assert {row["side"] for row in tiled if row["plan"] == name} == {"query", "key"}


def test_only_the_plans_are_printed_on_request():
    lines = run("--plans", "--json")
    assert len(lines) == len(list(plans()))
    assert all("plan" in json.loads(line) for line in lines)
    assert run("--plans")[1].split() == ["plan", "map", "side", "queries", "keys", "parts", "slots", "masked"]


def test_windows_are_one_tile_and_their_mask_is_what_lies_outside_the_map():
    found = {(plan.plan, plan.map, plan.side): plan for plan in plans()}
    plain, shifted = (found[swin(7, shift).name, (56, 56), "query"] for shift in (0, 3))
    assert (plain.queries, plain.keys, plain.masked) == ((7, 7), (7, 7), 0)
    # Nine windows a side, and 56 * 56 queries that read 43.18 keys on average.
    assert shifted.masked == pytest.approx(1 - 56 * 56 * 43.18 / (81 * 49 * 49), abs=1e-3)


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"targets must be among {', '.join(TARGETS)}; got sm_42, sm_43."):
        next(compile_kernels(("sm_90", "sm_42", "sm_43")))


def test_kernels_that_are_interpreted_cannot_be_compiled(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendUnavailable, match="while TRITON_INTERPRET=1 is set: start Python without it"):
        next(compile_kernels(("sm_90",)))
