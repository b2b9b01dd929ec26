"""The operator answers wrong positions, groups, channels, reductions, maps and budgets with one sentence."""

import numpy as np
import pytest
import torch

from workbench.images import load_image
from workbench.models import load_model
from workbench.operators import operator


@pytest.fixture(scope="module", params=["gspn_nano", "swin_nano", "twins_nano", "hilo_nano", "cswin_nano"])
def frozen(request):
    """A model and its operator on a grid of 10 x 14."""
    model = load_model(request.param, device="cpu")
    return model, operator(model, load_image("brick", (20, 28)), "stage1.block2")


@pytest.fixture
def op(frozen):
    return frozen[1]


def says(error, *words):
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    for word in words:
        assert word in text


def pictures(op):
    return op.row, op.column, op.rows, op.columns


@pytest.mark.parametrize("position", [(-1, 0), (0, -1), (10, 0), (0, 14), (13, 9)])
def test_a_position_outside_the_grid_is_refused(op, position):
    for picture in pictures(op):
        with pytest.raises(ValueError, match="position must be inside the 10 x 14 grid") as error:
            picture(position)
        says(error, f"got (row {position[0]}, col {position[1]})")


@pytest.mark.parametrize("position", [None, 3, (1,), (1, 2, 3), "centre", ("a", "b"), (None, 1), (float("nan"), 1)])
def test_what_is_no_position_is_refused(op, position):
    for picture in pictures(op):
        with pytest.raises(TypeError, match=r"position must be a \(row, col\) pair of whole numbers; got") as error:
            picture(position)
        says(error, repr(position))


@pytest.mark.parametrize("position", [(1.5, 2), (-0.5, 2), (2, 3.25), (float("inf"), 1)])
def test_a_position_between_cells_is_refused(op, position):
    for picture in pictures(op):
        with pytest.raises(TypeError, match=r"position must be a \(row, col\) pair of whole numbers; got"):
            picture(position)


def test_whole_numbers_of_any_kind_are_a_position(op):
    plain = op.row((3, 5))
    for position in ([3, 5], np.array([3, 5]), torch.tensor([3, 5]), (np.int64(3), np.uint8(5))):
        assert np.array_equal(op.row(position), plain)


def test_an_unknown_group_is_answered_with_the_near_matches(op):
    near = op.groups[0].replace("e", "3", 1)
    for call in (
        lambda: op.apply(op.value, near),
        lambda: op.adjoint(op.value, near),
        lambda: op.row((0, 0), near),
        lambda: op.column((0, 0), near),
        lambda: op.matrix(near),
    ):
        with pytest.raises(
            ValueError, match=f"There is no group named '{near}' in stage1.block2; did you mean"
        ) as error:
            call()
        says(error, *op.groups)


@pytest.mark.parametrize("channel", [-1, 10_000])
def test_a_channel_that_does_not_exist_is_refused(op, channel):
    last = op.value.shape[0] - 1
    for call in (*pictures(op), lambda _, **options: op.matrix(**options)):
        with pytest.raises(ValueError, match=f"channel must be from 0 to {last}, or None to combine all; got") as error:
            call((0, 0), channel=channel)
        says(error, str(channel))


@pytest.mark.parametrize("channel", [1.5, "0", True])
def test_a_channel_that_is_no_whole_number_is_refused(op, channel):
    for call in (*pictures(op), lambda _, **options: op.matrix(**options)):
        with pytest.raises((TypeError, ValueError), match="channel must be") as error:
            call((0, 0), channel=channel)
        says(error, str(channel))


def test_an_unknown_reduction_is_answered_with_the_known_ones(op):
    for call in (*pictures(op), lambda _, **options: op.matrix(**options)):
        with pytest.raises(ValueError, match="There is no reduction named 'mean_sq'; did you mean mean") as error:
            call((0, 0), reduce="mean_sq")
        says(error, "mean", "mean_abs", "rms", "max_abs")


def test_a_map_of_another_shape_or_device_is_refused(op):
    wrong = [op.value[None], op.value[:-1], op.value.transpose(1, 2), op.value[:, :, :-1], op.value.to("meta")]
    for name, call in (("v", op.apply), ("g", op.adjoint)):
        for map_ in wrong:
            with pytest.raises(
                ValueError, match=rf"{name} must be \(C, H, W\) = \({op.value.shape[0]}, 10, 14\)"
            ) as error:
                call(map_)
            says(error, f"got {tuple(map_.shape)} on {map_.device}")


def test_a_map_of_another_dtype_or_no_tensor_is_refused(op):
    for name, call in (("v", op.apply), ("g", op.adjoint)):
        for dtype in (torch.float64, torch.float16, torch.int64):
            with pytest.raises(TypeError, match=f"{name} must have the layer's dtype torch.float32; got {dtype}"):
                call(op.value.to(dtype))
        with pytest.raises(TypeError, match=f"{name} must be a tensor; got ndarray.") as error:
            call(op.value.numpy())
        says(error)


def test_a_matrix_over_the_budget_is_refused_before_it_is_made(op):
    needed = 4 * (10 * 14) ** 2
    assert op.matrix(channel=0, budget=needed).shape == (140, 140)
    with pytest.raises(
        ValueError, match=r"The matrix of a 10 x 14 grid takes .* MiB, over the budget of .* MiB"
    ) as error:
        op.matrix(channel=0, budget=needed - 1)
    says(error, "raise `budget`, or ask for rows and columns instead")


def test_an_unknown_layer_is_answered_with_the_near_matches(frozen):
    model, _ = frozen
    with pytest.raises(
        ValueError, match=rf"There is no layer named 'stage1.blok2' in {model.name}; did you mean"
    ) as error:
        operator(model, load_image("brick", 64), "stage1.blok2")
    says(error, "stage1.block2")


def test_an_image_that_does_not_fit_the_model_is_refused(frozen):
    model, _ = frozen
    with pytest.raises(ValueError, match=rf"{model.name} takes images .*; got 2 x 3") as error:
        operator(model, load_image("brick", (2, 3)), "stage1.block1")
    says(error)
