"""The figures of a pattern: what is in their panels, a colour per number of blocks, how a matrix is aggregated."""

import holoviews as hv
import numpy as np
import pytest

from workbench.analysis.patterns import PatternSpec, patterns, relation
from workbench.analysis.reach import NEVER
from workbench.plots.patterns import (
    aggregate,
    caption,
    deepest,
    matrix_figure,
    mosaic_of,
    palette,
    panel_names,
    panels,
    pattern_mosaic,
    query_row,
    title,
    visible,
)

GRID = (10, 14)


def result_of(pattern="swin(window=3, shift=1)", position=(4, 6)):
    return patterns(PatternSpec(pattern, GRID, position))


def photograph():
    return np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)


def drawn(element):
    return hv.render(element, backend="bokeh")


def test_the_panels_are_the_reach_up_to_a_number_of_blocks_and_the_keys_of_every_block():
    result = result_of()
    blocks = result["blocks"].values
    for after in (1, 3, 99):
        reached, *keys = panels(result, after)
        inside = (blocks >= 1) & (blocks <= after)
        np.testing.assert_array_equal(np.isnan(reached), ~inside)
        np.testing.assert_array_equal(reached[inside], blocks[inside])
        assert len(keys) == 2
        for drawn_keys, exact in zip(keys, result["keys"].values, strict=True):
            np.testing.assert_array_equal(drawn_keys == 1, exact)
            np.testing.assert_array_equal(np.isnan(drawn_keys), ~exact)


def test_what_is_never_reached_is_not_drawn():
    reached = panels(result_of("stripes(width=2)"), 200)[0]
    assert np.isfinite(reached).sum() == 10 * 2 - 1  # its own stripe without itself
    assert np.isfinite(panels(result_of("disc(radius=1)"), 200)[0]).sum() == 0


def test_every_panel_has_a_name_and_the_caption_names_the_cycle():
    result = result_of()
    assert panel_names(result) == ["reach of the stack", "keys, block 1", "keys, block 2"]
    assert len(panel_names(result)) == len(mosaic_of(result).places())
    assert panel_names(result_of("nat(kernel=3)"))[1] == "keys of a block"
    text = caption(result, 4)
    assert "swin 3x3, then swin 3x3 shifted by 1x1, and so on again" in text
    assert "after up to 4 blocks" in text
    assert "after 1 block," in caption(result, 1)
    assert title(result) == "swin(window=3, shift=1)  on 10 x 14 positions"


def test_the_deepest_pattern_decides_how_many_colours_there_are():
    results = [result_of(), result_of("axial"), result_of("disc(radius=1)")]
    assert [deepest([r]) for r in results] == [int(results[0]["until_global"]), 2, 1]
    assert deepest(results) == int(results[0]["until_global"])


def lightness(colour):
    return sum(weight * int(colour[i : i + 2], 16) for weight, i in ((0.299, 1), (0.587, 3), (0.114, 5)))


@pytest.mark.parametrize("most", [1, 2, 3, 18, 60])
def test_every_number_of_blocks_has_a_colour_of_its_own_and_fewer_are_lighter(most):
    colours = palette(most)
    assert len(set(colours)) == most
    levels = [lightness(colour) for colour in colours]
    assert levels == sorted(levels, reverse=True)


def test_the_mosaic_draws_the_panels_with_the_shared_range():
    result = result_of()
    figure = pattern_mosaic(result, photograph(), 9, 9)
    heat = list(figure)[1]
    np.testing.assert_array_equal(
        heat.dimension_values("blocks", flat=False)[::-1], mosaic_of(result).fill(panels(result, 9))
    )
    mapper = next(r.glyph.color_mapper for r in drawn(figure).renderers if r.glyph.__class__.__name__ == "Image")
    assert (mapper.low, mapper.high, len(mapper.palette)) == (0.5, 9.5, 9)


def test_the_query_is_outlined_in_every_panel():
    result = result_of()
    boxes = list(pattern_mosaic(result, photograph(), 9, 9))[2]
    assert len(boxes) == 3


def test_the_aggregated_matrix_has_the_smallest_number_of_blocks_of_every_pixel():
    found = relation(PatternSpec("swin(window=3, shift=1)", (8, 8))).values
    whole = aggregate(found, (0, 64), (0, 64), 16)
    np.testing.assert_array_equal(whole, found.reshape(16, 4, 16, 4).min((1, 3)))


def test_the_part_in_view_is_exact_where_a_pair_has_a_pixel_or_more():
    found = relation(PatternSpec("disc(radius=2)", (8, 8))).values
    np.testing.assert_array_equal(aggregate(found, (0, 64), (0, 64), 64), found)
    part = aggregate(found, (8, 16), (24, 32), 32)
    np.testing.assert_array_equal(part, found[24:32, 8:16].repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(aggregate(found, (8, 9), (24, 32), 8), found[24:32, 8:9].repeat(8, 1))


def test_the_matrix_of_a_single_position_is_a_single_pair():
    np.testing.assert_array_equal(aggregate(np.zeros((1, 1), np.uint8), (0, 1), (0, 1), 4), np.zeros((4, 4)))


def test_the_matrix_shows_what_is_reached_after_so_many_blocks():
    aggregated = np.array([[0, 1], [3, NEVER]], np.uint8)
    np.testing.assert_array_equal(visible(aggregated, 2), [[1, 1], [np.nan, np.nan]])
    np.testing.assert_array_equal(visible(aggregated, 254), [[1, 1], [3, np.nan]])


def test_the_matrix_figure_marks_the_row_of_the_query():
    found = relation(PatternSpec("axial", (4, 6))).values
    figure = matrix_figure("axial()", found, 24, 5, 2, 2)
    assert query_row(5, 24) == (0.0, -6.0, 24.0, -5.0)
    assert list(figure)[1].array().tolist() == [[0, -6, 24, -5]]
    assert drawn(figure).title.text == "axial()"
