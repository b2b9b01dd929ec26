"""The Stability page without a server: set a parameter, wait for the lane, look at what the page shows."""

import re
import threading
from typing import Any

import pytest

import workbench as wb
from workbench.analysis.export import load_result
from workbench.analysis.stability_spec import PRESETS
from workbench.views.lane import LANE, Job
from workbench.views.stability import OWN, StabilityView

DEADLINE = 120  # seconds
SMALL = {"cross": 9, "length": 12}


def settle() -> None:
    """Wait until everything that the lane was asked for is delivered: it works in order, one job at a time."""
    for _ in range(2):  # what is delivered may ask for a newer picture
        wait_for_turn()


def wait_for_turn() -> None:
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


@pytest.fixture
def view() -> StabilityView:
    return StabilityView(**SMALL)


def words(text: str) -> str:
    return re.sub(r"<[^>]+>", " ", text)


def test_the_page_opens_on_a_stable_propagation_with_words_and_figures(view: StabilityView) -> None:
    assert "Row-stochastic, stable, dense." in words(view._status.object)
    assert "aria-live='polite'" in view._status.object
    assert "✓ yes" in view._texts["numbers"].object
    figures = [view.pictures, view.weights, *view.curves.values()]
    assert all(figure.pane.object is not None for figure in figures)
    assert not view._messages.visible


def test_every_preset_can_be_chosen_and_is_named(view: StabilityView) -> None:
    for preset in reversed(PRESETS):
        view.preset = preset
        settle()
        assert view.preset == preset
        result = view.shown().result
        assert {name: result.attrs["spec"][name] for name in PRESETS[preset]} == PRESETS[preset]
    view.gain = 1.31
    assert view.preset == OWN


def test_overflow_is_explained_and_the_page_goes_on(view: StabilityView) -> None:
    view.param.update(normalisation="none", noise=0.0, gain=4.0, dtype="fp16")
    settle()
    assert "Overflow." in words(view._status.object)
    assert "float16 holds at most 65504" in view._status.object
    assert "✗ no" in view._texts["numbers"].object
    assert not view._messages.visible
    view.preset = "GSPN"
    settle()
    assert "Row-stochastic, stable" in words(view._status.object)


def test_a_setting_that_is_refused_is_a_sentence_and_the_picture_stays(view: StabilityView) -> None:
    before = view.shown()
    view.chunk = 1
    settle()
    assert "chunk must be a whole number from 2" in view._messages.object
    assert view.shown() is before
    view.chunk = 4
    settle()
    assert not view._messages.visible
    assert view.shown().result.attrs["chunk"] == 4


def test_while_a_picture_is_computed_only_the_newest_request_is_kept(view: StabilityView) -> None:
    hold, drawn = threading.Event(), []
    LANE.submit("blocker", Job(lambda job: hold.wait(DEADLINE), lambda r: None, lambda e: None))
    view._status.param.watch(lambda event: drawn.append(view.shown().result.attrs["spec"]["gain"]), "object")
    for gain in (1.1, 1.2, 1.3, 1.4):
        view.gain = gain
    hold.set()
    settle()
    assert drawn == [1.1, 1.4]


def test_a_layer_takes_the_place_of_made_up_gates() -> None:
    view = StabilityView(source="layer")
    drawing = view.shown()
    assert drawing.result.attrs["model"] == "gspn_nano"
    assert "channel" in view._texts["caption"].object
    first = view.layer
    view.layer = view.param.layer.objects[-1]
    settle()
    assert view.shown().result.attrs["layer"] == view.layer != first
    view.channel = 10_000
    settle()
    assert "channel must be from 0 to" in view._messages.object
    view.param.update(channel=2, direction="bottom_top")
    settle()
    assert view.shown().result.attrs["spec"]["direction"] == "bottom_top"
    assert not view._messages.visible


def test_show_opens_made_up_gates_or_a_layer() -> None:
    assert wb.show(page="stability").source == "synthetic"
    view = wb.show("gspn_nano", "coffee", page="stability", layer="stage2.block1")
    assert (view.source, view.layer) == ("layer", "stage2.block1")
    image = wb.load_image("coffee", size=48)
    assert wb.show(wb.load_model("gspn_nano"), image, page="stability").shown().result.attrs["gates"] == "layer"
    with pytest.raises(ValueError, match="swin_nano"):
        wb.show("swin_nano", page="stability")
    with pytest.raises(ValueError, match="stage2"):
        wb.show("gspn_nano", page="stability", layer="stage2.blok1")


def test_a_link_is_followed_and_a_bad_one_is_named() -> None:
    query = {"normalisation": "tanh", "gain": 1.2, "cross": 11, "length": 17, "chunk": 5, "dtype": "bf16"}
    spec = StabilityView.from_address(query).shown().result.attrs["spec"]
    assert {name: spec[name] for name in query} == query
    bad = StabilityView.from_address({"chunk": 1})
    assert not bad.followed
    assert "The link could not be followed" in bad._messages.object
    assert bad.shown().result.attrs["spec"]["chunk"] is None


def test_the_python_of_the_page_computes_what_is_shown(view: StabilityView) -> None:
    view.param.update(normalisation="softmax", input_weight="complement", seed=3)
    settle()
    for page in (view, StabilityView(source="layer", layer="stage2.block1")):
        scope: dict[str, Any] = {}
        exec(page._code.value, scope)
        assert scope["result"].drop_attrs().equals(page.shown().result.drop_attrs())


def test_files_hold_what_is_shown(view: StabilityView, tmp_path) -> None:
    path = tmp_path / "stability.nc"
    path.write_bytes(view.downloads.file("NetCDF").read())
    assert load_result(path).equals(view.shown().result)
    assert view.downloads.buttons["NetCDF"].filename == f"stability_{view.shown().result.attrs['hash']}.nc"
    assert view.downloads.file("CSV").read().startswith(b"variable,dimension,at,value\n")


def test_the_scan_is_measured_when_asked(view: StabilityView) -> None:
    assert "Not measured yet" in view._latency.object
    view.measure_now()
    settle()
    assert "scan, reference backend" in view._latency.object
    assert "Floor" in view._latency.object


def test_an_uploaded_picture_takes_the_place_until_another_is_chosen(view: StabilityView) -> None:
    given = view.shown().result["given"]
    view.upload = wb.show(page="stability", image=wb.load_image("coffee", size=24)).upload
    settle()
    assert "x_sha256" in view.shown().result.attrs
    assert 'x=wb.load_image("your_picture.png"' in view._code.value
    view.image = wb.list_images()[-1]
    settle()
    assert view.upload is None
    assert not view.shown().result["given"].equals(given)


def test_the_sliders_of_stops_show_every_number(view: StabilityView) -> None:
    view.length = 13
    settle()
    assert view.shown().result.sizes["line"] == 13
