"""The Patterns page without a server: set a parameter, wait for the lane, look at what the page shows."""

import re
import threading
from typing import Any

import holoviews as hv
import numpy as np
import pytest

from workbench.analysis.families import FAMILIES
from workbench.analysis.patterns import PatternSpec, list_patterns, patterns
from workbench.plots.patterns import mosaic_of, panels
from workbench.views.lane import LANE, Job
from workbench.views.pattern_request import AGGREGATION
from workbench.views.patterns import PatternsView
from workbench.views.show import PAGES, page_at

DEADLINE = 120  # seconds


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """A page draws its matrices once their code is compiled; these tests start after that."""
    AGGREGATION.when_ready(lambda: None)
    assert AGGREGATION.ready.wait(DEADLINE)


@pytest.fixture
def view() -> PatternsView:
    """A page on a small grid."""
    return PatternsView(rows=14, cols=21, row=4, col=6)


def settle() -> None:
    """Wait until everything that the lane was asked for is delivered: it works in order, one job at a time."""
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


def change(view: PatternsView, **values: Any) -> list[Any]:
    """Set parameters and return the results that the page then shows."""
    view.param.update(**values)
    settle()
    return shown(view)


def shown(view: PatternsView) -> list[Any]:
    assert view._drawing is not None
    return list(view._drawing.results)


def words(pane: Any) -> str:
    """A pane's HTML without its tags."""
    return re.sub(r"<[^>]+>", "", pane.object)


def test_the_page_opens_on_two_patterns_their_matrices_and_numbers(view: PatternsView) -> None:
    settle()
    assert [r.attrs["spec"]["pattern"] for r in shown(view)] == ["swin(window=7, shift=3)", "nat(kernel=7)"]
    assert all(figure.pane.object is not None for figure in (*view.figures, *view.matrices))
    assert [panel.visible for panel in view._panels] == [True] * 4
    assert "keys per query: mean" in words(view._numbers)
    assert not view._messages.visible
    assert not view._compiling.visible


@pytest.mark.parametrize("family", list_patterns())
def test_every_family_can_be_chosen(family: str) -> None:
    view = PatternsView(other="none", matrix=False)
    view.controls[0].family.value = family
    settle()
    assert not view._messages.visible, view._messages.object
    assert shown(view)[0].attrs["family"] == family
    assert view.pattern == list_patterns()[family]
    assert list(view.controls[0].arguments) == list(FAMILIES[family].defaults)


def test_the_inputs_of_a_pattern_write_and_follow_the_page(view: PatternsView) -> None:
    choice = view.controls[0]
    choice.arguments["shift"].value = 2
    settle()
    assert view.pattern == "swin(window=7, shift=2)"
    change(view, pattern="halo(block=4, halo=1, border=clamp)")
    assert choice.family.value == "halo"
    assert {name: widget.value for name, widget in choice.arguments.items()} == {
        "block": 4, "halo": 1, "border": "clamp",
    }  # fmt: skip


def test_a_query_moves_in_both_patterns(view: PatternsView) -> None:
    results = change(view, row=9, col=20)
    assert [r.attrs["position"] for r in results] == [(9, 20), (9, 20)]
    exact = patterns(PatternSpec("nat(kernel=7)", (14, 21), (9, 20)))
    np.testing.assert_array_equal(results[1]["keys"], exact["keys"])


def test_a_click_chooses_the_query_in_whichever_panel(view: PatternsView) -> None:
    figure = view.figures[0]
    figure._tapped(2 * 6.5, -2 * 3.5)  # the large panel has two cells per position here
    settle()
    assert (view.row, view.col) == (3, 6)
    assert figure._mosaic is not None
    row, col, scale = figure._mosaic.places()[2]
    figure._tapped(col + scale * 8.5, -(row + scale * 11.5))
    settle()
    assert (view.row, view.col) == (11, 8)
    figure._tapped(1e6, 1e6)
    assert (view.row, view.col) == (11, 8)


def test_a_page_opens_near_the_middle_of_its_grid() -> None:
    view = PatternsView(rows=10, cols=20, other="none", matrix=False, pattern="axial")
    assert (view.row, view.col) == shown(view)[0].attrs["position"] == (4, 11)


@pytest.mark.parametrize(("step", "corner"), [((-1, -1), (0, 0)), ((1, 1), (13, 20)), ((1, -1), (13, 0))])
def test_moving_stops_at_the_borders(view: PatternsView, step: tuple[int, int], corner: tuple[int, int]) -> None:
    for _ in range(25):
        view.move(*step)
    settle()
    assert shown(view)[0].attrs["position"] == corner


def test_another_grid_keeps_the_place(view: PatternsView) -> None:
    results = change(view, rows=28, cols=42)
    assert results[0].attrs["position"] == (9, 13)
    assert results[0].sizes["row"] == 28


def test_without_a_second_pattern_its_panels_are_hidden(view: PatternsView) -> None:
    assert len(change(view, other="none")) == 1
    assert [panel.visible for panel in view._panels] == [True, False, True, False]
    assert len(change(view, other="disc(radius=3)", matrix=False)) == 2
    assert [panel.visible for panel in view._panels] == [True, True, False, False]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"pattern": "swin(window=7, shift=7)"}, "shift must be a whole number from 0 to 6"),
        ({"pattern": "swin(window=0, shift=0)"}, "window must be at least 1 position a side; got 0."),
        ({"pattern": "swim(window=7)"}, "There is no pattern named"),
        ({"other": "dinat(kernel=7, dilation=9)"}, "needs a map of at least 7 x 9 = 63 rows"),
        ({"rows": 5}, "needs a map of at least 7 rows"),
        ({"pattern": "maxvit(window=5)"}, "size must be a multiple of the window 5"),
    ],
)
def test_bad_parameters_are_one_sentence_and_the_picture_stays(
    view: PatternsView, values: dict[str, Any], sentence: str
) -> None:
    settle()
    before, table = view._drawing, view._numbers.object
    change(view, **values)
    assert view._messages.visible
    assert sentence in view._messages.object
    assert view._messages.object.count(".") <= 2
    assert view._drawing is before
    assert view._numbers.object == table
    change(view, pattern="axial()", other="none", rows=14)
    assert not view._messages.visible


def test_the_slider_shows_the_stack_block_by_block(view: PatternsView) -> None:
    settle()
    assert view._slider.end == 6  # the neighbourhoods need six blocks to cross 21 columns
    change(view, blocks=1)
    assert "after 1 block it depends on 49 positions" in words(view._status)
    assert "after 1 block," in words(view._captions[0])
    change(view, blocks=3)
    change(view, pattern="axial()", other="none")
    assert (view.blocks, view._slider.end) == (0, 2)  # two are all there are


def test_the_tiles_decide_the_bound(view: PatternsView) -> None:
    change(view, pattern="swin(window=7, shift=0)", query_tile=7, key_tile=7)
    assert "6.00 x" in words(view._numbers)
    assert "tiles of 7 x 7 queries and 7 x 7 keys" in words(view._numbers)


def test_the_numbers_name_the_usual_implementation_and_what_it_masks(view: PatternsView) -> None:
    change(view, rows=14, cols=14)
    text = words(view._numbers)
    assert "0.0 %, 43.0 %" in text
    assert "swin: rolled, cut into windows, masked; nat: FlexAttention, raster tiles of 64 tokens" in text
    assert "96 channels of 2 bytes" in text


def test_what_never_happens_is_said(view: PatternsView) -> None:
    change(view, pattern="gna(kernel=7, stride=7)", other="none")
    assert "never" in words(view._numbers)
    assert "never on all" in words(view._status)


def test_zooming_into_the_matrix_aggregates_what_is_in_view(view: PatternsView) -> None:
    settle()
    figure = view.matrices[0]
    figure.zoom((0, 12), (30, 42))
    np.testing.assert_array_equal(np.unique(figure._view), np.unique(figure._relation[30:42, :12]))
    before = figure._view
    figure.zoom((400, 500), (0, 9))  # nothing of the matrix is in view
    assert figure._view is before


def test_the_matrix_follows_the_slider_and_the_query(view: PatternsView) -> None:
    settle()
    figure = view.matrices[0]
    hv.render(figure.pane.object)  # from here on the figure is patched
    (handles,) = figure._drawn.values()
    whole = handles["matrix"]["source"].data["image"][0]
    assert np.nanmax(whole) == shown(view)[0]["until_global"]
    change(view, blocks=1)
    change(view, row=13, col=20)
    first = handles["matrix"]["source"].data["image"][0]
    assert np.nanmax(first) == 1
    assert np.isfinite(first).sum() < np.isfinite(whole).sum()
    assert handles["query"]["source"].data["top"].tolist() == [-(14 * 21 - 1)]


def test_the_maps_are_patched_and_not_built_again(view: PatternsView) -> None:
    settle()
    figure = view.figures[1]
    before = figure.pane.object
    hv.render(before)
    (handles,) = figure._drawn.values()
    change(view, blocks=2)
    results = change(view, row=0, col=0)
    assert figure.pane.object is before
    drawn = handles["heat"]["source"].data["image"][0]
    mosaic = mosaic_of(results[1])
    np.testing.assert_array_equal(drawn[::-1], mosaic.fill(panels(results[1], 2)))
    assert handles["boxes"]["source"].data["top"].tolist() == [box[3] for box in mosaic.boxes((0, 0))]


def test_the_code_of_the_page_computes_what_is_drawn(view: PatternsView) -> None:
    drawn = change(view, row=2, col=3, other="disc(radius=4)", key_tile=4)[-1]
    found: dict[str, Any] = {}
    exec(view.code(), found)
    assert found["result"].attrs["hash"] == drawn.attrs["hash"]
    np.testing.assert_array_equal(found["result"]["blocks"], drawn["blocks"])


def test_a_link_opens_the_page_that_it_was_copied_from(view: PatternsView) -> None:
    change(view, pattern="dinat(kernel=3, dilation=4)", other="none", row=3, col=12)
    change(view, blocks=2)
    again = PatternsView.from_address({name: getattr(view, name) for name in PatternsView.link_state()})
    assert not again._messages.visible
    assert [r.attrs["hash"] for r in shown(again)] == [r.attrs["hash"] for r in shown(view)]
    assert again._status.object == view._status.object


@pytest.mark.parametrize(
    "address", [{"pattern": "swim"}, {"other": "nat(kernl=3)"}, {"image": "cofee"}, {"rows": "abc"}, {"rows": 65}]
)
def test_a_part_of_a_link_that_does_not_exist_is_named_and_the_page_opens(address: dict[str, Any]) -> None:
    view = PatternsView.from_address(address)
    assert view._messages.visible
    assert "link" in view._messages.object
    assert len(shown(view)) == 2


def test_an_address_names_its_page_and_unknown_ones_the_first() -> None:
    assert [page_at(page.route) for page in PAGES.values()] == list(PAGES)
    assert page_at("/behind/a/prefix/patterns/") == "patterns"
    assert page_at("/") == page_at("") == page_at("/dashboard") == "affinity"
