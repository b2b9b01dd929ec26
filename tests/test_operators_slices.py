"""The operator of SCNN: a derivative at the image in which channels mix, so that pictures combine pairs of channels."""

from functools import cache

import numpy as np
import pytest
import torch

from kernels.slice_convolution import slice_convolve
from workbench.analysis.affinity import AffinitySpec, affinity
from workbench.images import load_image
from workbench.models import load_model
from workbench.models.states import SlicesState
from workbench.operators import REDUCTIONS, operator
from workbench.operators.slices import SlicesOperator
from workbench.plots.affinity import caption

ORDER = ("top_bottom", "bottom_top", "left_right", "right_left")


@cache
def real():
    """A layer of a model at an image."""
    model = load_model("scnn_nano", device="cpu", seed=1, inner=5)
    return operator(model, load_image("coffee", (36, 52)), "stage2.block1")


@cache
def tiny():
    """An operator of a few channels and positions in float64, and its whole Jacobian, (C, H, W, C, H, W)."""
    torch.manual_seed(5)
    value, weight = torch.randn(1, 3, 3, 4, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64) / 3
    active = torch.rand(4, 1, 3, 3, 4) < 0.6
    op = SlicesOperator(
        SlicesState(value, weight, active, ORDER, "reference"), {"layer": "tiny", "kind": "convolution"}
    )
    return op, torch.autograd.functional.jacobian(lambda v: op.state.mix(v[None])[0], value[0])


def reduced(block, reduce):
    """The reductions over pairs of channels, written out: (C, C) -> number."""
    return {
        "mean": block.mean(),
        "mean_abs": block.abs().mean(),
        "rms": block.square().mean().sqrt(),
        "max_abs": block.abs().max(),
    }[reduce]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_pictures_combine_all_pairs_of_channels_of_the_jacobian(reduce):
    op, jacobian = tiny()
    row, column = op.row((1, 2), reduce=reduce), op.column((1, 2), reduce=reduce)
    for r, c in np.ndindex(3, 4):
        assert float(row[r, c]) == pytest.approx(float(reduced(jacobian[:, 1, 2, :, r, c], reduce)), abs=1e-12)
        assert float(column[r, c]) == pytest.approx(float(reduced(jacobian[:, r, c, :, 1, 2], reduce)), abs=1e-12)


def test_a_channel_is_shown_as_it_goes_into_itself():
    op, jacobian = tiny()
    for channel in range(3):
        own = jacobian[channel, :, :, channel]
        np.testing.assert_allclose(op.row((0, 3), channel=channel), own[0, 3], atol=1e-12)
        np.testing.assert_allclose(op.column((0, 3), channel=channel), own[:, :, 0, 3], atol=1e-12)


def test_groups_are_the_identity_and_what_each_pass_adds_to_the_ones_before():
    op, jacobian = tiny()
    assert op.groups == ("identity", *ORDER)
    size = 36
    steps = []
    for k, direction in enumerate(ORDER):
        state = SlicesState(op.state.value, op.state.weight[k : k + 1], op.state.active[k : k + 1], (direction,))
        steps.append(
            torch.autograd.functional.jacobian(lambda v, s=state: s.mix(v[None])[0], op.value).view(size, size)
        )
    before, identity = torch.eye(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    v = torch.randn(3, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(op.apply(v, "identity"), v)
    for direction, step in zip(ORDER, steps, strict=True):
        added = (step - identity) @ before
        torch.testing.assert_close(op.apply(v, direction).flatten(), added @ v.flatten())
        torch.testing.assert_close(op.adjoint(v, direction).flatten(), added.T @ v.flatten())
        before = step @ before
    torch.testing.assert_close(before, jacobian.view(size, size))
    torch.testing.assert_close(op.apply(v).flatten(), before @ v.flatten())


def test_the_map_is_the_derivative_of_the_layer_at_the_image(agree):
    op = real()
    value, weight, direction = op.value.double()[None], op.state.weight.double(), torch.randn(1, *op.value.shape)

    def layer(v):
        return slice_convolve(v, weight, backend="reference")

    made, derivative = torch.autograd.functional.jvp(layer, value, direction.double())
    agree(op.output, made[0], 2000)
    agree(op.apply(direction[0]), derivative[0], 2000)
    assert not op.exact


@pytest.mark.parametrize("side", ["reads", "heard"])
def test_the_figure_says_that_the_layer_is_linearised_and_how_channels_are_combined(side):
    result = affinity(real(), AffinitySpec((3, 4), side))
    text = caption(result, "log", False)
    assert "linearised at the image: every ReLU held as it was there;" in text
    assert "mean of |.| over pairs of channels;" in text
    assert "slices of 9 positions, 4 passes in turn" in text
    one = affinity(real(), AffinitySpec((3, 4), side, channel=2))
    assert "channel 2 to itself;" in caption(one, "linear", True)
    gspn = operator(load_model("gspn_nano", device="cpu"), load_image("coffee", 64), "stage1.block1")
    assert "linearised" not in caption(affinity(gspn, AffinitySpec((3, 4), side)), "log", False)
