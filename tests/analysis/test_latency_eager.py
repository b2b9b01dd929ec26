"""The eager implementations that ours are compared with: equal to the definitions, outputs and gradients."""

import pytest
import torch

from kernels.attention import attend, swin
from kernels.propagation import mix, normalise_gates, propagate
from workbench.analysis.latency_eager import (
    eager_gates,
    eager_gspn,
    eager_mix,
    eager_propagate,
    eager_windows,
    to_frames,
    to_image,
)
from workbench.models import load_model

SHAPES = [(6, 2), (6, None), (5, None), (8, 4), (1, None), (3, 7)]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same(ours, eager, inputs):
    """Outputs and the gradients of every input agree."""
    torch.testing.assert_close(eager, ours)
    grad = torch.randn_like(ours)  # on a single line gates are not used: their gradient is 0
    gradients = (torch.autograd.grad(out, inputs, grad, materialize_grads=True) for out in (eager, ours))
    torch.testing.assert_close(*gradients)


def test_frames_are_left_again():
    maps = torch.randn(4, 2, 3, 5, 5)
    torch.testing.assert_close(to_image(to_frames(maps)), maps, rtol=0, atol=0)


@pytest.mark.parametrize(("side", "chunk"), SHAPES)
def test_the_eager_mixer_and_its_steps_are_the_definition(side, chunk):
    v, logits = randn(2, 3, side, side), randn(4, 3, 2, 3, side, side)
    lam, u, skip, weight = (*(randn(4, 2, 3, side, side) for _ in range(3)), randn(4))
    maps = (lam, u, skip, weight)
    ours = mix(v, logits, *maps, chunk=chunk, backend="reference")
    same(ours, eager_mix(v, logits, *maps, chunk), [v, logits, *maps])
    same(normalise_gates(logits, backend="reference"), eager_gates(logits), [logits])
    gates = randn(4, 3, 2, 3, side, side)
    ours = propagate(v, gates, lam, chunk=chunk, backend="reference")
    same(ours, eager_propagate(v, gates, lam, chunk), [v, gates, lam])


def test_an_eager_scan_of_chunks_that_leave_lines_over_is_refused():
    v, gates, lam = torch.randn(1, 1, 5, 5), torch.rand(4, 3, 1, 1, 5, 5), torch.rand(4, 1, 1, 5, 5)
    with pytest.raises(ValueError, match="5 lines in chunks of 2"):
        eager_propagate(v, gates, lam, 2)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(4, 8), (12, 4), (8, 8)])
def test_eager_windows_are_the_definition(height, width, shift):
    q, k, v = (randn(2, height, width, 3, 5) for _ in range(3))
    bias = randn(3, 7, 7)
    ours = attend(q, k, v, swin(4, shift), bias, backend="reference")
    same(ours, eager_windows(q, k, v, bias, 4, shift), [q, k, v, bias])


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_eager_gspn_has_the_logits_of_ours_and_leaves_it_as_it_was(chunk):
    model = load_model("gspn_nano", device="cpu", chunk=chunk)
    eager, x = eager_gspn(model), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(eager(x), model(x), rtol=1e-4, atol=1e-4)
    mixers = {type(mixer).__name__ for _, mixer in model.blocks().values()}
    assert mixers == {"Propagation"}
    assert {type(block.op).__name__ for _, block in eager.named_blocks()} == {"EagerPropagation"}


def test_a_gspn_with_the_released_merge_has_no_eager_counterpart():
    with pytest.raises(ValueError, match="merge 'aligned'; got 'released'"):
        eager_gspn(load_model("gspn_nano", device="cpu", merge="released"))
