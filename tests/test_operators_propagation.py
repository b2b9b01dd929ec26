"""What the operator of a propagation layer reads: gates that sum to 1, and the cone that a scan comes from."""

from functools import cache

import numpy as np
import pytest
import torch

from workbench.images import load_image
from workbench.models import load_model
from workbench.models.registry import variant
from workbench.operators import operator

CASES = {
    "gspn_nano": ("gspn_nano", {}, 64),
    "gspn_nano released": ("gspn_nano", {"merge": "released"}, 64),
    "gspn_nano, chunks, not square": ("gspn_nano", {"chunk": 5}, (36, 52)),
    "gspn_nano released, chunks": ("gspn_nano", {"merge": "released", "chunk": 5}, 48),
    "gspn2_nano, chunks, not square": ("gspn2_nano", {"chunk": 5}, (36, 52)),
    "gspn_tiny": ("gspn_tiny", {"dims": (16, 32, 64, 128)}, 128),
}
layers = pytest.mark.parametrize(
    ("case", "layer"),
    [
        pytest.param(case, layer, id=f"{case}, {layer}")
        for case, (name, config, _) in CASES.items()
        for layer in variant(name).build(config).blocks()
    ],
)


@cache
def ran(case):
    """A case's model and image, and what each mixer receives."""
    name, config, size = CASES[case]
    model, image = load_model(name, device="cpu", seed=1, **config), load_image("coffee", size)
    return model, image, model.mixer_inputs(image.tensor)


@pytest.fixture
def op(case, layer):
    model, image, received = ran(case)
    return operator(model, image, layer, received)


def positions(op):
    """A corner, the centre, and somewhere else."""
    rows, cols = op.grid
    return [(0, cols - 1), (rows // 2, cols // 2), (rows - 1, 1)]


@layers
def test_gate_rows_sum_to_1_over_the_neighbours_that_exist(op, agree):
    gates, released = op.state.gates, op.info["merge"] == "released"
    assert gates.shape[:2] == (4, 3)
    agree(gates.sum(1), torch.ones(gates[:, 0].shape, dtype=torch.float64), 3)
    for k, direction in enumerate(op.groups):
        axis = -2 if released or direction in ("left_right", "right_left") else -1
        missing = torch.zeros_like(gates[k], dtype=torch.bool)
        missing[0].select(axis, 0).fill_(True)
        missing[2].select(axis, -1).fill_(True)
        assert torch.equal(gates[k] == 0, missing)


#: Where the released merge finds the pixels of each scan's frame: it moves the value and brings nothing back.
FROM_FRAME = {
    "left_right": lambda frame: frame,
    "top_bottom": lambda frame: frame.T,
    "right_left": lambda frame: frame[:, ::-1],
    "bottom_top": lambda frame: frame[:, ::-1].T,
}


def cone(reader, direction, grid, chunk):
    """Where a scan can have come from that is now at `reader`, as a mask of the grid."""
    axis = 1 if direction in ("left_right", "right_left") else 0
    places = np.indices(grid)
    first, now = places[axis], reader[axis]
    if direction in ("right_left", "bottom_top"):
        first, now = grid[axis] - 1 - first, grid[axis] - 1 - now
    steps, aside = now - first, abs(places[1 - axis] - reader[1 - axis])
    return (steps >= aside) & (first // (chunk or max(grid)) == now // (chunk or max(grid)))


@layers
def test_a_direction_reads_the_cone_it_comes_from_within_the_chunk_and_exactly_nothing_else(op):
    for position in positions(op):
        for group in op.groups:
            row = op.row(position, group, reduce="max_abs").values
            if op.info["merge"] == "released":
                readable = FROM_FRAME[group](cone(position, "left_right", op.grid, op.info["chunk"]))
            else:
                readable = cone(position, group, op.grid, op.info["chunk"])
            assert np.array_equal(row != 0, readable)
