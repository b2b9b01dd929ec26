"""The Directions page without a server: set a parameter, wait for the lane, look at what the page shows."""

import io
import threading
from typing import Any

import numpy as np
import PIL.Image
import pytest
import xarray as xr

import workbench as wb
from kernels.propagation import DIRECTIONS
from workbench.analysis.export import load_result
from workbench.plots.directions import panels
from workbench.views.directions import DirectionsView
from workbench.views.directions_figures import store_data
from workbench.views.directions_request import layers_of, models_with_directions, usual_layer
from workbench.views.lane import LANE, Job
from workbench.views.state import KERNELS

DEADLINE = 300  # seconds


@pytest.fixture(scope="module", autouse=True)
def warm_kernels() -> None:
    """A page that warms its kernels draws itself again; these tests start after that."""
    KERNELS.start()
    assert KERNELS.ready.wait(DEADLINE)


@pytest.fixture
def view() -> DirectionsView:
    return DirectionsView()


def settle() -> None:
    """Wait until everything that the lane was asked for is delivered: it works in order, one job at a time."""
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


def change(view: DirectionsView, **values: Any) -> xr.Dataset:
    """Set parameters and return the result that the page then shows."""
    view.param.update(**values)
    settle()
    return shown(view)


def shown(view: DirectionsView) -> xr.Dataset:
    drawing = view.shown()
    assert drawing is not None
    return drawing.result


def test_the_page_opens_on_a_finished_picture_half_way_through(view: DirectionsView) -> None:
    result = shown(view)
    assert (result.attrs["model"], result.attrs["layer"]) == ("gspn_nano", "stage1.block2")
    assert all(figure.pane.object is not None for figure in (view.photograph, view.fronts, view.gate_figure))
    assert view.frame == result.sizes["step"] // 2 == view.player.slider.value
    assert view.player.slider.end == result.sizes["step"] - 1
    assert "what leaves the source at (row 14, column 17)" in view._status.object


def test_only_models_and_layers_with_directions_are_offered() -> None:
    assert "gspn_nano" in models_with_directions()
    assert not {"swin_nano", "davit_nano"} & {*models_with_directions()}
    assert len(layers_of("gspn_nano")) == 4
    assert usual_layer("gspn_tiny").startswith("stage3")  # the scans of earlier stages end after two lines
    with pytest.raises(ValueError, match="There is no model with directions named 'swin_nano'"):
        DirectionsView(model="swin_nano")
    with pytest.raises(ValueError, match="swin_nano has no directions"):
        wb.show("swin_nano", page="directions")
    with pytest.raises(ValueError, match="no layer with directions named 'stage9'"):
        DirectionsView(layer="stage9")


def test_another_position_side_and_quantity_are_drawn(view: DirectionsView) -> None:
    result = change(view, row=3, col=30, side="query", quantity="hidden", reduce="mean")
    spec = result.attrs["spec"]
    assert (spec["position"], spec["towards"], spec["quantity"]) == ((3, 30), True, "hidden")
    assert "what reaches the query at (row 3, column 30)" in view._status.object
    assert "signed" in view._caption.object


def test_another_layer_keeps_the_place_and_a_missing_channel_becomes_all(view: DirectionsView) -> None:
    change(view, row=8, col=24)
    assert change(view, layer="stage2.block1", channel=5000).attrs["position"] == (4, 12)
    assert shown(view).attrs["spec"]["channel"] is None


def test_moving_stops_at_the_border(view: DirectionsView) -> None:
    change(view, row=0, col=31)
    view.move(-1, 1)
    settle()
    assert shown(view).attrs["position"] == (0, 31)


def test_a_click_in_any_panel_chooses_the_position(view: DirectionsView) -> None:
    assert view.fronts._mosaic is not None
    row, col, scale = view.fronts._mosaic.places()[2]
    view.fronts._tapped(col + 5.5 * scale, -(row + 7.5 * scale))
    settle()
    assert shown(view).attrs["position"] == (7, 5)


@pytest.mark.parametrize("side", ["source", "query"])
def test_what_the_browser_is_sent_holds_every_frame(view: DirectionsView, side: str) -> None:
    result = change(view, side=side, layer="stage2.block2")
    data = store_data(result, trail=True, large="merged")
    _, _, steps, towards, trail, large = data["look"][0]
    assert (steps, towards, trail, large) == (result.sizes["step"], side == "query", 1, -1)
    step_of = data["step_of"][0].reshape(4, -1)
    together, bits = data["together"][0].reshape(16, -1), np.array([[1], [2], [4], [8]])
    for frame in range(steps):  # as the browser does it
        step = steps - 1 - frame if towards else frame
        seen = (step_of >= step) if towards else (step_of >= 0) & (step_of <= step)
        merged = np.take_along_axis(together, (bits * seen).sum(0)[None], 0)[0]
        np.testing.assert_array_equal(merged, np.nan_to_num(panels(result, frame, True)[0]).ravel())


def test_a_frame_changes_the_words_and_not_the_figures(view: DirectionsView) -> None:
    before, drawn = view._status.object, view.fronts.pane.object
    view.frame = 0
    assert view._status.object != before
    assert "step 0 of" in view._status.object
    assert view.fronts.pane.object is drawn
    view.frame = 10_000
    assert f"step {shown(view).sizes['step'] - 1} of" in view._status.object


def test_the_gates_of_the_chosen_direction_are_drawn(view: DirectionsView) -> None:
    first = view.gate_figure.pane.object
    view.gates = DIRECTIONS[1]
    assert view.gate_figure.pane.object is not first
    assert "index: column" in view._gate_caption.object
    drawn = view.gate_figure.pane.object
    change(view, row=2)
    assert view.gate_figure.pane.object is drawn  # the gates do not depend on the position


def test_the_table_has_a_row_for_every_direction(view: DirectionsView) -> None:
    table = view._numbers.object
    for name, weight in zip(shown(view)["direction"].values, shown(view)["weight"].values, strict=True):
        assert name.replace("_", " to ") in table
        assert f"{weight:.4g}" in table


def test_files_hold_what_is_shown(view: DirectionsView, tmp_path: Any) -> None:
    result = change(view, layer="stage2.block2", row=4, col=4)
    movie = PIL.Image.open(view.downloads.file("GIF"))
    assert movie.n_frames == result.sizes["step"]  # type: ignore[attr-defined]
    assert result.attrs["hash"] in view.downloads.buttons["GIF"].filename
    assert PIL.Image.open(view.downloads.file("Sheet PNG")).width > 1500
    assert view.downloads.file("Sheet SVG").getvalue().startswith(b"<?xml")
    file = tmp_path / "fronts.nc"
    file.write_bytes(view.downloads.file("NetCDF").getvalue())
    assert load_result(file).identical(result)


def test_the_python_of_the_page_computes_its_result(view: DirectionsView, tmp_path: Any, monkeypatch: Any) -> None:
    result = change(view, layer="stage2.block1", row=2, col=9, side="query")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(view._code.value, names)
    assert names["result"].attrs["hash"] == result.attrs["hash"]
    assert PIL.Image.open(tmp_path / "directions.gif").n_frames == result.sizes["step"]  # type: ignore[attr-defined]
    assert (tmp_path / "directions.png").is_file()


def test_an_upload_that_is_not_a_picture_is_refused_and_the_picture_stays(view: DirectionsView) -> None:
    before = shown(view)
    change(view, upload=b"no picture")
    assert view._messages.visible
    assert shown(view) is before
    pixels, file = np.zeros((40, 60, 3), np.uint8), io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    assert change(view, upload=file.getvalue()).attrs["image"] == "upload"


def test_a_link_opens_the_page_as_it_was() -> None:
    view = DirectionsView.from_address({"layer": "stage2.block1", "row": 3, "col": 5, "side": "query", "frame": 2})
    assert shown(view).attrs["position"] == (3, 5)
    assert (view.frame, view.followed) == (2, True)
    assert not DirectionsView.from_address({"model": "nono"}).followed


def test_a_frame_beyond_the_end_of_a_smaller_layer_is_its_last(view: DirectionsView) -> None:
    change(view, frame=17)
    last = change(view, layer="stage2.block1").sizes["step"] - 1
    assert view.player.slider.end == last < 17
    assert f"step {last} of {last}" in view._status.object
    assert change(view, layer="stage1.block2").sizes["step"] - 1 == view.player.slider.end
