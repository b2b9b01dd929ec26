"""Frozen attention layers: rows, columns and the map agree, for heads of one kind, pooled keys, and both together."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from kernels.attention import axial, block, cross, disc, full, grid, halo, neighborhood, power, swin
from workbench.models import load_model
from workbench.models.states import AttentionState, JoinedState, PooledState, pool, to_map, to_tokens

D = 3


def tokens(grid, heads=2):
    return torch.randn(1, *grid, heads, D, dtype=torch.float64)


def attention(pattern, grid, heads=2, bias=True, relative="query-key"):
    table = torch.randn(pattern.bias_shape(heads, grid), dtype=torch.float64) if bias else None
    q, k, v = (tokens(grid, heads) for _ in range(3))
    return AttentionState(q, k, v, pattern, table, 0.7, relative=relative)


def pooled(grid, cell, heads=2, averaged=True):
    q, full_k, full_v = (tokens(grid, heads) for _ in range(3))
    k, v = (to_tokens(pool(to_map(t), cell), heads) for t in (full_k, full_v))
    return PooledState(q, k, v, cell, 0.7, full=full_v if averaged else None)


STATES = {
    "windows": lambda: attention(swin(3, 1), (5, 7)),
    "halo": lambda: attention(halo(2, 1), (5, 7)),
    "dilated, key minus query": lambda: attention(neighborhood(3, dilation=2), (7, 6), relative="key-query"),
    "strided": lambda: attention(neighborhood(4, stride=3), (5, 7)),
    "grid": lambda: attention(grid(2, (4, 6)), (4, 6)),
    "disc": lambda: attention(disc(2), (5, 4)),
    "one row": lambda: attention(axial(1), (1, 6), bias=False),
    "power": lambda: attention(power(2, 1, 1), (3, 5), bias=False),
    "stripes by groups of heads": lambda: attention(cross(2), (5, 7), heads=4, bias=False),
    "whole map": lambda: attention(full(), (4, 3)),
    "pooled": lambda: pooled((6, 4), (2, 2)),
    "pooled, smaller cells at the border": lambda: pooled((5, 7), (3, 2)),
    "pooled by a convolution": lambda: pooled((5, 7), (2, 3), averaged=False),
    "pooled to one key": lambda: pooled((2, 3), (4, 4)),
    "joined": lambda: JoinedState((attention(block(2), (5, 7), heads=1, bias=False), pooled((5, 7), (2, 2)))),
}


@pytest.fixture(params=STATES)
def state(request):
    return STATES[request.param]()


def dense(state):
    """(heads, N, N), made of what `mix` does to a one at each position."""
    rows, cols = state.value.shape[2:]
    ones = torch.eye(rows * cols, dtype=torch.float64).view(-1, 1, rows, cols)
    columns = [state.mix(one.expand_as(state.value)) for one in ones.split(1)]
    return torch.stack(columns, -1)[0].unflatten(0, (state.heads, state.width)).flatten(2, 3)


def test_the_map_does_the_same_to_every_channel_of_a_head(state):
    maps = dense(state)
    torch.testing.assert_close(maps, maps[:, :1].expand_as(maps))


def test_rows_and_columns_are_those_of_the_map(state):
    rows, cols = state.value.shape[2:]
    maps = dense(state)[:, 0]
    for n in range(rows * cols):
        place = divmod(n, cols)
        torch.testing.assert_close(state.row(place).flatten(1), maps[:, n])
        torch.testing.assert_close(state.column(place).flatten(1), maps[:, :, n])


def test_rows_sum_to_1_and_are_never_negative(state):
    maps = dense(state)[:, 0]
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:2], dtype=torch.float64))
    assert (maps >= 0).all()


def test_the_map_of_the_value_is_what_the_kernel_makes_of_the_tokens(state):
    parts = state.parts if isinstance(state, JoinedState) else (state,)
    expected = torch.cat([to_map(part.mix_tokens(part.v)) for part in parts], 1)
    torch.testing.assert_close(state.mix(state.value), expected)


def test_groups_heads_and_channels_match(state):
    assert state.groups == tuple(f"head {i}" for i in range(state.heads))
    assert state.value.shape[:2] == (1, state.heads * state.width)
    assert state.width == D


def test_operations_are_counted_by_the_keys_that_are_read(state):
    def pairs(part):
        """Pairs of a query and a key, over all heads."""
        if isinstance(part, PooledState):
            return part.q.shape[1] * part.q.shape[2] * part.k.shape[1] * part.k.shape[2] * part.heads
        groups = part.pattern.groups
        return sum(int(group.mask(part.q.shape[1:3]).sum()) * part.heads // len(groups) for group in groups)

    parts = state.parts if isinstance(state, JoinedState) else (state,)
    assert state.flops == 4 * D * sum(pairs(part) for part in parts)
    tensors = [t for part in parts for t in (part.q, part.q, part.k, part.v)]  # the output is as large as q
    biases = [part.bias for part in parts if isinstance(part, AttentionState) and part.bias is not None]
    assert state.least_values == sum(t.numel() for t in tensors + biases)


@pytest.mark.parametrize(("grid", "cell"), [((5, 7), (3, 2)), ((4, 4), (2, 2)), ((1, 5), (2, 4))])
def test_a_cell_at_the_border_is_the_mean_of_the_positions_it_has(grid, cell):
    v = torch.randn(2, 3, *grid, dtype=torch.float64)
    found = pool(v, cell)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            inside = v[:, :, i * cell[0] : (i + 1) * cell[0], j * cell[1] : (j + 1) * cell[1]]
            torch.testing.assert_close(found[:, :, i, j], inside.mean((2, 3)))
    assert found.shape[2:] == (-(-grid[0] // cell[0]), -(-grid[1] // cell[1]))


def test_a_pooled_key_spreads_its_weight_evenly_over_its_cell():
    state = pooled((5, 7), (3, 2))
    q, k = state.q[0, 4, 6], state.k[0]
    weights = (0.7 * torch.einsum("hd,rchd->hrc", q, k)).flatten(1).softmax(1).view(2, 2, 4)
    row = state.row((4, 6))
    torch.testing.assert_close(row[:, 1, 3], weights[:, 0, 1] / 6)  # a whole cell
    torch.testing.assert_close(row[:, 4, 3], weights[:, 1, 1] / 4)  # the lower border: two rows are left
    torch.testing.assert_close(row[:, 4, 6], weights[:, 1, 3] / 2)  # the corner: and one column


def test_where_keys_are_no_means_every_position_stands_for_its_cell():
    state = pooled((5, 7), (2, 3), averaged=False)
    value = to_tokens(state.value, 2)
    for r, c in ((0, 0), (1, 2), (4, 6), (3, 5)):
        assert torch.equal(value[0, r, c], state.v[0, r // 2, c // 3])


def test_what_a_query_reads_is_said_in_words():
    one, two = attention(block(2), (4, 4), bias=False), pooled((4, 4), (2, 2))
    assert one.reading == "block 2x2"
    assert two.reading == "all keys, pooled over 2x2 positions"
    assert JoinedState((one, two)).reading == "block 2x2 | all keys, pooled over 2x2 positions"


@pytest.mark.parametrize("make", [STATES["windows"], STATES["pooled"], STATES["joined"]])
def test_a_state_tells_the_grid_before_padding(make):
    state = make()
    assert state.unpadded is None
    assert replace(state, unpadded=(3, 4)).unpadded == (3, 4)


def test_two_threads_that_ask_one_model_get_the_activations_of_their_own_image():
    model = load_model("swin_nano", device="cpu")
    images = [torch.full((1, 3, 64, 64), value) for value in (-1.0, 1.0)]
    expected = [model.mixer_inputs(x) for x in images]

    def ask(n):
        return [model.mixer_inputs(images[n]) for _ in range(12)]

    with ThreadPoolExecutor(2) as threads:
        for wanted, found in zip(expected, threads.map(ask, range(2)), strict=True):
            for inputs in found:
                assert all(torch.equal(inputs[name], wanted[name]) for name in wanted)
