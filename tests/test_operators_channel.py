"""The operator of channel attention: linear at every position, with matrices of channels and none of positions."""

import inspect

import numpy as np
import pytest
import torch

from workbench.analysis.affinity import AffinitySpec, affinity
from workbench.images import load_image
from workbench.models import load_model
from workbench.operators import REDUCTIONS, ChannelOperator, operator
from workbench.operators.linear import Operator

LAYERS = ("stage1.block1.channel", "stage2.block1.channel")
SIZES = (64, (36, 52))
cases = pytest.mark.parametrize(("layer", "size"), [(layer, size) for layer in LAYERS for size in SIZES])


@pytest.fixture
def model():
    return load_model("davit_nano", device="cpu", seed=1)


@pytest.fixture
def op(model, layer, size):
    return operator(model, load_image("coffee", size), layer)


@pytest.fixture
def one(model):
    """The operator of the first channel layer."""
    return operator(model, load_image("coffee", 64), LAYERS[0])


@cases
def test_the_map_applied_to_the_value_is_what_the_layer_made(op, model, layer, size):
    image = load_image("coffee", size)
    _, mixer = model.block(layer)
    made = []
    handle = mixer.proj.register_forward_pre_hook(lambda module, args: made.append(args[0]))
    with torch.no_grad():
        model(image.tensor)
    handle.remove()
    assert isinstance(op, ChannelOperator)
    assert op.info["kind"] == "channel"
    assert op.exact
    assert op.value.shape == op.output.shape == (mixer.proj.in_features, *op.grid)
    assert torch.equal(op.output, op.apply(op.value))
    torch.testing.assert_close(op.output, made[0][0].permute(2, 0, 1))


@cases
def test_every_position_is_mixed_by_the_matrix_of_each_head(op, layer, size):
    v = torch.randn_like(op.value)
    matrices = torch.tensor(np.stack([op.channel_matrix(group) for group in op.groups])).double()
    expected = torch.einsum("hij,hjrc->hirc", matrices, v.double().unflatten(0, matrices.shape[:2]))
    torch.testing.assert_close(op.apply(v).double(), expected.flatten(0, 1), rtol=0, atol=1e-4)


@cases
def test_the_adjoint_is_the_transpose_for_the_whole_and_for_every_head(op, layer, size):
    v, g = torch.randn_like(op.value), torch.randn_like(op.value)
    for group in (None, *op.groups):
        forth, back = op.apply(v, group), op.adjoint(g, group)
        left, right = (forth.double() * g).sum(), (v.double() * back).sum()
        assert abs(left - right) <= 1e-5 * (forth.double() * g).abs().sum()


@cases
def test_heads_add_up_to_the_whole_and_mix_their_own_channels_only(op, layer, size):
    v = torch.randn_like(op.value)
    parts = [op.apply(v, group) for group in op.groups]
    torch.testing.assert_close(sum(parts), op.apply(v))
    torch.testing.assert_close(sum(op.adjoint(v, group) for group in op.groups), op.adjoint(v))
    width = op.value.shape[0] // len(op.groups)
    for i, part in enumerate(parts):
        own = part.unflatten(0, (len(op.groups), width))
        assert own[i].abs().sum() > 0
        assert own[:i].abs().sum() == own[i + 1 :].abs().sum() == 0


@cases
def test_the_rows_of_a_channel_matrix_sum_to_one_and_the_merged_one_is_the_mean_over_heads(op, layer, size):
    matrices = [op.channel_matrix(group) for group in op.groups]
    width = op.value.shape[0] // len(op.groups)
    for matrix in (*matrices, op.channel_matrix()):
        assert matrix.dims == ("channel_out", "channel_in")
        assert matrix.shape == (width, width)
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum("channel_in"), 1, atol=1e-5)
    np.testing.assert_allclose(op.channel_matrix(), np.mean(matrices, 0), atol=1e-6)
    np.testing.assert_allclose(op.channel_matrix(reduce="max_abs"), np.max(matrices, 0))
    assert (op.channel_matrix().attrs["group"], matrices[1].attrs["group"]) == ("merged", "head 1")


def test_another_picture_gives_other_matrices(model, one):
    other = operator(model, load_image("astronaut", 64), LAYERS[0])
    assert not np.allclose(one.channel_matrix(), other.channel_matrix())


REFUSED = {
    "row": ((0, 0),), "column": ((0, 0),), "rows": ((0, 0),), "columns": ((0, 0),), "matrix": (),
}  # fmt: skip
WHY = r"^stage1.block1.channel is channel attention, which has no N x N matrix over positions: .* channel_matrix"


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_need_a_matrix_over_positions_is_refused_in_one_sentence(one, name):
    with pytest.raises(ValueError, match=WHY):
        getattr(one, name)(*REFUSED[name])
    assert list(inspect.signature(getattr(one, name)).parameters) == [
        parameter for parameter in inspect.signature(getattr(Operator, name)).parameters if parameter != "self"
    ]


@pytest.mark.parametrize("side", ["reads", "heard"])
def test_the_affinity_of_a_position_is_refused_with_the_same_sentence(one, side):
    with pytest.raises(ValueError, match=WHY):
        affinity(one, AffinitySpec((3, 4), side))


def test_unknown_heads_and_reductions_are_answered_with_what_there_is(one):
    with pytest.raises(ValueError, match="no group named 'head 9'"):
        one.channel_matrix("head 9")
    with pytest.raises(ValueError, match=f"no reduction named 'median'.*{next(iter(REDUCTIONS))}"):
        one.channel_matrix(reduce="median")


def test_it_runs_as_products_of_pytorch_whatever_the_model_was_asked_for(one):
    other = operator(
        load_model("davit_nano", device="cpu", seed=1, backend="reference"), load_image("coffee", 64), LAYERS[0]
    )
    assert one.info["backend"] == other.info["backend"] == "torch"
    torch.testing.assert_close(one.output, other.output, rtol=0, atol=1e-4)
    assert one.info["pattern"] == "each channel reads the 16 channels of its head"
