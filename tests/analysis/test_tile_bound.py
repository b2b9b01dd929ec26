"""The bound of skipped tiles: every published end-to-end value, the sizes of vision models, and a count by hand."""

import math
import re

import numpy as np
import pytest

from kernels.attention import Axis, axial, cross, disc, full, grid, halo, neighborhood, power, swin
from workbench.analysis.tile_bound import end_to_end, pattern_bound, tile_bound, visited_tiles


def strided(kernel, stride):
    return [Axis(k, stride=s) for k, s in zip(kernel, stride, strict=True)]


#: size, share of the time that attention takes, query tile, key tile.
FLUX = (256, 256), 0.518, (16, 16), (16, 8)
HUNYUAN = (30, 48, 80), 0.607, (4, 8, 8), (2, 8, 8)
HUNYUAN_WIDE = (30, 48, 80), 0.607, (2, 16, 8), (2, 8, 8)
COSMOS = (16, 44, 80), 0.587, (8, 4, 8), (4, 4, 8)


@pytest.mark.parametrize(
    ("model", "window", "stride", "published"),
    [
        (FLUX, (80, 80), (1, 1), 1.76),
        (FLUX, (80, 80), (16, 1), 1.84),
        (FLUX, (80, 80), (16, 16), 1.88),
        (HUNYUAN, (18, 24, 24), (1, 1, 1), 1.73),
        (HUNYUAN, (18, 24, 24), (2, 1, 1), 1.78),
        (HUNYUAN, (18, 24, 24), (1, 1, 8), 1.99),
        (HUNYUAN, (18, 24, 24), (2, 1, 8), 2.02),
        (HUNYUAN, (18, 24, 24), (1, 8, 8), 2.17),
        (HUNYUAN, (18, 24, 24), (2, 8, 8), 2.20),
        (HUNYUAN, (18, 24, 24), (16, 8, 8), 2.23),
        (HUNYUAN, (18, 24, 24), (18, 24, 24), 2.06),
        (HUNYUAN_WIDE, (30, 40, 40), (1, 1, 1), 1.21),
        (HUNYUAN_WIDE, (30, 40, 40), (1, 32, 8), 1.55),
        (HUNYUAN_WIDE, (30, 40, 40), (30, 40, 40), 1.44),
        (COSMOS, (16, 32, 48), (1, 1, 1), 1.35),
        (COSMOS, (16, 32, 48), (1, 8, 16), 1.50),
        (COSMOS, (16, 24, 16), (1, 1, 1), 1.90),
        (COSMOS, (16, 24, 16), (1, 8, 16), 2.10),
    ],
)
def test_the_end_to_end_bound_is_the_published_one(model, window, stride, published):
    size, share, query_tile, key_tile = model
    found = end_to_end(share, tile_bound(strided(window, stride), size, query_tile, key_tile))
    assert abs(found - published) < (0.016 if model is COSMOS else 0.02)


@pytest.mark.parametrize(
    ("stride", "bound"),
    [((1, 1, 1), 3.27), ((2, 1, 1), 3.60), ((1, 1, 8), 5.45), ((2, 1, 8), 6.00), ((1, 8, 8), 9.09), ((2, 8, 8), 10.0),
     ((16, 8, 8), 11.11), ((18, 24, 24), 6.67)],
)  # fmt: skip
def test_the_bound_of_attention_alone_is_the_published_one(stride, bound):
    size, _, query_tile, key_tile = HUNYUAN
    assert round(tile_bound(strided((18, 24, 24), stride), size, query_tile, key_tile), 2) == bound


def test_a_sequence_is_bounded_as_published():
    for tile, bound in ((128, 15.06), (256, 14.22)):
        assert round(tile_bound([Axis(2048)], [32768], [tile], [128]), 2) == bound


@pytest.mark.parametrize(
    ("pattern", "size", "tile", "bound"),
    [
        (neighborhood(7), 56, 8, 5.44),
        (neighborhood(7), 56, 4, 21.78),
        (neighborhood(7), 28, 8, 1.78),
        (neighborhood(7), 14, 8, 1.0),
        (neighborhood(7, 7), 56, 7, 64.0),
        (swin(7), 56, 7, 64.0),
        (halo(8, 3, "clamp"), 56, 8, 5.44),
    ],
)
def test_patterns_of_vision_models_are_bounded_as_stated(pattern, size, tile, bound):
    assert round(pattern_bound(pattern, (size, size), (tile, tile), (tile, tile)), 2) == bound


@pytest.mark.parametrize(("size", "tile", "mean"), [(56, 8, 6.65), (56, 4, 24.0), (28, 8, 2.56)])
def test_the_mean_query_tile_would_promise_more(size, tile, mean):
    visited = visited_tiles(neighborhood(7).mask((size, size)).numpy(), (size, size), (tile, tile), (tile, tile))
    assert visited.shape[1] / visited.sum(1).mean() == pytest.approx(mean, rel=0.005)
    assert visited.shape[1] / visited.sum(1).max() == pytest.approx(
        pattern_bound(neighborhood(7), (size, size), (tile, tile), (tile, tile))
    )


@pytest.mark.parametrize("pattern", [neighborhood(3), neighborhood((5, 4), (2, 3)), swin((3, 5), (1, 2)), halo(4, 1)])
def test_axis_by_axis_and_by_counting_tiles_the_bound_is_the_same(pattern):
    rng = np.random.default_rng(5)
    for _ in range(10):
        size = tuple(int(n) for n in rng.integers(6, 20, 2))
        query_tile, key_tile = (tuple(int(n) for n in rng.integers(1, 7, 2)) for _ in range(2))
        visited = visited_tiles(pattern.mask(size).numpy(), size, query_tile, key_tile)
        tiles = [math.prod(-(-n // t) for n, t in zip(size, tile, strict=True)) for tile in (query_tile, key_tile)]
        assert list(visited.shape) == tiles
        assert pattern_bound(pattern, size, query_tile, key_tile) == pytest.approx(tiles[1] / visited.sum(1).max())


def test_residue_classes_of_a_dilated_axis_are_tiled_one_after_the_other():
    assert tile_bound([Axis(7, dilation=8)], [56], [8], [8]) == 7 * 7 / (8 * 1)
    assert tile_bound([Axis(7, dilation=8)], [56], [7], [7]) == 8
    assert pattern_bound(grid(7, 56), (56, 56), (7, 7), (7, 7)) == 64


def test_heads_share_the_machine():
    both = [pattern_bound(group, (16, 24), (8, 8), (8, 8)) for group in cross(1).groups]
    assert both == [3.0, 2.0]
    assert pattern_bound(cross(1), (16, 24), (8, 8), (8, 8)) == pytest.approx(2 / (1 / 3 + 1 / 2))


def test_discs_and_raster_orders_are_bounded_by_the_tiles_they_touch():
    assert pattern_bound(disc(1), (16, 16), (4, 4), (4, 4)) == 16
    assert pattern_bound(disc(40), (16, 16), (4, 4), (4, 4)) == 1
    assert pattern_bound(power(4, 1, 0), (4, 8), (1, 4), (1, 4)) == pytest.approx(8 / 4)  # itself, 1, 2 and 4 back


def test_what_reads_everything_gains_nothing():
    assert pattern_bound(full(), (9, 14), (4, 4), (8, 2)) == 1
    assert pattern_bound(axial(0), (9, 14), (1, 1), (1, 1)) == 14


def test_end_to_end_of_no_attention_and_of_nothing_else():
    assert end_to_end(0, 9) == 1
    assert end_to_end(1, 9) == 9


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tile_bound([Axis(3)], [9, 9], [2], [2]),
         "rules, size, query_tile and key_tile must have one entry per axis; got 1, 2, 1 and 1 entries."),
        (lambda: tile_bound([Axis(3)], [9], [0], [2]), "query_tile must be at least 1 along every axis; got (0,)."),
        (lambda: tile_bound([Axis(7)], [5], [2], [2]),
         "The rule of an axis of 5 positions needs a map of at least 7 positions, its window (kernel times "
         "dilation); got 5: choose a kernel of at most 5 or a larger map."),
        (lambda: end_to_end(1.2, 2), "share must be from 0 to 1 and speedup positive; got 1.2 and 2."),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
