"""The Attribution page while it computes, when it is opened, and what can be taken away from it."""

import io
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import xarray as xr

from workbench.analysis.export import load_result
from workbench.images import load_image
from workbench.models import load_model
from workbench.views import attribution_request, state
from workbench.views.attribution import NONE, USUAL, AttributionView
from workbench.views.attribution_request import Panel, Progress, Source, _Clock
from workbench.views.lane import LANE, Job
from workbench.views.state import KERNELS

DEADLINE = 300  # seconds


@pytest.fixture(scope="module", autouse=True)
def warm_kernels() -> None:
    """A page that warms its kernels draws itself again; these tests start after that."""
    KERNELS.start()
    assert KERNELS.ready.wait(DEADLINE)


@pytest.fixture
def view() -> AttributionView:
    """A page on the fastest small model alone."""
    return AttributionView(model="swin_nano", other=NONE)


def settle() -> None:
    """Wait until everything that the lane was asked for is delivered, however many turns it takes."""
    busy = True
    while busy:
        wait_for_a_turn()
        with LANE._changed:
            owners: list[Any] = [*LANE._waiting, *([] if LANE._running is None else [LANE._running[0]])]
        busy = any(owner[0] != "test" for owner in owners)


def wait_for_a_turn() -> None:
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


def change(view: AttributionView, **values: Any) -> list[xr.Dataset]:
    """Set parameters and return the results that the page then shows."""
    view.param.update(**values)
    settle()
    return [panel.result for panel in panels(view)]


def panels(view: AttributionView) -> tuple[Panel, ...]:
    drawing = view.shown()
    assert drawing is not None
    return drawing.panels


def words(pane: Any) -> str:
    """A pane's HTML without its tags."""
    return re.sub(r"<[^>]+>", "", pane.object)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Occlusion that goes on until it is cancelled, reporting 3 of 8 passes; set once it has begun."""
    begun, computed = threading.Event(), attribution_request.attribute

    def attribute(model: Any, image: Any, method: str, *, progress: Any, cancelled: Any, **rest: Any) -> xr.Dataset:
        if method != "occlusion":
            return computed(model, image, method, progress=progress, cancelled=cancelled, **rest)
        while not cancelled():
            progress(3, 8)
            begun.set()
        raise RuntimeError("cancelled")

    monkeypatch.setattr(attribution_request, "attribute", attribute)
    monkeypatch.setattr(attribution_request, "EVERY", 0.0)
    return begun


def wait_for(condition: Callable[[], bool]) -> None:
    ticking = threading.Event()
    for _ in range(DEADLINE * 20):
        if condition():
            return
        ticking.wait(0.05)
    raise AssertionError("It did not happen in time.")


def test_progress_is_told_and_cancel_keeps_the_last_picture(view: AttributionView, slow: threading.Event) -> None:
    before = view.shown()
    view.method = "occlusion"
    assert slow.wait(DEADLINE)
    wait_for(lambda: "Occlusion of swin_nano: pass 3 of 8" in words(view.layout.words))
    assert view.layout.bar.value == 37
    assert not view.layout.cancel.disabled
    view.layout.cancel.clicks += 1
    assert "Cancelled" in words(view.layout.words)
    assert view.layout.cancel.disabled
    settle()
    assert view.shown() is before
    assert not view._messages.visible
    change(view, method="input_x_gradient")  # and the lane works on
    assert panels(view)[0].source.method == "input_x_gradient"


def test_the_newest_request_replaces_one_that_is_being_computed(view: AttributionView, slow: threading.Event) -> None:
    view.method = "occlusion"
    assert slow.wait(DEADLINE)
    assert change(view, method="layer_grad_cam")[0].attrs["spec"]["method"] == "layer_grad_cam"
    assert words(view.layout.words) == "Finished."


def test_what_is_computed_while_it_reports_does_not_hold_up_another_page(
    view: AttributionView, slow: threading.Event
) -> None:
    view.method = "occlusion"
    assert slow.wait(DEADLINE)
    other = AttributionView(model="swin_nano", other=NONE)
    other.method = "input_x_gradient"
    wait_for(lambda: panels(other)[0].source.method == "input_x_gradient")
    view.halt()


def test_the_time_of_others_turns_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(attribution_request.time, "perf_counter", lambda: now[0])
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        now[0] += 5.0  # somebody else's turn

    clock = _Clock(Source("swin_nano", "saliency"), 0, report)
    for done in range(1, 5):
        now[0] += 0.06
        clock.progress(done, 4)
    assert [progress.done for progress in told] == [2, 4]
    assert clock.seconds() == pytest.approx(0.24)


def test_the_compiled_kernels_draw_again_what_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(KERNELS), "backend", "reference")
    fast = AttributionView(model="swin_nano", other=NONE)
    slow = AttributionView(model="swin_nano", other=NONE, method="noise_tunnel", samples=2)
    settle()
    monkeypatch.undo()
    for view in (fast, slow):
        assert panels(view)[0].result.attrs["backend"] == "reference"
        view._warmed()
    settle()
    assert panels(fast)[0].result.attrs["backend"] != "reference"
    assert panels(slow)[0].result.attrs["backend"] == "reference"  # nobody asked for the long run again
    assert fast.layout.warming.object == ""


def test_the_compiled_kernels_do_not_bring_back_what_was_cancelled(
    monkeypatch: pytest.MonkeyPatch, slow: threading.Event
) -> None:
    monkeypatch.setattr(type(KERNELS), "backend", "reference")
    view = AttributionView(model="swin_nano", other=NONE)
    view.method = "occlusion"
    assert slow.wait(DEADLINE)
    view.halt()
    asked: list[Any] = []
    monkeypatch.setattr(view, "submit", lambda *args, **kwargs: asked.append(args))
    view._warmed()
    assert asked == []


def test_drawing_the_same_again_keeps_what_was_said_about_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(KERNELS), "backend", "reference")
    view = AttributionView.from_address({"model": "gspn_nan"})
    settle()
    monkeypatch.undo()
    view._warmed()
    settle()
    assert panels(view)[0].result.attrs["backend"] != "reference"
    assert "link could not be followed" in view._messages.object
    assert view._messages.visible
    change(view, method="input_x_gradient")
    assert not view._messages.visible


def test_what_was_computed_is_remembered(view: AttributionView, monkeypatch: pytest.MonkeyPatch) -> None:
    change(view, method="input_x_gradient")
    monkeypatch.setattr(attribution_request, "attribute", lambda *args, **kwargs: pytest.fail("computed again"))
    change(view, method="saliency")
    assert not view._messages.visible
    assert panels(view)[0].source.method == "saliency"


# Opening and sharing


def test_a_page_of_a_slow_method_opens_on_a_fast_one_and_goes_on(view: AttributionView) -> None:
    opened = AttributionView(model="swin_nano", other=NONE, method="noise_tunnel", samples=5, seed=11)
    settle()
    (panel,) = panels(opened)
    assert panel.source.method == "noise_tunnel"
    assert panel.result.attrs["spec"]["seed"] == 11
    quick = opened.request().quick()
    assert [source.method for source in quick.sources] == ["saliency"]


def test_a_link_opens_the_page_that_it_was_copied_from(view: AttributionView) -> None:
    change(view, model="gspn_nano", other="swin_nano", method="neuron_gradient", other_method="layer_grad_cam")
    change(view, layer="stage1.block2", other_cam_layer="stage1.block1", sign="positive")
    change(view, row=3, col=30, channel=2)
    again = AttributionView.from_address({name: getattr(view, name) for name in AttributionView.link_state()})
    assert not again._messages.visible, again._messages.object
    assert [p.result.attrs["hash"] for p in panels(again)] == [p.result.attrs["hash"] for p in panels(view)]
    assert set(AttributionView.link_state()) <= set(AttributionView.param)


@pytest.mark.parametrize(
    "address",
    [
        {"model": "gspn_nan"}, {"method": "saliencey"}, {"layer": "stage9"}, {"target": "both"}, {"steps": "many"},
        {"image": "cofee"}, {"other_cam_layer": "stage7"}, {"sigma": 0}, {"method": "deep_lift", "other": NONE},
    ],
)  # fmt: skip
def test_a_part_of_a_link_that_does_not_exist_is_named_and_the_page_opens(address: dict[str, Any]) -> None:
    view = AttributionView.from_address(address)
    assert view._messages.visible
    assert "link" in view._messages.object
    assert len(panels(view)) == 2


def png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_upload_is_attributed_and_one_that_is_no_picture_is_refused(view: AttributionView) -> None:
    data = png(50, 70)
    view.upload_picture(data)
    (result,) = change(view)
    assert result.attrs["image"] == "upload"
    before = view.shown()
    view.upload_picture(b"not a picture")
    settle()
    assert view._messages.object.startswith("The upload is not an image that can be read")
    assert view.shown() is before
    assert view.upload == data
    (result,) = change(view, image="retina")
    assert (result.attrs["image"], view.upload) == ("retina", None)


def test_a_given_model_and_picture_open_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_given", {})
    model = load_model("swin_nano", seed=3, device="cpu", input_size=32)
    view = AttributionView.opened(model, load_image("rocket", size=48), method="layer_grad_cam", sign="positive")
    (panel,) = panels(view)
    assert panel.result.attrs["seed"] == 3
    assert panel.result.sizes["row"] == 32
    assert not view._messages.visible


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "layer_grad_cam", "target": "class", "number": 4},
        {"method": "layer_grad_cam", "target": "unit", "row": 2, "col": 9, "cam_layer": USUAL},
        {"method": "noise_tunnel", "samples": 3, "seed": 8, "noise": "smoothgrad_sq"},
        {"method": "integrated_gradients", "steps": 8, "baseline": "blurred", "image": "rocket"},
    ],
)
def test_the_code_of_the_page_computes_what_is_drawn(view: AttributionView, settings: dict[str, Any]) -> None:
    (drawn,) = change(view, **settings)
    assert not view._messages.visible, view._messages.object
    found: dict[str, Any] = {}
    exec(view._code.value, found)
    assert found["results"][0].attrs["hash"] == drawn.attrs["hash"]
    np.testing.assert_array_equal(found["results"][0]["attribution"], drawn["attribution"])


def test_the_files_hold_what_is_shown(view: AttributionView, tmp_path: Any) -> None:
    (result,) = change(view, method="neuron_gradient", sign="all", opacity=1.0)
    nc = tmp_path / "result.nc"
    nc.write_bytes(view.downloads.file(0, "NetCDF").read())
    xr.testing.assert_identical(load_result(nc), result)
    with np.load(view.downloads.file(0, "npz")) as arrays:
        np.testing.assert_array_equal(arrays["attribution"], result["attribution"])
    picture = PIL.Image.open(view.downloads.file(0, "PNG"))
    assert picture.size == (512, 512)
    assert "Neuron gradient" in picture.info["Description"]
    assert view.downloads.buttons[0]["PNG"].filename.endswith(f"{result.attrs['hash']}.png")
    pixels = np.asarray(picture)
    unit_top, unit_left = (32 * index for index in panels(view)[0].unit or ())
    assert tuple(pixels[unit_top, unit_left]) == (0, 229, 255)  # the cell's outline
    look = view.looks()[0].shown
    strongest = np.unravel_index(np.argmin(look), look.shape)
    red, _, blue = pixels[strongest[0] * 8 + 4, strongest[1] * 8 + 4]
    assert blue > red  # what lowers the score


def test_a_file_of_a_panel_that_is_not_there_is_refused_in_words(view: AttributionView) -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        view.downloads.file(1, "npz")
    assert "nothing to save" in view._messages.object
