"""The Attribution page without a server: set a parameter, wait for the lane, look at what the page shows."""

import re
import threading
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import torch
import xarray as xr

from workbench.analysis.attribution import METHODS, displayed
from workbench.images import load_image
from workbench.models import load_model
from workbench.plots.attribution import map_data
from workbench.views import attribution_request
from workbench.views.attribution import NONE, AttributionView
from workbench.views.attribution_figures import Look, top_of
from workbench.views.attribution_request import Panel
from workbench.views.lane import LANE, Job
from workbench.views.show import PAGES
from workbench.views.state import KERNELS
from workbench.views.text import Html

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


def visible(view: AttributionView) -> set[str]:
    return {name for name, control in view.layout.optional.items() if control.visible}


def test_the_page_opens_on_a_finished_picture_of_two_models() -> None:
    view = AttributionView()
    assert [panel.result.attrs["model"] for panel in panels(view)] == ["gspn_nano", "swin_nano"]
    assert {panel.source.method for panel in panels(view)} == {"saliency"}
    assert all(figure.pane.object is not None for figure in (view.picture, *view.figures))
    assert not view._messages.visible
    assert "An attribution is not an explanation" in words(view.body.select(Html)[-1])
    assert PAGES["attribution"].route == "/attribution"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_drawn_or_says_in_one_sentence_why_not(view: AttributionView, method: str) -> None:
    before = view.shown()
    results = change(view, method=method, steps=8, samples=3, window=16, stride=16)
    if method == "deep_lift":  # this model has no module for which it has rules
        assert view._messages.visible
        assert "swin_nano has none of them" in view._messages.object
        assert view.shown() is before
        assert "last finished picture stays" in words(view.layout.words)
        return
    assert not view._messages.visible, view._messages.object
    assert results[0].attrs["spec"]["method"] == method
    assert METHODS[method].title in words(view._status)
    assert METHODS[method].title in words(view.layout.headings[0])


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("saliency", {"target"}),
        ("integrated_gradients", {"target", "steps", "baseline"}),
        ("occlusion", {"target", "window", "stride", "baseline"}),
        ("noise_tunnel", {"target", "noise", "samples", "sigma", "seed"}),
        ("layer_grad_cam", {"target", "cam_layer"}),
        ("neuron_gradient", {"layer", "unit"}),
    ],
)
def test_only_the_controls_that_a_method_needs_are_shown(method: str, shown: set[str]) -> None:
    view = AttributionView(model="swin_nano", other=NONE)
    view.layout._page.param.update(method=method, steps=8, samples=2, window=32)
    assert visible(view) == shown
    settle()


def test_two_panels_show_the_controls_of_both_methods(view: AttributionView) -> None:
    change(view, other="swin_nano", other_method="layer_grad_cam", target="class")
    assert visible(view) == {"other_method", "target", "number", "other_cam_layer"}
    change(view, method="neuron_gradient")
    assert visible(view) == {"other_method", "target", "number", "layer", "unit", "other_cam_layer"}
    assert [panel.unit is None for panel in panels(view)] == [False, True]


@pytest.mark.parametrize(
    ("method", "values", "spec"),
    [
        ("integrated_gradients", {"steps": 16, "baseline": "white"}, {"steps": 16, "baseline": "white"}),
        ("integrated_gradients", {"steps": 8}, {"baseline": "black"}),
        ("occlusion", {"window": 20, "stride": 12}, {"window": (20, 20), "stride": (12, 12), "baseline": "zero"}),
        ("occlusion", {"window": 0, "stride": 0}, {"window": (8, 8), "stride": (4, 4)}),
        (
            "noise_tunnel",
            {"noise": "vargrad", "samples": 3, "sigma": 0.3, "seed": 5},
            {"noise": "vargrad", "samples": 3, "sigma": 0.3, "seed": 5},
        ),
        ("layer_grad_cam", {"cam_layer": "stage1.block2"}, {"cam_layer": "stage1.block2"}),
    ],
)
def test_the_options_reach_the_spec(
    view: AttributionView, method: str, values: dict[str, Any], spec: dict[str, Any]
) -> None:
    (result,) = change(view, method=method, **values)
    assert not view._messages.visible, view._messages.object
    assert spec.items() <= result.attrs["spec"].items()


def test_the_highest_logits_are_listed_and_random_weights_are_named(view: AttributionView) -> None:
    model = load_model("swin_nano", device="cpu")
    with torch.no_grad():
        logits = model(load_image("coffee", model.input_size).tensor)[0]
    classes = [number for number, _ in panels(view)[0].classes]
    assert classes == logits.topk(5).indices.tolist()
    assert f"1.{classes[0]}: {float(logits.max()):.3g}" in words(view.layout.classes)
    assert "random weights, so the class numbers mean nothing" in words(view.layout.classes)
    assert panels(view)[0].result.attrs["spec"]["target"] == classes[0]
    (result,) = change(view, target="class", number=classes[1])
    assert result.attrs["spec"]["target"] == classes[1]
    assert float(result["score"]) == pytest.approx(float(logits[classes[1]]), abs=1e-4)


def test_a_number_without_effect_asks_for_nothing(view: AttributionView, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    change(view, method="input_x_gradient")
    monkeypatch.setattr(view, "submit", lambda *args, **kwargs: asked.append(args))
    view.param.update(number=3, seed=7, steps=32, row=2)  # the predicted class is explained, by one gradient
    assert asked == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"target": "class", "number": 10}, "target must be a whole number from 0 to 9, one of 10 classes; got 10."),
        ({"method": "neuron_gradient", "channel": 500}, "channel must be a whole number from 0 to"),
        ({"method": "occlusion", "window": 65}, "window must fit into the picture of 64 x 64 pixels"),
        (
            {"method": "layer_grad_cam", "target": "unit", "layer": "stage1.block1"},
            "shows the map of an earlier layer than",
        ),
    ],
)
def test_what_cannot_be_computed_is_one_sentence_and_the_picture_stays(
    view: AttributionView, values: dict[str, Any], sentence: str
) -> None:
    before, numbers = view.shown(), view.layout.numbers.object
    change(view, **values)
    assert view._messages.visible
    assert sentence in view._messages.object.replace("&#x27;", "'")
    assert view.shown() is before
    assert view.layout.numbers.object == numbers
    assert view.layout.cancel.disabled
    change(view, method="saliency", target="predicted")
    assert not view._messages.visible


def test_with_two_panels_the_sentence_names_the_one_that_cannot_be_computed() -> None:
    view = AttributionView(other="swin_nano", other_method="input_x_gradient")
    change(view, other_method="deep_lift")
    assert view._messages.object.startswith("DeepLIFT of swin_nano: ")
    assert "</" not in view._messages.object


def test_a_unit_is_chosen_by_a_click_by_numbers_and_by_arrows(view: AttributionView) -> None:
    change(view, target="unit", layer="stage1.block1")
    view.picture._tapped(5.5, -3.5)  # cells across, cells down
    settle()
    assert panels(view)[0].result.attrs["spec"]["unit"] == (3, 5)
    view.figures[0]._tapped(63.9, -0.1)  # pixels of the picture of 64 x 64
    settle()
    assert (view.row, view.col) == (0, 31)
    view.figures[0]._tapped(70.0, -3.0)
    assert (view.row, view.col) == (0, 31)
    view.move(1, 1)
    (result,) = change(view, channel=4)
    assert result.attrs["explains"] == "unit (1, 31) of stage1.block1, channel 4"
    assert "unit (1, 31) of stage1.block1" in words(view._status)
    assert panels(view)[0].classes == ()
    assert view.layout.classes.object == ""


def test_a_click_chooses_nothing_where_a_class_is_explained(view: AttributionView) -> None:
    place = view.row, view.col
    view.picture._tapped(0.5, -0.5)
    view.figures[0]._tapped(1.0, -1.0)
    assert (view.row, view.col) == place


def test_the_unit_keeps_its_place_of_the_picture_on_other_grids(view: AttributionView) -> None:
    change(view, method="neuron_gradient", layer="stage1.block1")
    change(view, row=6, col=29)
    results = change(view, other="gspn_nano")
    assert [result.attrs["spec"]["unit"] for result in results] == [(6, 29), (3, 14)]
    assert [panel.grid for panel in panels(view)] == [(32, 32), (16, 16)]
    assert change(view, layer="stage2.block2")[0].attrs["spec"]["unit"] == (3, 14)
    results = change(view, method="saliency", other_method="neuron_gradient")  # now only the second has a unit
    assert [result.attrs["spec"]["unit"] for result in results] == [None, (3, 14)]


def test_sign_and_outliers_change_the_picture_at_once_and_compute_nothing(
    view: AttributionView, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = change(view, method="input_x_gradient")
    hv.render(view.figures[0].pane.object)
    monkeypatch.setattr(attribution_request, "attribute", lambda *args, **kwargs: pytest.fail("computed again"))
    monkeypatch.setattr(view, "submit", lambda *args, **kwargs: pytest.fail("asked the lane"))
    view.outlier = 10.0
    (handles,) = view.figures[0]._drawn.values()
    drawn = handles["map"]["source"].data["image"][0]
    expected = displayed(result["attribution"], "absolute_value", 10.0).values
    np.testing.assert_array_equal(drawn, map_data(result, expected)["image"][0])
    assert "hold 90 % of their sum" in words(view.layout.captions[0])
    view.sign = "all"
    np.testing.assert_array_equal(view.looks()[0].shown, displayed(result["attribution"], "all", 10.0))
    hv.render(view.figures[0].pane.object)
    view.opacity = 0.25
    assert [handles["map"]["glyph"].global_alpha for handles in view.figures[0]._drawn.values()] == [0.25]


def test_one_scale_is_shared_only_by_attributions_in_one_unit(view: AttributionView) -> None:
    change(view, method="saliency", other="swin_nano", other_method="noise_tunnel", samples=3)
    first, second = view.looks()
    summed = [np.abs(panel.result["attribution"].sum("colour").values) for panel in panels(view)]
    assert first.top == second.top
    for look, values in zip((first, second), summed, strict=True):
        np.testing.assert_allclose(look.shown, np.minimum(values / first.top, 1), rtol=1e-5, atol=1e-9)
    assert all("their colours are comparable" in words(caption) for caption in view.layout.captions)
    change(view, noise="vargrad")  # squares of gradients
    assert view.looks()[0].top != view.looks()[1].top
    assert all("not comparable with the other panel" in caption.object for caption in view.layout.captions)
    change(view, other="gspn_nano", other_method="saliency")  # a score of another model
    assert not view.looks()[0].shared


def test_the_top_of_a_scale_is_what_attributions_are_divided_by() -> None:
    values = np.array([[0.0, 1.0], [-2.0, 8.0]])
    assert top_of(values, np.array([[0.0, 0.25], [-0.5, 1.0]])) == 4
    assert top_of(values, np.array([[0.0, 1.0], [-1.0, 1.0]])) == 1
    assert np.isnan(top_of(np.zeros((2, 2)), np.zeros((2, 2))))


def test_a_panel_that_only_shows_what_was_cut_does_not_raise_the_top_of_a_shared_scale(
    view: AttributionView, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(view, other="swin_nano", other_method="noise_tunnel", samples=2)
    low, high = (panel.result["attribution"] for panel in panels(view))
    monkeypatch.setattr(low, "values", np.linspace(0, 1, low.size).reshape(low.shape))
    monkeypatch.setattr(high, "values", np.where(np.arange(high.size).reshape(high.shape) == 0, 100.0, 0.0))
    first, second = view.looks()
    assert set(np.unique(second.shown)) == {0, 1}
    assert first.top == second.top < 3
    summed = low.sum("colour").values
    np.testing.assert_allclose(first.shown, np.minimum(summed / first.top, 1), rtol=1e-5)


def test_maps_of_two_layers_are_not_said_to_be_comparable(view: AttributionView) -> None:
    change(view, method="layer_grad_cam", other="swin_nano")
    change(view, other_cam_layer="stage1.block1")
    assert not view.looks()[0].shared
    change(view, other_cam_layer=view.cam_layer)
    assert view.looks()[0].shared


@pytest.mark.parametrize(
    ("sign", "sentence"), [("positive", "is above 0"), ("negative", "is below 0"), ("all", "is other than 0")]
)
def test_an_empty_picture_says_what_it_has_none_of(sign: str, sentence: str) -> None:
    look = Look(np.zeros((2, 2)), sign, 2.0, np.nan, shared=False, alone=True)
    assert look.words() == f"no attribution {sentence}."


def test_a_unit_outside_of_the_grid_becomes_the_one_that_is_shown(view: AttributionView) -> None:
    (result,) = change(view, target="unit", row=99, col=7)
    assert result.attrs["spec"]["unit"] == (view.row, view.col) == (15, 7)


def test_the_numbers_say_what_they_mean(view: AttributionView) -> None:
    (result,) = change(view, method="integrated_gradients", steps=16)
    text = words(view.layout.numbers)
    for name in ("score at the baseline", "convergence delta", "completeness gap", "passes", "time, measured"):
        assert name in text
    assert f"{float(result['convergence_delta']):.4g}" in text
    assert f"{100 * float(result['completeness_gap']):.3g} %" in text
    assert "the sum of all attributions minus that difference" in text
    assert "role='status' aria-live='polite'" in view._status.object
    change(view, method="saliency")
    assert "completeness gap" not in words(view.layout.numbers)
