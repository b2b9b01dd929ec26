"""How the Triton kernels cut patterns into tiles: the same for the same pattern and map, and the cheapest choice."""

import itertools
import math

import numpy as np
import pytest

from kernels.attention import Axis, Pattern, block, disc, full, grid, halo, neighborhood, power, stripe, swin
from kernels.attention.gpu_plans import Group, arrange, block_of, blocks_of, most_slots
from kernels.attention.tiles import tiles

PATTERNS = [
    swin(7), swin(4, 2), block(2), neighborhood(7), neighborhood(5, 2, 2), neighborhood(3, causal=True), halo(4, 1),
    halo(4, 2, "clamp"), grid(7, 14), stripe(2), disc(4), full(),
]  # fmt: skip
SIDES = ("query", "key")

patterns = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
sides = pytest.mark.parametrize("side", SIDES)


def arranged(pattern, size=(14, 14), side="query", channels=32, single=False):
    on = pattern.on(size)
    return arrange(pattern, on, on, side, channels, single)


@patterns
@sides
def test_a_plan_is_made_anew_the_same(pattern, side):
    first = arranged(pattern, side=side)
    arrange.cache_clear()
    again = arranged(Pattern(pattern.rows, pattern.cols, "another name", pattern.radius), side=side)
    assert first.constants == again.constants
    assert first.groups == again.groups
    for a, b in zip(first.tables, again.tables, strict=True):
        assert np.array_equal(a, b)


@patterns
@sides
@pytest.mark.parametrize("size", [(14, 14), (28, 14)])
def test_no_other_tile_of_whole_cells_is_cheaper(pattern, side, size):
    def cost(rows, cols):
        boxes = len(rows.table) * len(cols.table)
        slots = rows.queries * cols.queries, rows.keys * cols.keys
        return boxes * blocks_of(*slots, 1, side, 32, False).cost

    plan = arranged(pattern, size, side).plan
    chosen = cost(plan.rows, plan.cols)
    for row_length, col_length in itertools.product((1, 2, 4, 7, 8, 12, 14), repeat=2):
        rows = tiles(pattern.rows, size[0], size[0], row_length, side)
        cols = tiles(pattern.cols, size[1], size[1], col_length, side)
        assert chosen <= cost(rows, cols)


@sides
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("channels", [1, 16, 32, 33, 64, 100, 128])
def test_blocks_hold_a_tile_and_stay_within_what_registers_hold(channels, single, side):
    for queries, keys in itertools.product((1, 15, 16, 17, 49, 64, 65, 196, 3136), repeat=2):
        blocks = blocks_of(queries, keys, 1, side, channels, single)
        own, other = (blocks.queries, blocks.keys) if side == "query" else (blocks.keys, blocks.queries)
        looped = keys if side == "query" else queries
        most_own, most_other = most_slots(channels, single, loops=looped > 64)
        assert 16 <= own <= most_own
        assert 16 <= other <= most_other
        for slots, size in ((queries, blocks.queries), (keys, blocks.keys)):
            assert size & (size - 1) == 0
            assert size < 2 * max(16, slots)


def test_a_plain_or_shifted_window_of_seven_is_one_tile_of_one_block_that_masks_nothing():
    for pattern, side in itertools.product((swin(7), swin(7, 3)), SIDES):
        found = arranged(pattern, (56, 56), side)
        assert found.plan.exact
        assert (found.constants["QUERIES"], found.constants["KEYS"]) == (49, 49)
        assert (found.constants["BLOCK_Q"], found.constants["BLOCK_K"]) == (64, 64)


@pytest.mark.parametrize(
    ("pattern", "apart"),
    [
        (swin(7), True), (swin(7, 3), True), (grid(7, 14), True), (swin(8, 4), True), (stripe(4), True),
        (neighborhood(7), False), (halo(7, 3), False), (halo(7, 3, "clamp"), False), (swin(9), False),
        (disc(4), False), (full(), False), (power(16, 1, 1), False), (neighborhood(7, dilation=2), True),
    ],
)  # fmt: skip
def test_windows_that_share_no_keys_and_fit_one_block_are_known(pattern, apart):
    assert arranged(pattern).apart == apart


def test_wide_heads_and_windows_that_a_block_does_not_hold_are_not_treated_at_once():
    assert not arranged(swin(7), channels=64).apart
    assert not arranged(swin(7), single=True).apart


@patterns
def test_tiles_of_a_group_have_their_slots_equally_far_apart(pattern):
    found = arranged(pattern, (28, 28))
    for table, groups in zip(found.tables, found.groups, strict=True):
        assert sum(group.tiles for group in groups) == len(table)
        assert len({group.offset for group in groups}) == len(groups)
        for offset, start, count in groups:
            query, key, step = table[start : start + count, 0].T
            assert (query - key == offset * step).all()


def test_groups_of_windows_are_one_and_of_neighborhoods_those_of_the_first_tiles_and_the_others():
    windows, sliding = arranged(swin(7, 3), (28, 28)), arranged(neighborhood(7), (56, 56))
    assert windows.groups == ([Group(0, 0, 5)], [Group(0, 0, 5)])
    for groups in sliding.groups:
        assert [group.offset for group in groups] == [0, 3]
        assert groups[0].tiles == 1


def test_parts_are_padded_to_a_power_of_two_with_tiles_outside_the_map():
    found = arranged(power(8, 2, 1), (14, 14))
    parts = found.plan.cols.table.shape[1]
    table = found.tables[1]
    assert table.shape[1] == found.constants["COL_PARTS"] == 2 ** math.ceil(math.log2(parts))
    assert np.array_equal(table[:, :parts], found.plan.cols.table)
    assert (table[:, parts:] >= 14 * 14).all()


def test_constants_describe_the_bias_table_of_the_pattern():
    for pattern, size in ((neighborhood((3, 7)), (9, 11)), (full(), (5, 6)), (stripe(2), (6, 8))):
        _, rows, cols = pattern.bias_shape(1, size)
        constants = arranged(pattern, size).constants
        assert constants["TABLE"] == cols
        assert 2 * constants["CENTRE"] + 1 == rows * cols


@pytest.mark.parametrize(("channels", "block"), [(1, 16), (16, 16), (17, 32), (32, 32), (96, 128), (128, 128)])
def test_channels_are_padded_to_what_a_matrix_unit_takes(channels, block):
    assert block_of(channels) == block


@sides
def test_rules_that_no_function_of_the_family_makes_are_arranged_too(side):
    pattern = Pattern(Axis(3, stride=2, offset=1), Axis(4, dilation=2, border="crop"), "mixed")
    found = arranged(pattern, (7, 9), side)
    assert found.constants["ROWS_EXACT"] == found.plan.rows.exact
    assert 0 <= found.plan.masked < 1
    assert not found.apart
