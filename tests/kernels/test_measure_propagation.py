"""tools/measure_propagation.py, as far as it runs without a GPU: what our kernels are compared with is right."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from kernels.propagation import NORMALISATIONS, mix, mix_gpu, normalise_gates, propagate

TOOL = Path(__file__).parents[2] / "tools" / "measure_propagation.py"


@pytest.fixture(scope="module")
def tool():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("measure_propagation", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scan_line_by_line_is_the_scan(tool):
    x, logits, lam = tool.drawn(tool.Shape(2, 3, 5, 7), torch.float32, torch.device("cpu"))[:3]
    gates = normalise_gates(logits)
    torch.testing.assert_close(tool.by_lines(x, gates, lam), propagate(x, gates, lam, backend="reference"))


def test_the_parts_of_the_mixer_are_the_mixer(tool, device_of):
    inputs = tool.drawn(tool.Shape(1, 2, 3, 4, 2), torch.float32, device_of("triton"))
    torch.testing.assert_close(tool.unfused(*inputs, chunk=2), mix(*inputs, chunk=2, backend="reference"))


@pytest.mark.parametrize(("rule", "shared"), [(None, False), ("sigmoid", True), ("none", False)])
def test_an_operator_is_checked_with_all_its_gradients(rule, shared, tool, device_of):
    case = tool.Case(tool.Shape(1, 2, 2, 3, 2), torch.float32, rule, shared)
    found = tool.check(case, device_of("triton"))
    assert found["passed"]
    assert 0 < found["error"] < found["allowed"] < 1e-4


def test_a_wrong_result_is_noticed(tool, device_of, monkeypatch):
    backward = mix_gpu.backward

    def wrong(*given):
        first, *others = backward(*given)
        return first * 1.001, *others

    monkeypatch.setattr(mix_gpu, "backward", wrong)
    case = tool.Case(tool.Shape(1, 1, 2, 2), torch.float32, "sigmoid")
    assert not tool.check(case, device_of("triton"))["passed"]


def test_every_rule_shape_storage_and_shared_gates_are_checked(tool):
    cases = tool.cases()
    assert {case.rule for case in cases} == {None, *NORMALISATIONS}
    assert {case.dtype for case in cases} == {torch.float32, torch.float16, torch.bfloat16}
    assert {case.shape for case in cases if case.rule == "sigmoid"} == set(tool.CHECKED)
    assert {case.shared for case in cases} == {False, True}


def test_the_floor_counts_every_tensor_once(tool):
    shape, dtype = tool.GOALS[0], torch.bfloat16
    values = 16 * 8 * 1024 * 1024
    tensors = sum(t.numel() for t in tool.drawn(shape, dtype, torch.device("meta"))[:5])
    assert tool.least_bytes("mix", shape, dtype, "forward") == 2 * (tensors + values)
    assert tool.least_bytes("mix", shape, dtype, "backward") == 2 * (2 * tensors + values)
    assert tool.least_bytes("propagate", shape, torch.float32, "forward") == 4 * values * (1 + 12 + 4 + 4)
    assert tool.least_bytes("propagate", shape, torch.float32, "both") == 4 * values * (21 + 42)


def test_what_cannot_run_is_reported_with_its_error(tool, monkeypatch):
    monkeypatch.setattr(tool, "time_of", lambda run: {"median_ms": run()})

    def broken():
        raise RuntimeError("out of registers")

    assert tool.attempt({"way": "forward"}, lambda: lambda: 4.0, 3.0) == {
        "way": "forward", "median_ms": 4.0, "floor_ms": 3.0, "share_of_floor": 0.75,
    }  # fmt: skip
    assert tool.attempt({"way": "forward"}, broken, 3.0) == {
        "way": "forward",
        "error": "RuntimeError: out of registers",
    }


def test_every_measurement_names_its_method_way_shape_and_type(tool, device_of, monkeypatch):
    monkeypatch.setattr(tool, "time_of", lambda run: {"median_ms": 1.0})
    monkeypatch.setattr(tool, "SIDES", (4,))
    device, shape = device_of("triton"), tool.Shape(1, 1, 2, 3)
    rows = [*tool.scans(shape, torch.float32, 1e9, device), *tool.mixers(shape, torch.float32, 1e9, device)]
    rows += tool.resolutions(1e9, device)
    assert [(row["method"], row["way"]) for row in rows] == [
        ("propagate", "forward"), ("propagate", "backward"), ("lines", "forward"), ("fused", "forward"),
        ("fused", "both"), ("unfused", "forward"), ("unfused", "both"), ("resolution, propagate", "forward"),
        ("resolution, mix", "forward"),
    ]  # fmt: skip
    for row in rows:
        assert row["share_of_floor"] == row["floor_ms"] > 0


def test_a_machine_without_a_gpu_is_told_so(tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["measure_propagation.py", str(tmp_path / "found.json")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tool.main()
    assert "there is no GPU on this machine" in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()
