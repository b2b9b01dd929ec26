"""The figures of the fronts: what each panel holds at each moment, where lines and arrows lie, and what files say."""

import io
import json
import re
from itertools import pairwise

import holoviews as hv
import numpy as np
import PIL.Image
import pytest
import torch

from kernels.propagation import DIRECTIONS, normalise_gates
from workbench.analysis.directions import directions
from workbench.models.states import PropagationState
from workbench.operators import PropagationOperator
from workbench.plots.affinity import DECADES
from workbench.plots.directions import (
    caption,
    chunk_lines,
    chunk_segments,
    colour_range,
    cone_segments,
    front_boxes,
    front_mosaic,
    fronts_in_panels,
    mosaic_of,
    outline,
    panel_names,
    panels,
    step_at,
    title,
)
from workbench.plots.directions_gates import (
    ARROWS,
    arrows,
    fill,
    gate_caption,
    gate_maps,
    gate_mosaic,
    gate_range,
    quarters,
)
from workbench.plots.directions_movie import FORMATS, animation
from workbench.plots.directions_sheet import NAME, NOTE, png, sheet, svg

INFO = {
    "model": "toy", "layer": "stage1.block1", "kind": "propagation", "weights": "random", "weights_sha256": "0f" * 32,
    "seed": 3, "image": "coffee", "size": (20, 28), "backend": "cpu", "dtype": "float32", "device": "cpu",
}  # fmt: skip
PHOTOGRAPH = np.random.default_rng(1).integers(0, 256, (20, 28, 3), np.uint8)


def result_of(grid=(5, 7), position=(2, 3), merge="aligned", chunk=None, gates=None, **options):
    """Fronts of a layer of two channels frozen at random numbers."""
    walk = DIRECTIONS if merge == "aligned" else ("left_right",) * 4
    logits = torch.randn(4, 3, 1, 2, *grid)
    state = PropagationState(
        value=torch.randn(1, 2, *grid), gates=normalise_gates(logits, walk) if gates is None else gates,
        lam=torch.rand(4, 1, 2, *grid) + 0.1, u=torch.rand(4, 1, 2, *grid) + 0.1, skip=torch.rand(4, 1, 2, *grid),
        weight=torch.tensor([0.5, 1, 0.25, 2]), merge=merge, chunk=chunk, backend="reference",
    )  # fmt: skip
    op = PropagationOperator(state, INFO | {"merge": merge, "chunk": chunk})
    return directions(op, position, **({"reduce": "mean_abs"} | options))


def zero(maps):
    return np.nan_to_num(np.stack(maps))


@pytest.mark.parametrize("towards", [False, True], ids=["source", "query"])
@pytest.mark.parametrize(("grid", "merge"), [((5, 7), "aligned"), ((6, 4), "aligned"), ((5, 5), "released")], ids=str)
def test_panels_without_a_trail_are_the_frames_and_with_one_add_up_to_the_whole(grid, merge, towards):
    result = result_of(grid, (2, 1), merge, towards=towards)
    last = result.sizes["step"] - 1
    for frame in range(last + 1):
        step = step_at(result, frame)
        merged, *own = zero(panels(result, frame, trail=False))
        np.testing.assert_array_equal(own, result["frame"].sel(step=step))
        np.testing.assert_array_equal(merged, result["merged_frame"].sel(step=step))
    merged, *own = zero(panels(result, last, trail=True))
    np.testing.assert_array_equal(own, result["picture"])
    np.testing.assert_allclose(merged, result["merged"], rtol=1e-6)
    np.testing.assert_array_equal(zero(panels(result, 0, True)), zero(panels(result, 0, False)))


def test_fronts_go_out_from_a_source_and_come_in_to_a_query():
    out, back = result_of((5, 7), (2, 3)), result_of((5, 7), (2, 3), towards=True)
    assert [step_at(out, frame) for frame in range(4)] == [0, 1, 2, 3]
    assert [step_at(back, frame) for frame in range(4)] == [3, 2, 1, 0]
    assert front_boxes(out, 1)[0] == (4, -5, 5, 0)  # left to right: column 4, all rows
    assert front_boxes(back, 0)[0] == (0, -5, 1, 0)
    assert front_boxes(out, 3)[1] is None  # top to bottom has left the map


def test_the_large_panel_can_show_one_direction():
    result = result_of()
    large, *own = panels(result, 2, True, "right_left")
    np.testing.assert_array_equal(large, own[2])
    mosaic = mosaic_of(result)
    assert panel_names(result, "right_left")[0] == "right to left"
    assert len(fronts_in_panels(result, mosaic, 1, "merged")) == 8
    assert len(fronts_in_panels(result, mosaic, 1, "right_left")) == 5


def test_one_colour_range_holds_every_moment_and_signs_make_it_symmetric():
    result = result_of()
    low, high = colour_range(result, "log")
    assert high == np.abs(result["together"]).max()
    assert low == pytest.approx(high / 10**DECADES)
    signed = result_of(reduce="mean", gates=torch.randn(4, 3, 1, 2, 5, 7))
    low, high = colour_range(signed, "log")
    assert low == -high < 0


def test_an_outline_closes_round_its_cells():
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = mask[2, 2] = True
    lines = {tuple(line) for line in outline(mask)}
    assert lines == {
        (2, -1, 3, -1), (2, -3, 3, -3), (2, -1, 2, -2), (2, -2, 2, -3), (3, -1, 3, -2), (3, -2, 3, -3),
    }  # fmt: skip


def test_lines_of_chunks_stand_where_the_reads_stop_in_every_panel():
    result = result_of((4, 9), (1, 4), chunk=3)
    assert chunk_lines(result, 0).tolist() == [[3, 0, 3, -4], [6, 0, 6, -4]]
    assert chunk_lines(result, 3).tolist() == [[0, -1, 9, -1]]
    mosaic = mosaic_of(result)
    assert len(chunk_segments(result, mosaic, "merged")) == 2 * (2 + 1 + 2 + 1)
    assert len(chunk_segments(result, mosaic, "left_right")) == 2 + (2 + 1 + 2 + 1)
    own = sum(len(outline(mask)) for mask in result["cone"].values)
    assert len(cone_segments(result, mosaic, "merged")) == 2 * own


def test_the_mosaic_has_the_photograph_the_heat_and_the_lines():
    result = result_of()
    figure = front_mosaic(result, PHOTOGRAPH, 1, True, colour_range(result, "log"))
    kinds = [type(element) for element in figure]
    assert kinds == [hv.RGB, hv.Image, hv.Rectangles, hv.Segments, hv.Segments, hv.Rectangles, hv.Labels]
    assert hv.render(figure, backend="bokeh").renderers


def test_captions_say_what_is_drawn():
    assert "merge aligned, global scan" in caption(result_of(), "log")
    assert "mean of |.| over channels, magnitudes" in caption(result_of(), "log")
    assert "nothing is carried back" in caption(result_of((5, 5), merge="released"), "log")
    assert "h of the scan alone" in caption(result_of(quantity="hidden"), "log")
    assert "chunks of 2 lines" in caption(result_of(chunk=2), "linear")
    assert title(result_of()) == "toy  stage1.block1  5 x 7 positions  (random weights, seed 3)"


@pytest.mark.parametrize("direction", range(4))
@pytest.mark.parametrize(("gate", "across"), [(0, 1), (1, 0), (2, -1)])
def test_arrows_point_where_information_goes(direction, gate, across):
    gates = torch.zeros(4, 3, 1, 2, 30, 17)
    gates[:, gate] = 1
    result = result_of((30, 17), gates=gates)
    segments, kind, gain = arrows(result, direction)
    shafts = segments[: len(segments) // 3]
    assert len(shafts) <= ARROWS * ARROWS
    assert set(kind) == {gate}
    assert gain == 1
    right, up = (shafts[:, 2:] - shafts[:, :2]).T
    along = [(0, 1), (1, 0), (0, -1), (-1, 0)][direction]
    sideways = (across, 0) if along[1] else (0, across)
    assert set(np.sign(np.round(right, 9))) == {along[1] + sideways[1]}
    assert set(np.sign(np.round(-up, 9))) == {along[0] + sideways[0]}
    assert (shafts[:, [0, 2]] >= 0).all()
    assert (shafts[:, [0, 2]] <= 17).all()
    assert (shafts[:, [1, 3]] <= 0).all()
    assert (shafts[:, [1, 3]] >= -30).all()


def test_gates_share_a_range_and_are_empty_where_nothing_is_read():
    result = result_of((6, 7), chunk=3)
    maps = gate_maps(result, 0)
    assert all(np.isnan(gate[:, [0, 3, 6]]).all() and np.isfinite(gate[:, [1, 2, 4, 5]]).all() for gate in maps)
    low, high = gate_range(result)
    assert 0 < low < high < 1
    places, shape = quarters((6, 7))
    assert fill(maps, (6, 7)).shape == shape
    assert len(list(gate_mosaic(result, 1, PHOTOGRAPH))) == 4 == len(places)
    assert "index: column on the previous line" in gate_caption(result, 1)
    assert gate_range(result_of(gates=torch.randn(4, 3, 1, 2, 5, 7)))[0] < 0
    uniform = result_of(gates=torch.full((4, 3, 1, 2, 5, 7), 1 / 3))
    assert gate_range(uniform)[0] < gate_range(uniform)[1]
    assert arrows(uniform, 0)[2] == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("towards", [False, True], ids=["source", "query"])
def test_a_movie_has_a_picture_for_every_step_and_says_what_it_was_made_from(format, towards):
    result = result_of((5, 7), (1, 2), towards=towards)
    made = PIL.Image.open(io.BytesIO(animation(result, format, PHOTOGRAPH, milliseconds=50)))
    assert made.n_frames == result.sizes["step"] == 5
    shown = []
    for frame in range(made.n_frames):
        made.seek(frame)
        shown.append(np.asarray(made.convert("RGB")).copy())
        assert made.info["duration"] == (200 if frame == 4 else 50)
    assert all((a != b).any() for a, b in pairwise(shown))
    text = made.info["comment"].decode() if format == "gif" else made.info["Description"]
    assert json.loads(text[text.index("{") :])["hash"] == result.attrs["hash"]
    assert "mean of |.| over channels" in text


def test_a_movie_of_one_step_without_a_photograph_is_one_picture():
    result = result_of((4, 4), chunk=1)
    assert PIL.Image.open(io.BytesIO(animation(result))).n_frames == 1


def test_a_sheet_is_legible_on_white_at_the_width_of_a_page():
    result = result_of((9, 6), (4, 2), chunk=4)
    figure = sheet(result)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert figure.get_figwidth() <= 8.27
    figure.canvas.draw()
    texts = [t for t in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if t.get_text()]
    assert min(t.get_fontsize() for t in texts) >= 7 == min(NAME, NOTE)
    boxes = [t.get_window_extent() for t in figure.texts]
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 and b.y0 >= 0 for b in boxes)
    picture = PIL.Image.open(io.BytesIO(png(figure, dpi=100)))
    assert picture.getpixel((0, 0))[:3] == (255, 255, 255)
    words = svg(figure).decode()
    assert re.search(r"left to right", words)
    assert "m = 0.5" in words


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda result: animation(result, "mp4"), "gif or png"),
        (lambda result: animation(result, milliseconds=5), "at least 20"),
        (lambda result: sheet(result, frames=()), "one to 6"),
        (lambda result: sheet(result, frames=(99,)), "frames 0 to 3"),
    ],
)
def test_a_wrong_request_is_answered_with_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(result_of())
