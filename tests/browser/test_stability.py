"""The Stability page in a real browser: a slider, an overflow, presets and links, and nothing asked of the network."""

import pytest

pytestmark = pytest.mark.browser

#: The largest value that the matrix of the accumulated weight holds.
LARGEST = """() => {
  for (const m of Bokeh.documents[0]._all_models.values())
    if (m.type === 'GlyphRenderer' && m.glyph.type === 'Image')
      return Math.max(...m.data_source.data.image[0].filter(v => !isNaN(v)))
}"""


def open_page(visit, query=""):
    return visit.open(f"stability?{query}", shown="largest row-sum error of a line")


@pytest.mark.parametrize("visit", [(1280, 800)], indirect=True)
def test_the_page_opens_without_errors_overlaps_or_foreign_requests(visit):
    open_page(visit)
    assert "Row-stochastic, stable, dense. Nothing explodes" in visit.status()
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in visit.page.locator(".bk-Figure").all()]
    assert len(boxes) == 7
    boxes.append(visit.page.get_by_text("Linear bound: sum of max").first.bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]
    assert visit.foreign == []
    assert visit.errors == []


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_a_slider_moved_by_the_keyboard_changes_pictures_and_numbers(visit):
    open_page(visit)
    before = visit.page.evaluate(LARGEST)
    visit.page.locator("input[type=range]").first.focus()
    for _ in range(5):
        visit.page.keyboard.press("ArrowRight")
    visit.wait_for_status("W grows by 5 % a line")
    assert visit.page.evaluate(LARGEST) > 5 * before
    assert "gain=1.05" in visit.page.url
    assert visit.errors == []


def test_an_overflow_is_explained_and_the_page_goes_on(visit):
    open_page(visit, "normalisation=none&gain=1.25&noise=0.0&dtype=fp16")
    assert "float16 holds at most 65504; h passed it at line 45" in visit.status()
    assert visit.page.get_by_text("✗ no").first.is_visible()
    visit.page.get_by_role("combobox", name="Preset").click()
    visit.page.get_by_role("menuitem", name="GSPN", exact=True).click()
    visit.wait_for_status("Row-stochastic, stable, dense. Nothing explodes")
    assert visit.page.get_by_role("alert").count() == 0
    assert visit.errors == []


def test_a_preset_sets_the_condition_and_the_link(visit):
    open_page(visit)
    visit.page.get_by_role("combobox", name="Preset").click()
    visit.page.get_by_role("menuitem", name="SPN", exact=True).click()
    visit.wait_for_status("Not row-stochastic, stable, dense. Nothing explodes, but W shrinks")
    visit.page.wait_for_function("() => location.search.includes('input_weight=complement')", timeout=30_000)
    assert "normalisation=absolute" in visit.page.url
    assert visit.errors == []
