"""The Receptive field page without a server: set a parameter, wait for the lane, look at what the page shows."""

import html
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from workbench.analysis.image_folder import sample_crops
from workbench.analysis.receptive_field import receptive_field
from workbench.models import load_model
from workbench.plots.receptive_field import patches
from workbench.views.field_choices import COMPARISONS
from workbench.views.lane import LANE, Job
from workbench.views.receptive_field import ReceptiveFieldView
from workbench.views.show import PAGES
from workbench.views.state import KERNELS

DEADLINE = 300  # seconds
TWO = ["swin_nano", "nat_nano"]


@pytest.fixture(scope="module", autouse=True)
def warm_kernels() -> Iterator[None]:
    """A page that warms its kernels draws itself again; these tests start after that, and leave no work behind."""
    KERNELS.start()
    assert KERNELS.ready.wait(DEADLINE)
    yield
    while LANE._waiting or LANE._running:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def page() -> ReceptiveFieldView:
    """A page with two models over two images; building one takes longer than most tests."""
    return ReceptiveFieldView(models=TWO, count=2)


@pytest.fixture
def view(page: ReceptiveFieldView) -> ReceptiveFieldView:
    """The page as it opens, finished."""
    as_opened = {name: page.param[name].default for name in page.param if name not in ("name", "layers", "row", "col")}
    page.param.update(**as_opened | {"models": TWO, "layers": ["stage2.block2"] * 2, "count": 2, "row": 8, "col": 8})
    settle(page)
    page.refresh()
    settle(page)
    return page


def turn() -> None:
    """Wait until the lane has done one step of what it is at work on."""
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


def settle(view: ReceptiveFieldView) -> None:
    """Wait until the lane has done what the page asked for last, and the page has drawn it."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        turn()
        asked, drawing = view._asked, view.shown()
        if asked is None or (drawing is not None and drawing.request == asked and not (drawing.running or view._busy)):
            return
    raise AssertionError("The lane did not finish.")


def change(view: ReceptiveFieldView, **values: Any) -> list[xr.Dataset]:
    """Set parameters and return the results that the page then shows."""
    view.param.update(**values)
    settle(view)
    return shown(view)


def shown(view: ReceptiveFieldView) -> list[xr.Dataset]:
    drawing = view.shown()
    assert drawing is not None
    return [result for result in drawing.results if result is not None]


def units(view: ReceptiveFieldView) -> list[tuple[int, int]]:
    return [result.attrs["spec"]["unit"][0] for result in shown(view)]


def message(view: ReceptiveFieldView) -> str:
    """The sentence that the page shows, or nothing."""
    return html.unescape(view._messages.object) if view._messages.visible else ""


def words(pane: Any) -> str:
    """A pane's HTML without its tags."""
    return re.sub(r"<[^>]+>", "", pane.object)


def test_the_page_opens_on_one_image_of_three_models_and_goes_on_to_all() -> None:
    view = ReceptiveFieldView(count=3)
    assert [result.attrs["model"] for result in shown(view)] == ["gspn_nano", "swin_nano", "nat_nano"]
    assert all(result.attrs["images"] >= 1 for result in shown(view))
    assert [panel.visible for panel in view.layout.panels] == [True, True, True, False]
    settle(view)
    assert [int(result["count"]) for result in shown(view)] == [3, 3, 3]
    assert all(result.attrs["complete"] for result in shown(view))
    assert "Finished" in words(view.layout.words)
    assert view.layout.bar.value == 100
    assert message(view) == ""


def test_what_is_shown_is_what_receptive_field_computes(view: ReceptiveFieldView) -> None:
    result = change(view, row=3, col=12, channels="abs_sum", gradient="abs")[1]
    exact = receptive_field(
        load_model("nat_nano"), sample_crops(2, 64), unit=(3, 12), size=64, channels="abs_sum", gradient="abs", batch=1
    )
    assert result.attrs["hash"] == exact.attrs["hash"]
    np.testing.assert_array_equal(result["map"], exact["map"])


def test_one_channel_alone_can_be_looked_at(view: ReceptiveFieldView) -> None:
    assert change(view, channel=5)[0].attrs["spec"]["channels"] == "channel 5"
    before = view.shown()
    change(view, channel=10_000)
    assert "The layer has channels 0 to 95" in message(view)
    assert view.shown().results == before.results  # type: ignore[union-attr]


def test_the_python_of_the_page_computes_what_is_shown(view: ReceptiveFieldView) -> None:
    change(view, models=["gspn_nano(merge=released, seed=2)", "nat_nano"], row=3, col=4)
    found: dict[str, Any] = {}
    exec(view._code.value, found)
    assert [r.attrs["hash"] for r in found["results"]] == [r.attrs["hash"] for r in shown(view)]
    change(view, image="coffee", size=96)
    exec(view._code.value, found)
    assert [r.attrs["hash"] for r in found["results"]] == [r.attrs["hash"] for r in shown(view)]


def test_a_click_on_any_map_or_on_the_photograph_moves_the_unit_of_all(view: ReceptiveFieldView) -> None:
    change(view, layers=["stage1.block1", "stage2.block2"])
    view.maps[1]._tapped(64 * 0.30, -64 * 0.80)
    settle(view)
    assert (view.row, view.col) == (25, 9)
    assert units(view) == [(25, 9), (12, 4)]  # 32 x 32 and 16 x 16 cells
    view.photograph._tapped(31.5, -0.5)
    settle(view)
    assert units(view) == [(0, 31), (0, 15)]
    view.maps[0]._tapped(-3, 5)  # beside the map
    assert (view.row, view.col) == (0, 31)


@pytest.mark.parametrize(("step", "corner"), [((-1, -1), (0, 0)), ((1, 1), (15, 15)), ((1, -1), (15, 0))])
def test_moving_stops_at_the_borders(view: ReceptiveFieldView, step: tuple[int, int], corner: tuple[int, int]) -> None:
    for _ in range(20):
        view.move(*step)
    settle(view)
    assert units(view) == [corner, corner]
    view.to_centre()
    settle(view)
    assert [result.attrs["spec"]["unit_name"] for result in shown(view)] == ["centre", "centre"]


def test_the_unit_keeps_its_place_when_the_first_grid_changes(view: ReceptiveFieldView) -> None:
    change(view, layers=["stage1.block1", "stage1.block1"])
    assert (view.row, view.col) == (16, 16)  # the centre stays the centre
    change(view, row=24, col=8)
    change(view, layers=["stage2.block1", "stage1.block1"])
    assert (view.row, view.col) == (12, 4)
    change(view, size=128)
    assert (view.row, view.col) == (25, 9)


def test_models_can_be_added_and_removed_up_to_four(view: ReceptiveFieldView) -> None:
    for _ in range(2):
        view.add_model()
    settle(view)
    assert len(shown(view)) == len(set(view.models)) == 4
    assert view.layout.add.disabled
    view.add_model()
    assert "one to 4 models" in message(view)
    view.choose(view.models[:1], view.layers[:1])
    settle(view)
    assert len(shown(view)) == 1
    assert [panel.visible for panel in view.layout.panels] == [True, False, False, False]


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_ready_made_comparison_is_shown(view: ReceptiveFieldView, name: str) -> None:
    view.layout.comparisons.value = name
    settle(view)
    assert message(view) == ""
    assert len(shown(view)) == len(view.models) >= 2
    assert view.layout.comparisons.value == name == view.comparison()
    view.choose(view.models[:1], view.layers[:1])
    assert view.comparison() == ""


def test_seeds_differ_and_the_depths_grow(view: ReceptiveFieldView) -> None:
    view.compare("Three seeds of the first model")
    settle(view)
    assert [result.attrs["seed"] for result in shown(view)] == [0, 1, 2]
    assert len({result.attrs["weights_sha256"] for result in shown(view)}) == 3
    view.compare("Depth: layers of the first model")
    settle(view)
    widths = [int(result["theoretical_mixing"].sum()) for result in shown(view)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 81}, "swin_nano takes images whose sides are multiples of 4 pixels; got 81 x 81."),
        ({"models": ["swim_nano"]}, "There is no model named 'swim_nano'; did you mean swin_nano"),
        ({"models": ["gspn_nano(merg=released)"]}, "There is no setting named 'merg' in gspn_nano"),
        ({"models": ["gspn_tiny(input_size=4096)"]}, "at most 1024 pixels a side; got 4096."),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_the_picture_stays(
    view: ReceptiveFieldView, values: dict[str, Any], sentence: str
) -> None:
    before, table = shown(view), view.layout.numbers.value
    change(view, **values)
    assert sentence in message(view)
    assert shown(view) == before
    assert view.layout.numbers.value.equals(table)
    change(view, models=TWO, size=64, row=1, col=2)
    assert message(view) == ""
    assert units(view) == [(1, 2), (1, 2)]


def test_only_sizes_that_all_models_take_are_offered(view: ReceptiveFieldView) -> None:
    assert list(view.layout.sizes.options.values())[:3] == [0, 64, 96]
    change(view, models=["davit_tiny", "swin_nano"], layers=["stage1.block1", "stage1.block1"])
    offered = list(view.layout.sizes.options.values())
    assert 224 in offered
    assert all(side % 32 == 0 for side in offered)


def test_all_maps_share_one_range_of_colours(view: ReceptiveFieldView) -> None:
    figures = view.maps[:2]
    for figure in figures:
        hv.render(figure.pane.object)
    change(view, row=4, col=4, decades=2.0)
    top = max(float(result["map"].max()) for result in shown(view))
    for figure in figures:
        handles = list(figure._drawn.values())[-1]
        mapper = handles["map"]["color_mapper"]
        assert (mapper.low, mapper.high) == pytest.approx((top / 100, top))
    assert "over 2 decades, one range for all maps" in words(view.layout.shared_caption)


def test_maps_are_patched_and_not_built_again(view: ReceptiveFieldView) -> None:
    figures = [view.maps[0], view.curves[0], view.difference]
    built = [figure.pane.object for figure in figures]
    for each in built:
        hv.render(each)
    result = change(view, row=12, col=3)[0]
    assert [figure.pane.object for figure in figures] == built
    handles = list(view.maps[0]._drawn.values())[-1]
    drawn = handles["map"]["source"].data["image"][0]
    np.testing.assert_allclose(np.nan_to_num(np.flipud(drawn)), result["map"], rtol=1e-6)
    np.testing.assert_array_equal(handles["half"]["source"].data["x"], patches(result)["half"]["x"])
    before = handles["map"]["source"].data["image"][0]
    change(view, opacity=0.3)
    assert handles["map"]["source"].data["image"][0] is before
    assert handles["map"]["glyph"].global_alpha == 0.3


def test_the_difference_is_of_the_chosen_models_and_only_for_equal_sizes(view: ReceptiveFieldView) -> None:
    assert "swin_nano minus nat_nano" in words(view.layout.difference_caption)
    change(view, first=2, second=1)
    assert "nat_nano minus swin_nano" in words(view.layout.difference_caption)
    change(view, second=2)
    assert "Choose two models" in words(view.layout.difference_caption)
    assert not view.layout.difference_figure.visible
    change(view, second=1, models=["swin_nano", "swin_tiny"], layers=["stage1.block1", "stage1.block1"], count=1)
    assert "needs pictures of one size" in words(view.layout.difference_caption)
    assert message(view) == ""


def test_a_unit_outside_the_grid_becomes_the_nearest_one(view: ReceptiveFieldView) -> None:
    change(view, row=999, col=3)
    assert (view.row, view.col) == (15, 3)
    assert units(view) == [(15, 3), (15, 3)]


def test_numbers_and_sentences_name_every_model(view: ReceptiveFieldView) -> None:
    change(view, models=["nat_nano", "nat_nano(seed=1)"])
    table = view.layout.numbers.value
    assert list(table.columns) == ["scale-free number", "nat_nano stage2.block2", "nat_nano(seed=1) stage2.block2"]
    assert all("mean over" in text for text in table.set_index("scale-free number").loc["images"])
    assert "nat_nano stage2.block2" in words(view._status)
    assert "nat_nano(seed=1) stage2.block2" in words(view._status)
    assert "half of the mass lies in a centred square" in words(view._status)


def test_a_link_opens_the_page_that_it_was_copied_from(view: ReceptiveFieldView) -> None:
    change(view, models=["gspn_nano(chunk=2, seed=1)", "nat_nano"], layers=["stage1.block2", ""], row=3, col=30)
    change(view, image="coffee", size=96, gradient="square", decades=3.0)
    again = ReceptiveFieldView.from_address({name: getattr(view, name) for name in ReceptiveFieldView.link_state()})
    settle(again)
    assert not again._messages.visible
    assert [r.attrs["hash"] for r in shown(again)] == [r.attrs["hash"] for r in shown(view)]
    assert again._status.object == view._status.object


@pytest.mark.parametrize(
    "address",
    [
        {"models": ["swim_nano"]},
        {"models": 3},
        {"models": []},
        {"models": ["nat_nano"], "layers": ["stage9.block1"]},
        {"models": ["nat_nano (given)"]},
        {"image": "cofee"},
        {"count": 65},
        {"size": 50},
        {"row": "abc"},
        {"gradient": "cube"},
    ],
)
def test_a_part_of_a_link_that_does_not_exist_is_named_and_the_page_opens(address: dict[str, Any]) -> None:
    view = ReceptiveFieldView.from_address(address)
    assert "The link could not be followed" in message(view)
    assert len(shown(view)) == 3
    view.halt()


def test_the_page_is_one_of_the_served_ones() -> None:
    assert PAGES["receptive_field"].view is ReceptiveFieldView
    assert PAGES["receptive_field"].route == "/receptive-field"
