"""A mixing layer as a linear map: the laws of the operator, for every mixing layer of the nano and the tiny models.

A case is a model, its settings and the size of the image; 128 pixels keep the smallest grid of a tiny model at 4 x 4.
"""

from functools import cache

import numpy as np
import pytest
import torch

from workbench.images import load_image
from workbench.models import load_model
from workbench.models.registry import variant
from workbench.operators import REDUCTIONS, operator

CASES = {
    "gspn_nano": ("gspn_nano", {}, 64),
    "gspn_nano released": ("gspn_nano", {"merge": "released"}, 64),
    "gspn_nano, chunks, not square": ("gspn_nano", {"chunk": 5}, (36, 52)),
    "gspn_nano released, chunks": ("gspn_nano", {"merge": "released", "chunk": 5}, 48),
    "swin_nano": ("swin_nano", {}, 64),
    "swin_nano, not square": ("swin_nano", {}, (36, 52)),
    "gspn_tiny": ("gspn_tiny", {}, 128),
    "swin_tiny": ("swin_tiny", {}, 128),
}
EPS = torch.finfo(torch.float32).eps


def layer_names(model):
    """The names of a variant's mixing layers, without building it."""
    depths = variant(model).defaults()["depths"]
    return [f"stage{i}.block{j}" for i, depth in enumerate(depths, 1) for j in range(1, depth + 1)]


def layers(family="", size=""):
    """Parametrise over the mixing layers of the cases whose model has these words in its name."""
    chosen = [
        pytest.param(case, layer, id=f"{case}, {layer}")
        for case, (model, _, _) in CASES.items()
        if family in model and size in model
        for layer in layer_names(model)
    ]
    return pytest.mark.parametrize(("case", "layer"), chosen)


@cache
def ran(case):
    """A case's model and image, what each mixer received in a forward pass, and what its linear map gave there."""
    name, config, size = CASES[case]
    model, image = load_model(name, device="cpu", seed=1, **config), load_image("coffee", size)
    received, mixed, handles = {}, {}, []
    for layer, (_, mixer) in model.blocks().items():
        after = mixer.out_norm if mixer.kind == "propagation" else mixer.proj

        def mixer_input(_, args, layer=layer):
            received[layer] = args[0]

        def map_output(_, args, layer=layer, kind=mixer.kind):
            mixed[layer] = args[0][0] if kind == "propagation" else args[0][0].permute(2, 0, 1)

        handles += [mixer.register_forward_pre_hook(mixer_input), after.register_forward_pre_hook(map_output)]
    with torch.no_grad():
        model(image.tensor)
    for handle in handles:
        handle.remove()
    return model, image, received, mixed


@pytest.fixture
def op(case, layer):
    return frozen(case, layer)


@cache
def frozen(case, layer):
    model, image, received, _ = ran(case)
    return operator(model, image, layer, received)


@pytest.fixture
def terms(op):
    """How many products a result sums: the lines of a scan or the keys of a window, and a few for the merge."""
    return sum(op.grid) + 16


def positions(op):
    """A corner, the centre, and somewhere else."""
    rows, cols = op.grid
    return [(0, cols - 1), (rows // 2, cols // 2), (rows - 1, 1)]


def one_hot(op, position):
    v = torch.zeros_like(op.value)
    v[:, position[0], position[1]] = 1
    return v


def own_channels(op, group):
    """The channels that a group acts on: all of them for a direction, its own for a head."""
    if group is None or op.info["kind"] == "propagation":
        return slice(None)
    width = op.value.shape[0] // len(op.groups)
    head = op.groups.index(group)
    return slice(head * width, (head + 1) * width)


def reduced(maps, reduce):
    """The reductions, written out again for (C, H, W)."""
    maps = maps.double()
    return {
        "mean": maps.mean(0),
        "mean_abs": maps.abs().mean(0),
        "rms": maps.pow(2).mean(0) ** 0.5,
        "max_abs": maps.abs().max(0).values,
    }[reduce]


def tensor(picture):
    return torch.from_numpy(np.array(picture.values))


@layers()
def test_the_map_applied_to_the_value_is_what_the_layer_made_in_the_forward_pass(case, layer, op, terms, agree):
    _, _, _, mixed = ran(case)
    assert op.value.shape == (op.value.shape[0], *op.grid)
    agree(op.apply(op.value), mixed[layer].double(), terms)
    agree(op.output, mixed[layer].double(), terms)


@layers()
def test_the_adjoint_is_the_transpose_merged_and_for_every_group(op, terms):
    v, g = torch.randn_like(op.value), torch.randn_like(op.value)
    for group in (None, *op.groups):
        forth, back = op.apply(v, group).double(), op.adjoint(g, group).double()
        forward, backward = (forth * g).sum(), (v * back).sum()
        assert abs(forward - backward) <= 4 * terms * EPS * forth.norm() * g.norm()
        assert forward != 0


@layers()
def test_the_groups_sum_to_the_merged_map(op, terms, agree):
    v = torch.randn_like(op.value)
    agree(op.apply(v), sum(op.apply(v, group).double() for group in op.groups), terms)
    agree(op.adjoint(v), sum(op.adjoint(v, group).double() for group in op.groups), terms)


@layers()
def test_rows_and_columns_are_the_adjoint_and_the_map_of_a_one_hot(op, terms, agree):
    for position, reduce in zip([*positions(op), (1, 1)], REDUCTIONS, strict=True):
        one = one_hot(op, position)
        for group in (None, *op.groups):
            own = own_channels(op, group)
            agree(tensor(op.row(position, group, None, reduce)), reduced(op.adjoint(one, group)[own], reduce), terms)
            agree(tensor(op.column(position, group, None, reduce)), reduced(op.apply(one, group)[own], reduce), terms)


@layers()
def test_one_channel_is_that_channel_of_the_map(op, terms, agree):
    position = positions(op)[1]
    one, count = one_hot(op, position), op.value.shape[0]
    for channel in (0, count // 2, count - 1):
        group = next(g for g in reversed(op.groups) if channel in range(count)[own_channels(op, g)])
        for name in (None, group):
            agree(tensor(op.row(position, name, channel)), op.adjoint(one, name)[channel].double(), terms)
            agree(tensor(op.column(position, name, channel)), op.apply(one, name)[channel].double(), terms)


@layers()
def test_the_pictures_of_all_groups_at_once_are_those_of_each(op):
    position = positions(op)[2]
    for everything, single in ((op.rows, op.row), (op.columns, op.column)):
        merged, groups = everything(position, None, "rms")
        assert merged.dims == ("row", "col")
        assert groups.dims == ("group", "row", "col")
        assert list(groups["group"].values) == list(op.groups)
        assert np.array_equal(merged, single(position, None, None, "rms"))
        for group in op.groups:
            assert np.array_equal(groups.sel(group=group), single(position, group, None, "rms"))


MATRICES = {
    "merged": (None, None, "mean"),
    "of a group": (1, None, "mean_abs"),
    "of a channel": (None, 3, "mean"),
    "of a channel of a group": (0, 3, "rms"),
}
SMALL_GRIDS = [(case, "stage2.block2") for case in CASES if "nano" in case]
SMALL_GRIDS += [(case, layer) for case in ("gspn_tiny", "swin_tiny") for layer in ("stage3.block2", "stage4.block1")]
LARGE_GRIDS = [(case, "stage1.block2", "of a channel") for case in ("gspn_nano", "swin_nano")]  # N = 1024


@pytest.mark.parametrize(
    ("case", "layer", "which"), [(*place, which) for place in SMALL_GRIDS for which in MATRICES] + LARGE_GRIDS
)
def test_the_matrix_is_made_of_its_rows_and_columns(which, op, terms, agree):
    index, channel, reduce = MATRICES[which]
    group = None if index is None else op.groups[index]
    dense = op.matrix(group, channel, reduce)
    rows, cols = op.grid
    assert dense.dims == ("reader", "read")
    assert dense.shape == (rows * cols, rows * cols)
    scale = float(np.abs(dense).max())
    for position in positions(op):
        n = position[0] * cols + position[1]
        row, column = op.row(position, group, channel, reduce), op.column(position, group, channel, reduce)
        agree(torch.tensor(dense.values[n]), tensor(row).flatten().double(), terms, scale)
        agree(torch.tensor(dense.values[:, n]), tensor(column).flatten().double(), terms, scale)
    if channel is not None and reduce == "mean":
        v = torch.randn_like(op.value)
        product = torch.tensor(dense.values).double() @ v[channel].flatten().double()
        agree(op.apply(v, group)[channel].flatten(), product, terms)


@layers("swin")
def test_attention_rows_sum_to_1(op, terms, agree):
    agree(op.apply(torch.ones_like(op.value)), torch.ones(op.value.shape, dtype=torch.float64), terms)
    for position in positions(op):
        merged, groups = op.rows(position)
        assert (groups >= 0).all()
        agree(tensor(groups.sum(("row", "col"))), torch.ones(len(op.groups), dtype=torch.float64), terms)
        agree(tensor(merged.sum()), torch.ones((), dtype=torch.float64), terms)


@layers("swin")
def test_a_query_reads_its_own_window_and_exactly_nothing_else(case, layer, op):
    full = variant(CASES[case][0]).defaults()["window"]
    window = min(full, *op.grid)
    second = int(layer[-1]) % 2 == 0
    shift = full // 2 if second and min(op.grid) > full else 0
    for position in positions(op):
        rows, cols = (
            (np.arange(size) - shift) // window == (place - shift) // window
            for size, place in zip(op.grid, position, strict=True)
        )
        _, groups = op.rows(position)
        _, heard = op.columns(position)
        assert ((groups.values > 0) == (rows[:, None] & cols[None, :])).all()
        assert ((heard.values > 0) == (rows[:, None] & cols[None, :])).all()


@layers("gspn")
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


@layers("gspn")
def test_a_direction_reads_the_cone_it_comes_from_within_the_chunk_and_exactly_nothing_else(op):
    for position in positions(op):
        for group in op.groups:
            row = op.row(position, group, reduce="max_abs").values
            if op.info["merge"] == "released":
                readable = FROM_FRAME[group](cone(position, "left_right", op.grid, op.info["chunk"]))
            else:
                readable = cone(position, group, op.grid, op.info["chunk"])
            assert np.array_equal(row != 0, readable)


@layers(size="nano")
def test_the_operator_says_what_it_was_made_from_and_needs_no_forward_pass_from_others(case, layer, op):
    model, image, _, _ = ran(case)
    name, config, size = CASES[case]
    expected = {
        "model": name, "layer": layer, "image": "coffee", "image_sha256": image.sha256, "weights": "random", "seed": 1,
        "weights_sha256": model.weights_sha256, "size": (size, size) if isinstance(size, int) else size,
        "backend": "cpu", "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    assert expected.items() <= op.info.items()
    assert config.items() <= op.info["config"].items()
    assert op.exact
    alone = operator(model, image, layer)
    assert torch.equal(alone.output, op.output)
