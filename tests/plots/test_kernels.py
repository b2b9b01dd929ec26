"""The figures of the Kernels page: a bar for every kind and target, and boxes where the tile lies."""

import itertools

import holoviews as hv
import pytest

from kernels.inspect import tile_boxes
from kernels.instructions import KINDS
from workbench.plots.kernels import SHORT, mix_caption, mix_figure, mix_frame, tile_caption, tile_figure

hv.extension("bokeh")


def row(target, **mix):
    return {"name": "a kernel", "target": target, "mix": dict.fromkeys(KINDS, 0) | mix}


ROWS = [row("sm_90", load_16=2, integer=50), row("gfx942", integer=80, control=7)]


def quads(figure):
    return [r for r in hv.render(figure, backend="bokeh").renderers if r.glyph.__class__.__name__ == "Quad"]


def test_every_kind_has_a_short_name():
    assert list(SHORT) == list(KINDS)
    assert len(set(SHORT.values())) == len(KINDS)


def test_kinds_that_no_target_has_are_left_out():
    frame = mix_frame(ROWS)
    assert list(dict.fromkeys(frame["kind"])) == ["load 16 B", "integer", "control"]
    assert frame["instructions"].tolist() == [2, 0, 50, 80, 0, 7]


def test_bars_are_as_long_as_the_counts_and_do_not_overlap():
    first, second = (renderer.data_source.data for renderer in quads(mix_figure(ROWS)))
    assert list(first["right"]) == [2, 50, 0]
    assert list(second["right"]) == [0, 80, 7]
    spans = sorted(
        [*zip(first["bottom"], first["top"], strict=True), *zip(second["bottom"], second["top"], strict=True)]
    )
    for (_, top), (bottom, _) in itertools.pairwise(spans):
        assert top <= bottom + 1e-9
    assert "a kernel" in mix_caption(ROWS)


def test_one_target_needs_no_legend():
    alone, both = (hv.render(mix_figure(rows), backend="bokeh") for rows in (ROWS[:1], ROWS))
    assert not any(legend.items for legend in alone.legend)
    assert [item.label.value for item in both.legend[0].items] == ["sm_90", "gfx942"]


def test_the_boxes_of_a_tile_are_drawn_with_the_first_row_on_top():
    tile = tile_boxes("forward_kernel bf16 neighborhood 32")
    _, keys, queries = (renderer.data_source.data for renderer in quads(tile_figure(tile)))
    assert (queries["left"][0], -queries["top"][0]) == pytest.approx((tile.query[1], tile.query[0]))
    assert keys["right"][0] - keys["left"][0] == tile.keys[1]
    assert keys["top"][0] - keys["bottom"][0] == tile.keys[0]
    assert f"{tile.queries[0]} x {tile.queries[1]} queries" in tile_caption(tile)
