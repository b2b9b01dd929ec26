"""The tables that the kernels read: tiles of both sides cover exactly the pairs of a pattern, each once."""

import itertools
import random

import numpy as np
import pytest

from kernels.attention import Axis, PowerAxis, axial, disc, full, grid, halo, neighborhood, power, stripe, swin
from kernels.attention.tiles import plan, tiles

SIDES = ("query", "key")
LENGTHS = (1, 3, 8, 64)
RULES = [Axis(), PowerAxis(4, 2, 1), PowerAxis(3, 1, 0), PowerAxis(2, 2, 2), PowerAxis(7, 3, 0)]


def random_rules(count, seed):
    """Kernels, strides, dilations, offsets and borders of every kind."""
    draw = random.Random(seed)
    for _ in range(count):
        kernel = draw.randint(1, 7)
        stride = draw.randint(1, kernel)
        yield Axis(
            kernel,
            stride=stride,
            dilation=draw.randint(1, 3),
            offset=draw.randrange(stride),
            border=draw.choice(["clamp", "crop"]),
            causal=draw.random() < 0.2,
        )


def sizes_of(rule, draw, count=3):
    """Sizes of maps on which the rule is defined."""
    least = rule.dilation * rule.kernel if isinstance(rule, Axis) and rule.kernel and rule.border == "clamp" else 1
    return [least + extra for extra in draw.sample(range(16), count)]


def wanted_pairs(rule, size):
    return {(i, j) for i in range(size) for j in rule.keys(i, size)}


def computed_pairs(found, size):
    """Every pair of query and key slots that a kernel computes, and those of them that it does not mask."""
    pairs, kept = [], []
    for query, key, step in found.table.reshape(-1, 3).tolist():
        for a, b in itertools.product(range(found.queries), range(found.keys)):
            q, k = query + step * a, key + step * b
            if 0 <= q < size and 0 <= k < size:
                pairs.append((q, k))
                if found.spans[q, 0] <= k <= found.spans[q, 1]:
                    kept.append((q, k))
    return pairs, kept


def check(rule, size):
    wanted = wanted_pairs(rule, size)
    for side, length in itertools.product(SIDES, LENGTHS):
        found = tiles(rule, size, size, length, side)
        pairs, kept = computed_pairs(found, size)
        case = (rule, size, side, length)
        assert len(kept) == len(set(kept)), case
        assert set(kept) == wanted, case
        if found.exact:
            assert pairs == kept, case
        assert found.table.dtype == found.spans.dtype == np.int32
        assert not found.table.flags.writeable


@pytest.mark.parametrize("seed", range(3))
def test_tiles_cover_exactly_the_pairs_of_a_random_axis_each_once(seed):
    draw = random.Random(seed)
    for rule in random_rules(120, seed):
        for size in sizes_of(rule, draw, count=2):
            check(rule, size)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_tiles_of_whole_axes_and_of_power_attention_cover_exactly_their_pairs(rule):
    for size in (1, 2, 5, 8, 15, 23):
        check(rule, size)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_whole_axis_may_have_more_keys_than_queries(length):
    found = tiles(Axis(), 5, 9, length, "query")
    assert found.exact
    assert sorted(found.table[:, 0, 0].tolist()) == list(range(0, 5, length))
    assert found.keys == 9
    read = tiles(Axis(), 5, 9, length, "key")
    assert sorted(read.table[:, 0, 1].tolist()) == list(range(0, 9, length))
    assert read.queries == 5


EXACT = [swin(7), swin(7, 3), neighborhood(7, 7), stripe(2), axial(0), axial(1), full(), grid(7, 28), halo(7, 2)]
MASKED = [neighborhood(7), neighborhood(7, 3), disc(4)]


@pytest.mark.parametrize("pattern", EXACT, ids=lambda p: p.name)
def test_tiles_of_one_cell_of_a_blocked_pattern_need_no_mask(pattern):
    size = (28, 28)
    for axis, rule in zip(size, (pattern.rows, pattern.cols), strict=True):
        assert tiles(rule, axis, axis, 1, "query").exact


@pytest.mark.parametrize("pattern", MASKED, ids=lambda p: p.name)
def test_tiles_of_several_queries_with_windows_of_their_own_need_a_mask(pattern):
    assert not tiles(pattern.rows, 28, 28, 8, "query").exact


def cost(queries, keys):
    return queries * keys


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("pattern", [*EXACT, *MASKED], ids=lambda p: p.name)
def test_a_plan_states_the_share_of_its_pairs_that_is_masked(pattern, side):
    size = (28, 28)
    chosen = plan(pattern, size, size, cost, side)
    boxes = [len(axis.table) * axis.table.shape[1] * axis.queries * axis.keys for axis in (chosen.rows, chosen.cols)]
    assert chosen.masked == pytest.approx(1 - pattern.count(size).sum() / (boxes[0] * boxes[1]))
    assert 0 <= chosen.masked < 1
    if chosen.masked == 0:
        assert chosen.exact


def test_the_plan_of_plain_windows_masks_nothing():
    assert plan(swin(7), (56, 56), (56, 56), cost).masked == 0


def test_a_plan_of_power_attention_counts_along_the_rows():
    pattern = power(8, 2, 1)
    flat = pattern.on((6, 12))
    chosen = plan(pattern, flat, flat, cost)
    boxes = chosen.cols.table.shape[0] * chosen.cols.table.shape[1] * chosen.cols.queries * chosen.cols.keys
    assert chosen.masked == pytest.approx(1 - pattern.count((6, 12)).sum() / boxes)
