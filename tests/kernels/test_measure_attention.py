"""tools/measure_attention.py, as far as it runs without a GPU: what is compared with our kernels computes the same."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from kernels.attention import attend, neighborhood, swin

TOOL = Path(__file__).parents[2] / "tools" / "measure_attention.py"


@pytest.fixture(scope="module")
def tool():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("measure_attention", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("way", ["eager", "sdpa", "flex"])
def test_the_ways_that_are_compared_compute_the_same(way, shift, tool, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pattern = swin(7, shift)
    q, k, v = torch.randn(3, 2, 14, 14, 3, 32)
    bias = torch.randn(pattern.bias_shape(3))
    found = tool.flex(q, shift)(q, k, v, bias) if way == "flex" else getattr(tool, way)(q, k, v, bias, shift=shift)
    torch.testing.assert_close(found, attend(q, k, v, pattern, bias, backend="reference"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 3])
def test_cutting_into_windows_has_an_inverse(shift, tool):
    tokens = torch.randn(2, 14, 21, 3, 5)
    assert torch.equal(tool.unwindowed(tool.windows(tokens, shift), tokens, shift), tokens)


def test_a_pattern_is_checked_with_all_its_gradients(tool, device_of):
    found = tool.check(neighborhood(3), torch.float32, device_of("triton"), (1, 4, 5, 1, 8))
    assert found["passed"]
    assert 0 < found["error"] < found["allowed"] < 1e-4


def test_a_wrong_result_is_noticed(tool, device_of, monkeypatch):
    def wrong(*tensors, backend):
        out = attend(*tensors, backend=backend)
        return out * 1.001 if backend == "triton" else out

    monkeypatch.setattr(tool.a, "attend", wrong)
    assert not tool.check(swin(2), torch.float32, device_of("triton"), (1, 2, 2, 1, 8))["passed"]


def test_every_pattern_of_the_family_is_checked_on_a_map_that_suits_it(tool):
    for pattern in tool.patterns(28):
        pattern.check((28, 28))
        shape = tool.bias_for(pattern, (1, 28, 28, 4, 32))
        assert shape is None or len(shape) == 3


def test_the_floor_counts_every_tensor_once(tool):
    stage = tool.STAGES[0]
    tensor = 64 * 56 * 56 * 96 * 2
    assert tool.least_bytes(stage, backward=False) == 4 * tensor
    assert tool.least_bytes(stage, backward=True) == 12 * tensor


def test_a_machine_without_a_gpu_is_told_so(tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["measure_attention.py", str(tmp_path / "found.json")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tool.main()
    assert "there is no GPU on this machine" in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()
