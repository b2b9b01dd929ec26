"""The Affinity page without a server: set a parameter, wait for the lane, look at what the page shows."""

import io
import re
import threading
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
import xarray as xr

from workbench.models import list_models, load_model
from workbench.views import affinity, state
from workbench.views.affinity import AffinityView
from workbench.views.lane import LANE, Job
from workbench.views.request import Cells, moved
from workbench.views.state import KERNELS

DEADLINE = 300  # seconds


@pytest.fixture(scope="module", autouse=True)
def warm_kernels() -> None:
    """A page that warms its kernels draws itself again; these tests start after that."""
    KERNELS.start()
    assert KERNELS.ready.wait(DEADLINE)


@pytest.fixture
def view() -> AffinityView:
    return AffinityView()


def settle() -> None:
    """Wait until everything that the lane was asked for is delivered: it works in order, one job at a time."""
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


def change(view: AffinityView, **values: Any) -> list[xr.Dataset]:
    """Set parameters and return the results that the page then shows."""
    view.param.update(**values)
    settle()
    return shown(view)


def shown(view: AffinityView) -> list[xr.Dataset]:
    assert view._drawing is not None
    return list(view._drawing.results)


def words(pane: Any) -> str:
    """A pane's HTML without its tags."""
    return re.sub(r"<[^>]+>", "", pane.object)


def png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_page_opens_on_a_finished_picture(view: AffinityView) -> None:
    assert [result.attrs["model"] for result in shown(view)] == ["gspn_nano", "swin_nano"]
    assert all(figure.pane.object is not None for figure in (view.photograph, *view.figures))
    assert view._messages.visible is False


def test_a_query_redraws_both_models_at_the_same_place_of_the_picture(view: AffinityView) -> None:
    before = [result["merged"].values for result in shown(view)]
    results = change(view, row=5, col=20, other_layer="stage2.block1")
    assert [result.attrs["position"] for result in results] == [(5, 20), (2, 10)]
    assert not np.array_equal(results[0]["merged"], before[0])


def test_another_model_keeps_the_place(view: AffinityView) -> None:
    change(view, row=8, col=24)
    results = change(view, model="swin_tiny")
    assert [result.sizes["row"] for result in results] == [56, 32]
    assert [result.attrs["position"] for result in results] == [(14, 42), (8, 24)]


def test_another_layer_keeps_the_place(view: AffinityView) -> None:
    change(view, row=8, col=24)
    assert change(view, layer="stage2.block2")[0].attrs["position"] == (4, 12)


def test_layers_that_are_skipped_before_they_are_drawn_do_not_move_the_place(view: AffinityView) -> None:
    change(view, row=8, col=24)
    for layer in ("stage2.block1", "stage2.block2"):
        view.layer = layer
    settle()
    assert shown(view)[0].attrs["position"] == (4, 12)


def test_both_models_may_change_at_once(view: AffinityView) -> None:
    results = change(view, model="swin_nano", other="gspn_nano")
    assert [result.attrs["model"] for result in results] == ["swin_nano", "gspn_nano"]


def test_the_layers_on_offer_are_those_of_the_model(view: AffinityView) -> None:
    for which, target in (("model", "layer"), ("other", "other_layer")):
        change(view, **{which: "swin_tiny"})
        layers = [layer.name for layer in affinity.shared_model("swin_tiny").layers()]
        assert view.param[target].objects == layers
        assert getattr(view, target) in layers


def test_without_a_second_model_its_panel_is_hidden(view: AffinityView) -> None:
    assert [panel.visible for panel in view._panels] == [True, True]
    assert len(change(view, other="none")) == 1
    assert [panel.visible for panel in view._panels] == [True, False]
    assert len(change(view, other="swin_nano")) == 2
    assert [panel.visible for panel in view._panels] == [True, True]


@pytest.mark.parametrize(("name", "value"), [("side", "heard"), ("reduce", "rms"), ("channel", 2)])
def test_a_setting_reaches_the_spec_of_every_result(view: AffinityView, name: str, value: object) -> None:
    before = shown(view)
    after = change(view, **{name: value})
    assert [result.attrs["spec"][name] for result in after] == [value, value]
    assert all(old.attrs["hash"] != new.attrs["hash"] for old, new in zip(before, after, strict=True))
    assert not np.array_equal(after[0]["merged"], before[0]["merged"])


def test_a_channel_that_the_second_model_lacks_is_left_out_there(view: AffinityView) -> None:
    results = change(view, channel=50)  # gspn_nano mixes 60 channels on this grid, swin_nano 48
    assert [result.attrs["spec"]["channel"] for result in results] == [50, None]
    assert [result.attrs["aggregation"] for result in results] == ["channel 50", "mean of |.| over heads"]
    assert "channel 50" not in words(view._captions[1])


@pytest.mark.parametrize(("step", "corner"), [((-1, -1), (0, 0)), ((1, 1), (31, 31)), ((1, -1), (31, 0))])
def test_moving_stops_at_the_borders(view: AffinityView, step: tuple[int, int], corner: tuple[int, int]) -> None:
    for _ in range(33):
        view.move(*step)
    settle()
    assert (view.row, view.col) == corner
    assert shown(view)[0].attrs["position"] == corner


def test_an_upload_that_is_no_image_is_one_sentence_and_the_picture_stays(view: AffinityView) -> None:
    before = view._drawing
    change(view, upload=b"this is a text file, not a picture")
    assert view._messages.visible
    assert view._messages.object == (
        "The upload is not an image that can be read; give a JPEG, PNG, WebP, BMP, GIF or TIFF file."
    )
    assert view._drawing is before
    assert view.upload is None
    change(view, row=2)
    assert not view._messages.visible
    assert shown(view)[0].attrs["image"] == "coffee"


def test_an_upload_is_shown_until_a_picture_is_chosen(view: AffinityView) -> None:
    results = change(view, upload=png(50, 70))
    assert [result.attrs["image"] for result in results] == ["upload", "upload"]
    assert not view._messages.visible
    assert [result.attrs["image"] for result in change(view, image="astronaut")] == ["astronaut", "astronaut"]


def test_the_colour_scale_changes_the_caption_and_not_the_numbers(view: AffinityView) -> None:
    before, numbers = words(view._captions[0]), view._numbers.object
    change(view, scale="linear")
    assert "log colours" in before
    assert "linear colours" in words(view._captions[0])
    assert view._numbers.object == numbers


@pytest.mark.parametrize(
    "settings",
    [
        {"other": "none"},
        {"side": "heard", "reduce": "mean"},
        {"row": 3, "col": 29, "other_layer": "stage2.block2"},
        {"channel": 7},
        {"channel": 50},
    ],
)
def test_the_code_of_the_page_computes_the_drawn_map(view: AffinityView, settings: dict[str, Any]) -> None:
    drawn = change(view, **settings)[-1]
    found: dict[str, Any] = {}
    exec(view.code(), found)
    np.testing.assert_array_equal(found["merged"].values, drawn["merged"].values)
    np.testing.assert_array_equal(found["one"].values, drawn["groups"][0].values)


def test_a_link_opens_the_page_that_it_was_copied_from(view: AffinityView) -> None:
    change(view, model="swin_nano")
    change(view, other="gspn_nano", layer="stage2.block1")
    change(view, row=3, col=12, side="heard", channel=5)
    again = AffinityView.from_address({name: getattr(view, name) for name in AffinityView.link_state()})
    assert not again._messages.visible
    assert [result.attrs["hash"] for result in shown(again)] == [result.attrs["hash"] for result in shown(view)]


@pytest.mark.parametrize(
    "address",
    [{"model": "gspn_nan"}, {"image": "cofee"}, {"row": "abc"}, {"row": -3}, {"side": "both"}, {"layer": "stage9"}],
)
def test_a_part_of_a_link_that_does_not_exist_is_named_and_the_page_opens(address: dict[str, object]) -> None:
    view = AffinityView.from_address(address)
    assert view._messages.visible
    assert "link" in view._messages.object
    assert next(iter(address)) in view._messages.object
    assert len(shown(view)) == 2


def test_what_a_link_does_not_know_is_left_out() -> None:
    assert not AffinityView.from_address({"utm_source": "x", "upload": "y"})._messages.visible


def test_a_link_names_parameters_of_the_page() -> None:
    assert set(AffinityView.link_state()) <= set(AffinityView.param)
    assert list(AffinityView.link_state()) == list(AffinityView.link_state().values())


def test_captions_say_how_the_map_was_made(view: AffinityView) -> None:
    for pane, result in zip(view._captions, shown(view), strict=True):
        text = words(pane)
        assert "what it reads (row of A)" in text
        assert "share of the merged mass per cell" in text  # normalisation
        assert "magnitudes" in text  # sign rule
        assert result.attrs["aggregation"] in text
        assert f"{result.attrs['backend']} backend" in text
        assert text.endswith(result.attrs["device"])
    change(view, reduce="mean")
    assert "signed" in words(view._captions[0])
    assert "non-negative" in words(view._captions[1])


def test_the_status_says_which_models_and_cells_are_shown(view: AffinityView) -> None:
    change(view, row=6, col=9)
    text = words(view._status)
    assert text.count("cell (row 6, column 9) reads") == 2
    assert "gspn_nano stage1.block2" in text
    assert "swin_nano stage1.block2" in text
    assert "role='status'" in view._status.object


def test_nothing_is_timed_before_it_is_asked_for(view: AffinityView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "measure", partial(affinity.measure, seconds=0.01))
    assert "Not measured yet" in view._latency.object
    view.measure_now()
    settle()
    text = words(view._latency)
    for name in ("gspn_nano", "swin_nano"):
        assert all(f"{name}: {part}" in text for part in ("mixing", "stage1.block2", "whole model"))
    assert "floor" in text
    assert "median" in text


CHANNEL = "stage1.block1.channel"


def test_a_channel_layer_shows_its_matrices_and_says_why_there_is_no_map(view: AffinityView) -> None:
    change(view, model="davit_nano")
    results = change(view, layer=CHANNEL)
    assert results[0]["merged"].dims == ("channel_out", "channel_in")
    assert results[1]["merged"].dims == ("row", "col")
    assert "no N x N map" in words(view._captions[0])
    assert "mean of |.| over heads" in words(view._captions[0])
    assert "3 heads of 16 channels that read each other" in words(view._status)
    assert "channels read (effective)" in words(view._numbers)
    assert "mass within 3 cells" in words(view._numbers)
    assert not view._messages.visible


def test_the_other_panel_keeps_working_beside_a_channel_layer(view: AffinityView) -> None:
    change(view, model="davit_nano")
    change(view, layer=CHANNEL)
    drawn = view._drawing
    view.figures[0]._tapped(3.5, -3.5)  # a click on a channel matrix asks for nothing
    settle()
    assert view._drawing is drawn
    view.photograph._tapped(7.5, -5.5)
    settle()
    assert (view.row, view.col) == (5, 7)
    assert shown(view)[1].attrs["position"] == (5, 7)
    view.figures[1]._tapped(4.5, -6.5)  # two cells per position in the merged map of four groups
    settle()
    assert shown(view)[1].attrs["position"] == (3, 2)
    back = change(view, layer="stage1.block1.spatial")[0]
    assert back.attrs["position"] == (3, 2)
    view.figures[0]._tapped(9.5, -9.5)
    settle()
    assert shown(view)[0].attrs["position"] == (4, 4)


def test_a_query_does_not_draw_channel_matrices_again(view: AffinityView, monkeypatch: pytest.MonkeyPatch) -> None:
    change(view, model="davit_nano")
    change(view, layer=CHANNEL)
    patched: list[str] = []
    for figure, name in zip(view.figures, "ab", strict=True):
        monkeypatch.setattr(figure, "_patch", lambda part, data, name=name: patched.append(f"{name} {part}"))
    change(view, row=3)
    assert patched == ["b heat", "b boxes"]
    patched.clear()
    change(view, image="astronaut")
    assert "a heat" in patched


def test_two_channel_layers_side_by_side_have_one_colour_range(view: AffinityView) -> None:
    change(view, model="davit_nano", other="davit_nano")
    results = change(view, layer=CHANNEL, other_layer="stage2.block1.channel")
    limits = affinity.colour_range(results, "log")
    for figure in view.figures:
        assert tuple(figure.pane.object.Image.I.opts.get().kwargs["clim"]) == limits
    assert "mass within" not in words(view._numbers)
    assert "row sum" not in words(view._numbers)


def test_the_code_of_a_channel_layer_computes_its_matrices(view: AffinityView) -> None:
    change(view, model="davit_nano", other="none")
    drawn = change(view, layer=CHANNEL, reduce="rms")[0]
    found: dict[str, Any] = {}
    exec(view.code(), found)
    np.testing.assert_array_equal(found["merged"].values, drawn["merged"].values)
    np.testing.assert_array_equal(found["one"].values, drawn["groups"][0].values)


def test_a_model_opens_on_a_layer_that_mixes_positions(view: AffinityView) -> None:
    change(view, model="davit_nano", other="maxvit_nano")
    assert (view.layer, view.other_layer) == ("stage1.block1.spatial", "stage1.block1.grid")


def test_models_are_offered_by_size_and_then_by_name(view: AffinityView) -> None:
    offered = view.param.model.objects
    sizes = [state.SIZES.index(name.rpartition("_")[2]) for name in offered if name in list_models()]
    assert sorted(offered) == sorted(state.model_names())
    assert sizes == sorted(sizes)
    nanos = offered[: sizes.count(0)]
    assert nanos == sorted(nanos)
    assert {"swin_nano", "gspn_nano", "davit_nano"} <= set(nanos)


@pytest.mark.parametrize("name", [name for name in list_models() if name.endswith("_nano")])
def test_every_small_model_is_drawn_with_rows_that_sum_to_one(view: AffinityView, name: str) -> None:
    change(view, model=name, other="none")
    for layer in view.param.layer.objects:
        (result,) = change(view, layer=layer)
        assert not view._messages.visible
        assert result.attrs["layer"] == layer
        if "channel_in" in result.dims:
            np.testing.assert_allclose(result["groups"].sum("channel_in"), 1, atol=1e-4)
        elif result.attrs["kind"] == "attention":
            assert float(result["total"].sel(of="merged")) == pytest.approx(1, abs=1e-4)
            assert result.attrs["pattern"] in words(view._captions[0])


def test_a_padded_grid_keeps_cells_and_pixels_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_given", {})
    name = state.offer(load_model("davit_nano", device="cpu", input_size=52, padding="keys"))
    view = AffinityView(model=name, layer="stage1.block1.spatial", other="swin_nano", row=13, col=25)
    first, second = shown(view)
    assert (first.sizes["row"], first.attrs["unpadded"]) == (32, (26, 26))
    assert second.attrs["position"] == (16, 31)
    assert "picture on 26 x 26 cells, padding grey" in words(view._captions[0])
    results = change(view, row=31, col=0)  # a token of padding lies beyond the picture: the nearest cell stands for it
    assert [result.attrs["position"] for result in results] == [(31, 0), (31, 0)]
    assert change(view, layer="stage2.block1.spatial")[0].attrs["position"] == (15, 0)


@pytest.mark.parametrize(
    ("position", "cells", "other", "expected"),
    [
        ((3, 4), Cells((8, 8), (8, 8)), Cells((4, 16), (4, 16)), (1, 9)),
        ((6, 0), Cells((8, 8), (7, 7)), Cells((14, 14), (14, 14)), (13, 1)),
        ((7, 7), Cells((8, 8), (7, 7)), Cells((14, 16), (14, 14)), (13, 15)),
        ((13, 13), Cells((14, 14), (14, 14)), Cells((8, 8), (7, 7)), (6, 6)),
    ],
)
def test_a_place_of_the_picture_is_found_on_padded_grids(
    position: tuple[int, int], cells: Cells, other: Cells, expected: tuple[int, int]
) -> None:
    assert moved(position, cells, other) == expected
    assert moved(position, cells, cells) == position
