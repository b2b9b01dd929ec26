"""The fronts of the directions: their frames sum to the operator, stay in the cone, stop at chunks, move rightly."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

import workbench as wb
from kernels.propagation import DIRECTIONS, normalise_gates
from workbench.analysis.directions import BUDGET, DirectionsSpec, directions
from workbench.analysis.directions_lines import lines_of, released_maps, released_place
from workbench.analysis.export import load_result, save
from workbench.models.states import PropagationState, to_released_frames
from workbench.operators import REDUCTIONS, PropagationOperator

INFO = {"layer": "stage1.block1", "kind": "propagation", "backend": "reference"}


def operator_of(grid=(5, 7), merge="aligned", chunk=None, channels=3, shared=False, positive=False, **parts):
    """A layer frozen at random numbers; parts replace those of its state."""
    rows, cols = grid
    walk = DIRECTIONS if merge == "aligned" else ("left_right",) * 4
    draw = torch.rand if positive else torch.randn
    maps = {name: draw(4, 1, channels, rows, cols) + 0.1 * positive for name in ("lam", "u", "skip")}
    state = PropagationState(
        value=torch.randn(1, channels, rows, cols),
        gates=normalise_gates(torch.randn(4, 3, 1, 1 if shared else channels, rows, cols), walk),
        weight=draw(4) + 0.1 * positive, merge=merge, chunk=chunk, backend="reference", **maps,
    )  # fmt: skip
    return PropagationOperator(replace(state, **parts), INFO | {"merge": merge, "chunk": chunk})


def gates_that_read(gate, grid, channels=1):
    """Gates of 1 for one of the three neighbours, whether it exists or not: a missing one is dropped."""
    gates = torch.zeros(4, 3, 1, channels, *grid)
    gates[:, gate] = 1
    return gates


def plain(grid, gate, **parts):
    """A layer of one channel that only moves: h = x + h[line before, at one neighbour]; u, lambda, m are 1, D is 0."""
    ones = torch.ones(4, 1, 1, *grid)
    fixed = {"lam": ones, "u": ones, "skip": 0 * ones, "weight": torch.ones(4)}
    return operator_of(grid, channels=1, gates=gates_that_read(gate, grid), **fixed, **parts)


CASES = [
    ((5, 7), "aligned", None), ((7, 4), "aligned", 3), ((1, 6), "aligned", 2), ((6, 1), "aligned", 1),
    ((6, 6), "released", None), ((5, 5), "released", 2), ((1, 1), "aligned", None),
]  # fmt: skip
cases = pytest.mark.parametrize(("grid", "merge", "chunk"), CASES, ids=str)


@cases
@pytest.mark.parametrize("towards", [False, True], ids=["source", "query"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_frames_of_every_direction_sum_to_the_operator(grid, merge, chunk, towards, reduce):
    op = operator_of(grid, merge, chunk, shared=reduce == "rms")
    for position in {(0, 0), (grid[0] - 1, grid[1] // 2), (grid[0] // 2, grid[1] - 1)}:
        result = directions(op, position, towards=towards, reduce=reduce)
        merged, groups = (op.rows if towards else op.columns)(position, reduce=reduce)
        np.testing.assert_array_equal(result["frame"].sum("step"), groups)
        np.testing.assert_array_equal(result["picture"], groups)
        np.testing.assert_array_equal(result["merged"], merged)
        np.testing.assert_array_equal(result["direction"], op.groups)


@cases
@pytest.mark.parametrize("towards", [False, True], ids=["source", "query"])
def test_merged_frames_of_a_linear_reduction_sum_to_the_merged_operator(grid, merge, chunk, towards):
    op = operator_of(grid, merge, chunk)
    for channel in (None, 1):
        result = directions(op, (grid[0] // 2, 0), towards=towards, channel=channel)
        merged, _ = (op.rows if towards else op.columns)((grid[0] // 2, 0), channel=channel)
        np.testing.assert_allclose(result["merged_frame"].sum("step"), merged, rtol=1e-5, atol=1e-6)


def test_merged_frames_of_other_reductions_add_directions_before_they_combine_channels():
    op = operator_of((5, 6))
    result = directions(op, (2, 3), reduce="rms")
    parts = op.state.contributions(one_hot(op, (2, 3)))[:, 0]
    for step in result["step"].values:
        there = torch.from_numpy(result["step_of"].values == step).unsqueeze(1)
        expected = REDUCTIONS["rms"][1]((parts * there).sum(0))
        np.testing.assert_allclose(result["merged_frame"].sel(step=step), expected, rtol=1e-5, atol=1e-7)


def one_hot(op, position):
    one = torch.zeros_like(op.state.value)
    one[..., position[0], position[1]] = 1
    return one


@cases
@pytest.mark.parametrize("towards", [False, True], ids=["source", "query"])
def test_the_cone_is_where_positive_gates_carry_something(grid, merge, chunk, towards):
    result = directions(operator_of(grid, merge, chunk, positive=True), (grid[0] // 2, grid[1] // 2), towards=towards)
    np.testing.assert_array_equal(result["cone"], result["picture"] > 0)


def test_the_front_stops_where_a_chunk_ends():
    result = directions(operator_of((4, 9), chunk=3, positive=True), (1, 4))
    across, down = result.sel(direction="left_right"), result.sel(direction="top_bottom")
    assert np.flatnonzero((across["step_of"] >= 0).any("row")).tolist() == [4, 5]
    assert np.flatnonzero((result.sel(direction="right_left")["step_of"] >= 0).any("row")).tolist() == [3, 4]
    assert np.flatnonzero((down["picture"] != 0).any("col")).tolist() == [1, 2]
    assert result["chunk_edge"].sel(direction="left_right").values.tolist() == [3, 6]
    assert result["chunk_edge"].sel(direction="right_left").values.tolist() == [6, 3]
    assert result["chunk_edge"].sel(direction="bottom_top").values[0] == 1
    assert np.isnan(result["chunk_edge"].sel(direction="top_bottom").values[1])
    assert not across["reads"].values[:, [0, 3, 6]].any()
    assert across["reads"].values[:, [1, 2, 4, 5, 7, 8]].all()


@pytest.mark.parametrize(("gate", "across"), [(0, 1), (1, 0), (2, -1)])
def test_what_is_read_from_the_index_before_moves_towards_higher_indices_against_the_flow(gate, across):
    op = plain((7, 9), gate)
    result = directions(op, (3, 4))
    steps = {
        "left_right": (across, 1),
        "right_left": (across, -1),
        "top_bottom": (1, across),
        "bottom_top": (-1, across),
    }
    for name, (down, right) in steps.items():
        one = result.sel(direction=name)
        found = {(int(r), int(c)) for r, c in zip(*np.nonzero(one["picture"].values), strict=True)}
        walked = {(3 + s * down, 4 + s * right) for s in range(10)}
        assert found == {(r, c) for r, c in walked if 0 <= r < 7 and 0 <= c < 9}
        assert np.unique(one["flow"]).tolist() == [-across]
        assert np.unique(one["dominant"]).tolist() == [gate]


def test_fixed_gates_give_the_numbers_of_a_calculation_by_hand():
    grid = (3, 3)
    quarters = torch.tensor([0.25, 0.5, 0.25]).view(1, 3, 1, 1, 1, 1).expand(4, 3, 1, 1, *grid)
    op = replace_state(plain(grid, 1), gates=quarters, u=torch.full((4, 1, 1, *grid), 2.0),
                       skip=torch.full((4, 1, 1, *grid), 0.5), weight=torch.tensor([1.0, 0, 0, -1]))  # fmt: skip
    result = directions(op, (1, 0))
    assert result["frame"].sel(direction="left_right", step=0).values[1].tolist() == [2.5, 0, 0]  # u h + D v
    assert result["frame"].sel(direction="left_right", step=1).values[:, 1].tolist() == [0.5, 1, 0.5]
    # (1/4, 1/2, 1/4) once more; what leaves the map is gone: 1/8 + 1/8, 1/16 + 1/4 + 1/16, 1/8 + 1/8, times u
    assert result["frame"].sel(direction="left_right", step=2).values[:, 2].tolist() == [0.5, 0.75, 0.5]
    assert result["frame"].sel(direction="bottom_top", step=1).values[0].tolist() == [-1, -0.5, 0]
    assert result["weight"].values.tolist() == [1, 0, 0, -1]


def replace_state(op, **parts):
    return PropagationOperator(replace(op.state, **parts), op.info)


def test_the_hidden_state_alone_leaves_out_u_skip_and_the_weight():
    op = operator_of((4, 5), chunk=3)
    bare = {name: torch.ones_like(op.state.u) for name in ("u",)} | {"skip": 0 * op.state.skip}
    plainer = replace_state(op, weight=torch.ones(4), **bare)
    for towards in (False, True):
        hidden = directions(op, (2, 2), towards=towards, quantity="hidden")
        expected = directions(plainer, (2, 2), towards=towards)
        np.testing.assert_allclose(hidden["frame"], expected["frame"], rtol=1e-5, atol=1e-7)


def test_lines_and_frames_of_the_released_merge_agree_with_what_the_layer_does():
    numbers = torch.arange(36.0).view(1, 1, 6, 6)
    for k, frame in enumerate(to_released_frames(numbers)[:, 0, 0].numpy()):
        np.testing.assert_array_equal(released_maps(k, frame), numbers[0, 0])
        assert frame[released_place(k, (1, 4), (6, 6))] == numbers[0, 0, 1, 4]
    assert lines_of("bottom_top", (3, 4)).along[:, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("towards", [False, True], ids=["source", "query"])
def test_fronts_of_the_released_merge_stop_at_the_chunks_of_the_map_that_they_are_shown_on(towards):
    result = directions(operator_of((6, 6), "released", 4), (2, 2), towards=towards)
    wide = [(result["step_of"][k] >= 0).any("row").all().item() for k in range(4)]
    edges = result["chunk_edge"].values[:, 0].tolist()
    assert edges == ([4, 4, 2, 2] if towards else [4, 4, 4, 4])
    assert wide == ([False, True, False, True] if towards else [False] * 4)
    for k, edge in enumerate(int(edge) for edge in edges):
        there = (result["step_of"][k].values >= 0).any(1 if wide[k] else 0)
        assert not (there[:edge].any() and there[edge:].any())


def test_gates_are_those_of_the_state_and_shared_ones_serve_every_channel():
    op, shared = operator_of((4, 5)), operator_of((4, 5), shared=True)
    assert np.allclose(directions(op, (0, 0))["gates"], op.state.gates[:, :, 0].mean(2))
    assert np.array_equal(directions(op, (0, 0), channel=2)["gates"], op.state.gates[:, :, 0, 2])
    assert np.array_equal(directions(shared, (0, 0), channel=2)["gates"], shared.state.gates[:, :, 0, 0])


def test_a_result_names_its_spec_and_survives_as_a_file(tmp_path):
    result = directions(operator_of((3, 4)), (1, 2), towards=True, reduce="rms")
    assert result.attrs["spec"] == {
        "position": (1, 2), "towards": True, "channel": None, "reduce": "rms", "quantity": "contribution",
    }  # fmt: skip
    assert load_result(save(result, tmp_path / "fronts.nc")).identical(result)
    with pytest.raises(FrozenInstanceError):
        DirectionsSpec((0, 0)).position = (1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"position": (5, 0)}, ValueError, "inside the 5 x 7 grid"),
        ({"channel": 3}, ValueError, "from 0 to 2"),
        ({"channel": True}, TypeError, "whole number"),
        ({"reduce": "meen"}, ValueError, "did you mean mean"),
        ({"quantity": "h"}, ValueError, "no quantity named 'h'"),
        ({"towards": "query"}, ValueError, "True or False"),
        ({"budget": 100}, ValueError, "raise `budget`"),
    ],
)
def test_a_wrong_argument_is_answered_with_one_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        directions(operator_of(), **({"position": (0, 0)} | arguments))


def test_a_layer_without_directions_says_so():
    op = wb.operator(wb.load_model("nat_nano", backend="reference"), wb.load_image("coffee", size=64), "stage1.block1")
    with pytest.raises(ValueError, match=r"stage1.block1 has no directions \(its kind is 'attention'\)"):
        wb.directions(op, (0, 0))


def test_the_frames_of_a_128_x_128_grid_fit_into_the_budget_and_those_of_a_larger_one_are_refused():
    result = directions(operator_of((128, 128), channels=1), (0, 0))
    assert result["frame"].nbytes + result["merged_frame"].nbytes <= BUDGET
    with pytest.raises(ValueError, match="256 x 256 grid take"):
        directions(operator_of((256, 256), channels=1), (0, 0))
