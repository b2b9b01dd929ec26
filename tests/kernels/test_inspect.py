"""Ahead-of-time compilation: every Triton kernel compiles for every target without a GPU, and spills nothing on sm_90.

The command runs once, and every test about compiled kernels reads its lines.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernels.attention import neighborhood, swin
from kernels.backends import BackendUnavailable
from kernels.compiled import MISSING
from kernels.costs import cost
from kernels.inspect import (
    MAPS,
    OPS,
    TARGETS,
    Compiler,
    compile_kernels,
    numbers_of,
    plans,
    python_source,
    specs,
    tile_boxes,
)
from kernels.instructions import KINDS
from kernels.occupancy import occupancy

KERNELS = {
    "propagation": {
        "scan_rows", "scan_columns", "adjoint_rows", "adjoint_columns", "gate_gradient", "input_gradient",
        "weight_gradient", "normalise", "normalise_gradient", "mix_forward", "mix_backward", "add_parts",
    },
    "attention": {
        "forward_kernel", "window_kernel", "delta_kernel", "query_kernel", "key_value_kernel", "bias_kernel",
    },
}  # fmt: skip

#: Kernels whose storage changes one conversion only, and that are compiled for one storage.
ONE_STORAGE = {"add_parts"}


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
        found = {function_of(row) for row in rows if storage in row["name"]}
        assert found | (ONE_STORAGE & KERNELS[op]) == KERNELS[op]


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


def test_an_unknown_kernel_is_named():
    with pytest.raises(ValueError, match="There is no kernel named 'scan_diagonals'"):
        numbers_of(["scan_diagonals"])


def test_without_triton_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr("kernels.compiled.has_triton", lambda: False)
    specs.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match="Triton is not installed") as refused:
            next(compile_kernels(("sm_90",)))
        assert str(refused.value) == MISSING
    finally:
        specs.cache_clear()


def test_a_process_that_interprets_triton_compiles_in_others():
    name = "delta_kernel bf16 window 32"
    (kernel,) = compile_kernels(("gfx942",), [name])
    assert (kernel.name, kernel.target) == (name, "gfx942")
    assert kernel.mix["load_16"] + kernel.mix["load_less"] > 0
    compiler = Compiler()
    try:
        (number,) = numbers_of([name])
        assembly, ptx = (compiler.listing(number, target).result() for target in ("gfx942", "sm_90"))
    finally:
        compiler.close()
    assert ".visible .entry delta_kernel" in ptx
    # What LLVM itself counts of waves that the registers of a SIMD allow.
    waves = int(assembly.split("; Occupancy: ")[1].split()[0])
    assert occupancy("gfx942", kernel.registers, 0, 1).warps == 4 * waves


LEFT = """
import os, sys
import kernels
from kernels.compiled import Compiler
if __name__ == "__main__":
    compiler = Compiler()
    compiler.submit([0], "gfx942").result()
    print(*compiler._pool._processes, flush=True)
    os._exit(0)  # as if it were killed
"""


def test_no_worker_stays_when_the_process_that_asked_is_gone(tmp_path):
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "A worker is left."
        time.sleep(0.1)


def test_every_instruction_has_a_kind_and_every_row_its_occupancy_and_cost(compiled):
    for row in compiled:
        assert list(row["mix"]) == list(KINDS)
        assert row["mix"]["other"] <= 0.01 * sum(row["mix"].values()), row
        assert row["mix"]["load_16"] + row["mix"]["load_less"] > 0, row
        assert row["mix"]["store_16"] + row["mix"]["store_less"] > 0, row
        assert 0 < row["warps"] <= row["most_warps"], row
        assert row["occupancy"] == row["warps"] / row["most_warps"]
        assert row["warps"] == row["programs"] * row["num_warps"]
        needed = cost(row["op"], row["name"])
        assert (row["flops"], row["bytes"], row["shape"]) == (needed.flops, needed.bytes, needed.shape)


def test_spilled_bytes_and_instructions_that_spill_go_together_on_nvidia(compiled):
    for row in compiled:
        if row["target"].startswith("sm_") and not row["spills"]:
            assert row["mix"]["spill"] == 0, row


def test_attention_multiplies_in_tensor_cores_where_storage_is_16_bit_and_scans_never(compiled):
    for row in compiled:
        products = row["mix"]["tensor"]
        if row["op"] == "propagation":
            assert products == 0, row
        elif "bf16" in row["name"] and function_of(row) != "delta_kernel":
            assert products > 0, row


def test_a_line_that_one_warp_holds_needs_no_barrier_and_no_shared_memory(compiled):
    """What the scan is designed for: the line's neighbours come by exchange between lanes."""
    (row,) = (r for r in compiled if (r["name"], r["target"]) == ("scan_rows fp32 64 wide", "sm_90"))
    assert (row["num_warps"], row["mix"]["barrier"], row["mix"]["shared"], row["shared"]) == (1, 0, 0, 0)
    assert row["mix"]["shuffle"] > 0


def test_the_python_of_a_kernel_comes_with_the_functions_that_it_calls():
    text = python_source("forward_kernel bf16 window 32")
    assert text.startswith("@triton.jit")
    assert text.count("def forward_kernel(") == text.count("def logits_of(") == text.count("def dot(") == 1
    assert "def window_kernel(" not in text
    assert python_source("scan_rows fp32 64 wide").count("def _neighbour(") == 1


def test_a_tile_lies_on_the_map_with_its_keys_around_it():
    tile = tile_boxes("forward_kernel bf16 neighborhood 32")
    (row, col), (key_row, key_col) = tile.query, tile.key
    assert (tile.owner, tile.step, tile.map) == ("query", (1, 1), (56, 56))
    assert (row - key_row, col - key_col) == (3, 3)
    assert tile.keys == (tile.queries[0] + 6, tile.queries[1] + 6)
    window = tile_boxes("window_kernel bf16 window 32")
    assert window.query == window.key
    assert window.queries == window.keys == (7, 7)
    assert tile_boxes("key_value_kernel bf16 window 32").owner == "key"
    for name in ("scan_rows fp32 64 wide", "forward_kernel bf16 power 64", "delta_kernel bf16 window 32"):
        assert tile_boxes(name) is None


def test_one_kernel_and_its_texts_are_printed_on_request():
    name = "delta_kernel bf16 window 32"
    (line,) = run("--kernel", name, "--target", "sm_90", "--json")
    assert json.loads(line)["name"] == name
    assert json.loads(line)["constants"]["BLOCK_Q"] > 0
    text = "\n".join(run("--kernel", name, "--source", "--ptx"))
    assert "def delta_kernel(" in text
    assert ".target sm_90" in text
