"""A mixing layer as a linear map: the laws of the operator, for the mixing layers of the nano and the tiny models.

A case is a model, its settings and the size of the image. Every block of the nano models is looked at, and the last of
each stage of the tiny ones, or the last two where blocks alternate; those have few channels here. Layers of kind
"channel" have no map over positions. In those of kind "convolution" channels mix: test_operators_slices.py has more.
"""

from functools import cache

import numpy as np
import pytest
import torch

from kernels.attention import full
from workbench.images import load_image
from workbench.models import list_models, load_model
from workbench.models.registry import variant
from workbench.models.states import JoinedState, PooledState
from workbench.operators import REDUCTIONS, operator

FEW = {"dims": (16, 32, 64, 128), "heads": (2, 4, 8, 16)}


def oblong(name):
    """A size that is not square, and little larger than the model's smallest."""
    model = variant(name).build({})
    step = model.size_multiple
    rows = -(-max(36, model.least_size) // step) * step
    return rows, rows + max(step, 16 // step * step)


CASES = {
    **{name: (name, {}, 64) for name in list_models("*_nano")},
    **{f"{name}, not square": (name, {}, oblong(name)) for name in list_models("*_nano")},
    "gspn_nano released": ("gspn_nano", {"merge": "released"}, 64),
    "gspn_nano, chunks, not square": ("gspn_nano", {"chunk": 5}, (36, 52)),
    "gspn_nano released, chunks": ("gspn_nano", {"merge": "released", "chunk": 5}, 48),
    "swin_nano, padded": ("swin_nano", {"padding": "keys"}, (36, 52)),
    "nat_nano, padded": ("nat_nano", {"padding": "keys"}, (20, 36)),
    "halonet_nano, clamped": ("halonet_nano", {"border": "clamp", "block": 4, "halo": 2}, (36, 52)),
    "gna_nano, wide stride": ("gna_nano", {"kernel": 6, "stride": 4}, (36, 52)),
    "gspn_tiny": ("gspn_tiny", {"dims": FEW["dims"]}, 128),
    "swin_tiny": ("swin_tiny", FEW, 128),
    **{name: (name, FEW, 224) for name in ("nat_tiny", "dinat_tiny", "cswin_tiny", "davit_tiny", "maxvit_tiny")},
}
EPS = torch.finfo(torch.float32).eps


@cache
def layer_names(case):
    """The layers of a case that are looked at, without drawing the model's weights."""
    name, config, size = CASES[case]
    model = variant(name).build(config)
    last = {"nano": max(model.config["depths"]), "tiny": 2 if name in ("swin_tiny", "dinat_tiny") else 1}[name[-4:]]
    found = []
    for layer in model.layers(size):
        stage, block = (int(part.strip("stageblock")) for part in layer.name.split(".")[:2])
        if block > model.config["depths"][stage - 1] - last and layer.kind != "channel":
            found.append(layer.name)
    return found


#: Models whose layers are no attention; of these, in SCNN's the channels mix.
SCANS, MIXED = ("gspn", "spn", "cspn", "scnn"), "scnn"


def layers(*, size="", attention=False, apart=False):
    """Parametrise over the layers of all cases whose model has `size` in its name.

    attention: only those of attention; apart: only those whose channels do not mix.
    """
    chosen = [
        pytest.param(case, layer, id=f"{case}, {layer}")
        for case, (model, _, _) in CASES.items()
        if size in model and not (attention and model.startswith(SCANS)) and not (apart and model.startswith(MIXED))
        for layer in layer_names(case)
    ]
    return pytest.mark.parametrize(("case", "layer"), chosen)


@cache
def ran(case):
    """A case's model and image, what each mixer received in a forward pass, and what its linear map gave there."""
    name, config, size = CASES[case]
    model, image = load_model(name, device="cpu", seed=1, **config), load_image("coffee", size)
    received, mixed, handles = {}, {}, []
    for layer in layer_names(case):
        _, mixer = model.block(layer)

        def mixer_input(_, args, layer=layer):
            received[layer] = args[0]

        def map_output(_, args, layer=layer, kind=mixer.kind):
            mixed[layer] = args[0][0].permute(2, 0, 1) if kind == "attention" else args[0][0]

        handles += [mixer.register_forward_pre_hook(mixer_input), after(mixer).register_forward_pre_hook(map_output)]
    with torch.no_grad():
        model(image.tensor)
    for handle in handles:
        handle.remove()
    return model, image, received, mixed


def after(mixer):
    """The module that takes what the linear map gave: CSWin's LePE adds something to it, GSPN-2 projects it back."""
    names = ("lepe", "proj") if mixer.kind == "attention" else ("proxy_up", "out_norm")
    return next(getattr(mixer, name) for name in names if hasattr(mixer, name))


@pytest.fixture
def op(case, layer):
    return frozen(case, layer)


@cache
def frozen(case, layer):
    model, image, received, _ = ran(case)
    return operator(model, image, layer, received)


@pytest.fixture
def terms(op):
    """How many products a result sums: the lines of a scan or the keys of a query, and a few for the rest."""
    if op.info["kind"] == "diffusion":
        return 9 * op.state.steps
    if op.info["kind"] == "convolution":  # of each of four passes
        return 4 * (sum(op.grid) + op.state.weight[0, 0].numel())
    lines_or_keys = int(max(m.sum(1).max() for m in masks(op))) if op.info["kind"] == "attention" else sum(op.grid)
    return lines_or_keys + 16


def positions(op):
    """A corner, the centre, and somewhere else."""
    rows, cols = op.grid
    return [(0, cols - 1), (rows // 2, cols // 2), (rows - 1, 1)]


def some_groups(op):
    """No group, the first and the last."""
    return None, op.groups[0], op.groups[-1]


def one_hot(op, position):
    v = torch.zeros_like(op.value)
    v[:, position[0], position[1]] = 1
    return v


def own_channels(op, group):
    """The channels that a group acts on: all of them for a direction, its own for a head."""
    if group is None or op.info["kind"] != "attention":
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
    rows, cols = mixed[layer].shape[1:]  # without the positions that padding has added
    assert (rows, cols) == op.info.get("unpadded", op.grid)
    agree(op.apply(op.value)[:, :rows, :cols], mixed[layer].double(), terms)
    assert torch.equal(op.output, op.apply(op.value))


@layers()
def test_the_adjoint_is_the_transpose_merged_and_by_groups(op, terms):
    v, g = torch.randn_like(op.value), torch.randn_like(op.value)
    for group in some_groups(op):
        forth, back = op.apply(v, group).double(), op.adjoint(g, group).double()
        forward, backward = (forth * g).sum(), (v * back).sum()
        assert abs(forward - backward) <= 4 * terms * EPS * forth.norm() * g.norm()
        assert forward != 0


@layers()
def test_the_groups_sum_to_the_merged_map(op, terms, agree):
    v = torch.randn_like(op.value)
    agree(op.apply(v), sum(op.apply(v, group).double() for group in op.groups), terms)
    agree(op.adjoint(v), sum(op.adjoint(v, group).double() for group in op.groups), terms)


@layers(apart=True)
def test_rows_and_columns_are_the_adjoint_and_the_map_of_a_one_hot(op, terms, agree):
    ways = list(zip([*positions(op), (1, 1)], REDUCTIONS, strict=True))
    cases = [(None, *way) for way in ways] + [(group, *ways[n % 4]) for n, group in enumerate(op.groups)]
    for group, position, reduce in cases:
        one, own = one_hot(op, position), own_channels(op, group)
        agree(tensor(op.row(position, group, None, reduce)), reduced(op.adjoint(one, group)[own], reduce), terms)
        agree(tensor(op.column(position, group, None, reduce)), reduced(op.apply(one, group)[own], reduce), terms)


@layers(apart=True)
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
    "of a group": (-1, None, "mean_abs"),
    "of a channel": (None, 1, "mean"),
    "of a channel of a group": (0, 1, "rms"),
}
SMALL_GRIDS = [(case, layer_names(case)[-1]) for case in CASES if "not square" in case or "nano" not in case]
EVERY_WAY = [(*place, which) for place in SMALL_GRIDS if "maxvit" not in place[0] for which in MATRICES]
LARGE_GRIDS = [  # 512 and 1024 positions
    ("maxvit_nano, not square", "stage2.block1.grid", "of a channel"),
    ("gspn_nano", "stage1.block2", "of a channel"),
    ("swin_nano", "stage1.block2", "of a channel"),
]


@pytest.mark.parametrize(("case", "layer", "which"), EVERY_WAY + LARGE_GRIDS)
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
    if channel is not None and reduce == "mean" and op.info["kind"] != "convolution":
        v = torch.randn_like(op.value)
        product = torch.tensor(dense.values).double() @ v[channel].flatten().double()
        agree(op.apply(v, group)[channel].flatten(), product, terms)


def parts(state):
    """The states that a layer's heads are made of, each with the first of its heads."""
    if isinstance(state, JoinedState):
        first = np.cumsum([0, *(part.heads for part in state.parts)])
        return list(zip(state.parts, first, strict=False))
    return [(state, 0)]


@cache
def read(pattern, grid):
    """(N, N) bool: which keys each query reads."""
    return pattern.mask(grid)


def masks(op):
    """For each head, (N, N) bool: which keys each query reads."""
    found = []
    for part, _ in parts(op.state):
        groups = [full()] if isinstance(part, PooledState) else part.pattern.groups
        for group in groups:
            found += [read(group, op.grid)] * (part.heads // len(groups))
    return found


def softmax_matrix(op, head):
    """(N, N) in float64: a head's softmax weights, from its queries and keys by the rule; pooled keys spread evenly."""
    part, first = next(found for found in reversed(parts(op.state)) if found[1] <= head)
    q, k = (tokens[0, :, :, head - first].double() for tokens in (part.q, part.k))
    logits = part.scale * q.flatten(0, 1) @ k.flatten(0, 1).T
    if isinstance(part, PooledState):
        cells = [torch.arange(size) // side for size, side in zip(op.grid, part.cell, strict=True)]
        cell = (cells[0][:, None] * k.shape[1] + cells[1]).flatten()
        return (logits.softmax(1) / cell.bincount())[:, cell]
    if part.bias is not None:
        group = part.pattern.groups[(head - first) * len(part.pattern.groups) // part.heads]
        logits += bias_of_pairs(part.bias[head - first].double(), group, op.grid, part.relative)
    return logits.masked_fill(~masks(op)[head], -torch.inf).softmax(1)


def bias_of_pairs(table, pattern, grid, relative):
    """(N, N): the bias of every query and key that have one; the others get any."""
    indices = []
    for rule, size, entries in zip((pattern.rows, pattern.cols), grid, table.shape, strict=True):
        place = torch.arange(size)
        steps = (place[:, None] - place).div(rule.dilation, rounding_mode="floor")
        steps = steps if relative == "query-key" else -steps
        indices.append((steps + entries // 2).clamp(0, entries - 1))
    pairs = table[indices[0][:, None, :, None], indices[1][None, :, None, :]]
    return pairs.reshape(grid[0] * grid[1], -1)


@layers(attention=True)
def test_the_map_is_the_softmax_over_the_keys_of_each_query(op, terms, agree):
    width, made = op.state.width, op.apply(op.value)
    # The weights of a large map take long in float64: there, the first and the last head speak for all.
    large = op.grid[0] * op.grid[1] > 1024
    for head in {0, len(op.groups) - 1} if large else range(len(op.groups)):
        own = slice(head * width, (head + 1) * width)
        exact = softmax_matrix(op, head) @ op.value[own].flatten(1).T.double()
        agree(made[own], exact.T.view(made[own].shape), terms, op.value[own].abs().max().item())


@layers(attention=True)
def test_attention_rows_sum_to_1(op, terms, agree):
    agree(op.apply(torch.ones_like(op.value)), torch.ones(op.value.shape, dtype=torch.float64), terms)
    for position in positions(op):
        merged, groups = op.rows(position)
        assert (groups >= 0).all()
        agree(tensor(groups.sum(("row", "col"))), torch.ones(len(op.groups), dtype=torch.float64), terms)
        agree(tensor(merged.sum()), torch.ones((), dtype=torch.float64), terms)


@layers(attention=True)
def test_a_query_reads_the_keys_of_its_pattern_and_exactly_nothing_else(op):
    for position in positions(op):
        n = position[0] * op.grid[1] + position[1]
        _, groups = op.rows(position)
        _, heard = op.columns(position)
        for head, mask in enumerate(masks(op)):
            assert np.array_equal(groups.values[head].ravel() > 0, mask[n].numpy())
            assert np.array_equal(heard.values[head].ravel() > 0, mask[:, n].numpy())


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
    assert op.exact == (not name.startswith(MIXED))
    alone = operator(model, image, layer)
    assert torch.equal(alone.output, op.output)
