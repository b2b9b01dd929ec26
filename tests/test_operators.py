"""A mixing layer as a linear map: the laws of the operator, for every mixing layer of the nano and the tiny models.

A case is a model, its settings and the size of the image; the tiny models get 128 pixels, which keeps the smallest grid
at 4 x 4. `test_operators_errors.py` has the refusals.
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
    assert op.value.shape == op.output.shape == mixed[layer].shape
    assert op.grid == op.value.shape[1:]
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
def test_the_map_is_linear(op, terms, agree):
    a, b = torch.randn_like(op.value), torch.randn_like(op.value)
    agree(op.apply(2 * a - 3 * b), 2 * op.apply(a).double() - 3 * op.apply(b).double(), 2 * terms)


@layers()
def test_the_groups_sum_to_the_merged_map(op, terms, agree):
    v = torch.randn_like(op.value)
    agree(op.apply(v), sum(op.apply(v, group).double() for group in op.groups), terms)
    agree(op.adjoint(v), sum(op.adjoint(v, group).double() for group in op.groups), terms)


@layers()
def test_rows_and_columns_are_the_adjoint_and_the_map_of_a_one_hot(op, terms, agree):
    for position, reduce in zip(positions(op), ("mean", "rms", "max_abs"), strict=True):
        one = one_hot(op, position)
        for group in (None, *op.groups):
            own = own_channels(op, group)
            agree(tensor(op.row(position, group, None, reduce)), reduced(op.adjoint(one, group)[own], reduce), terms)
            agree(tensor(op.column(position, group, None, reduce)), reduced(op.apply(one, group)[own], reduce), terms)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@layers(size="nano")
def test_every_reduction_combines_the_channels_as_its_name_says(reduce, op, terms, agree):
    position = positions(op)[1]
    one, group = one_hot(op, position), op.groups[-1]
    own = own_channels(op, group)
    agree(tensor(op.row(position, reduce=reduce)), reduced(op.adjoint(one), reduce), terms)
    agree(tensor(op.column(position, group, reduce=reduce)), reduced(op.apply(one, group)[own], reduce), terms)


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
    "a group": (1, None, "mean_abs"),
    "a channel": (None, 3, "mean"),
    "a channel of a group": (0, 3, "mean"),
}


@pytest.mark.parametrize("which", MATRICES)
@layers(size="nano")
def test_the_matrix_is_made_of_its_rows_and_columns(which, layer, op, terms, agree):
    index, channel, reduce = MATRICES[which]
    if op.grid[0] * op.grid[1] > 256 and which != "a channel":
        check_matrix(op, None, channel, "rms", terms, agree, positions(op)[:1])
    else:
        check_matrix(op, None if index is None else op.groups[index], channel, reduce, terms, agree, positions(op))


@layers(size="tiny")
def test_the_matrix_of_one_channel_is_made_of_its_rows_and_columns(layer, op, terms, agree):
    if op.grid[0] > 8:  # a thousand columns of hundreds of channels: the nano models' matrices are as large
        with pytest.raises(ValueError, match="over the budget"):
            op.matrix(channel=0, budget=4 * op.grid[0] ** 4 - 1)
    else:
        check_matrix(op, None, 0, "mean", terms, agree, positions(op))


def check_matrix(op, group, channel, reduce, terms, agree, where):
    dense = op.matrix(group, channel, reduce)
    rows, cols = op.grid
    assert dense.dims == ("reader", "read")
    assert dense.shape == (rows * cols, rows * cols)
    scale = float(np.abs(dense).max())
    for position in where:
        n = position[0] * cols + position[1]
        row, column = op.row(position, group, channel, reduce), op.column(position, group, channel, reduce)
        agree(torch.tensor(dense.values[n]), tensor(row).flatten().double(), terms, scale)
        agree(torch.tensor(dense.values[:, n]), tensor(column).flatten().double(), terms, scale)
    if channel is not None:
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


@layers("gspn")
def test_a_direction_reads_the_cone_it_comes_from_within_the_chunk(case, layer, op):
    if op.info["merge"] == "released":  # nothing is carried back: the cones are those of left_right, moved
        carried = {"left_right": lambda p: p, "top_bottom": lambda p: p[::-1]}
        carried["right_left"] = lambda p: (p[0], op.grid[1] - 1 - p[1])
        carried["bottom_top"] = lambda p: (op.grid[1] - 1 - p[1], p[0])
    position, chunk = positions(op)[1], op.info["chunk"]
    for group in op.groups:
        row = op.row(position, group, reduce="max_abs").values
        released = op.info["merge"] == "released"
        direction = "left_right" if released else group
        for r, c in np.ndindex(*op.grid):
            seen = (r, c)
            if released:  # where the frame of the scan has the pixel that is now at (r, c)
                seen = next(p for p in np.ndindex(*op.grid) if carried[group](p) == (r, c))
            readable = in_cone(seen, position, direction, op.grid, chunk)
            assert (row[r, c] != 0) <= readable
        assert (row != 0).sum() > 1


def in_cone(source, reader, direction, grid, chunk):
    """Whether a scan can carry something from `source` to `reader`."""
    horizontal = direction in ("left_right", "right_left")
    axis = 1 if horizontal else 0
    first, now = source[axis], reader[axis]
    if direction in ("right_left", "bottom_top"):
        first, now = grid[axis] - 1 - first, grid[axis] - 1 - now
    together = chunk is None or first // chunk == now // chunk
    return together and now >= first and abs(source[1 - axis] - reader[1 - axis]) <= now - first


@layers(size="nano")
def test_the_operator_makes_its_own_forward_pass_when_it_is_given_none(case, layer, op):
    model, image, _, _ = ran(case)
    alone = operator(model, image, layer)
    assert torch.equal(alone.value, op.value)
    assert torch.equal(alone.output, op.output)
    assert alone.info == op.info


@layers(size="nano")
def test_the_operator_says_what_it_was_made_from(case, layer, op):
    model, image, _, _ = ran(case)
    name, config, size = CASES[case]
    assert op.info["model"] == name
    assert config.items() <= op.info["config"].items()
    assert op.info["layer"] == layer
    assert op.info["image_sha256"] == image.sha256
    assert op.info["weights_sha256"] == model.weights_sha256
    assert op.info["size"] == ((size, size) if isinstance(size, int) else size)
    assert (op.info["backend"], op.info["device"], op.info["dtype"]) == ("cpu", "cpu", "float32")
    assert op.exact
