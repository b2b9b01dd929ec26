"""The Patterns page in a real browser: every family, pointer, keyboard, links, and nothing asked of the network."""

import re

import pytest

pytestmark = pytest.mark.browser

SIZES = [(1280, 800), (1920, 1080)]
SMALL = "&rows=14&cols=14&row=4&col=6"
FAMILIES = [
    "Swin: windows, then shifted windows", "NAT: the nearest keys", "DiNAT: near keys, then dilated",
    "GNA: generalised neighbourhood", "HaloNet: blocks with a halo", "MaxViT: block, then grid",
    "CSWin: cross of stripes", "Stripes", "Axial: own column, then own row", "CLEAR: a disc",
    "PowerAttention in raster order", "Full attention",
]  # fmt: skip

#: What the page's figures hold: the windows under the pointer, the texts beside them, and the matrices' images.
DRAWN = """() => {
  const found = {boxes: 0, texts: [], matrices: []}
  for (const m of Bokeh.documents[0]._all_models.values()) {
    if (m.type !== 'GlyphRenderer') continue
    const data = m.data_source.data
    if (m.glyph.type === 'Quad' && m.data_source.tags.length) found.boxes += data.left.length
    if (m.glyph.type === 'Text' && data.text.some(t => t.endsWith(' keys'))) found.texts.push(...data.text)
    if (m.glyph.type === 'Image' && data.image[0].length === 480 * 480) found.matrices.push(data.dw[0])
  }
  return found
}"""


def open_page(visit, query=""):
    return visit.open(f"patterns?{query}", shown="keys per query: mean")


def drawn(visit):
    return visit.page.evaluate(DRAWN)


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_the_page_opens_on_two_patterns_without_errors_overlaps_or_foreign_requests(visit):
    open_page(visit)
    assert "swin(window=7, shift=3): query (row 25, column 30) reads 49, then 49 keys of 3136" in visit.status()
    assert "nat(kernel=7): query (row 25, column 30) reads 49 keys of 3136" in visit.status()
    visit.page.locator(".matrix-b canvas").first.wait_for(timeout=60_000)
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in visit.page.locator(".bk-Figure").all()]
    assert len(boxes) == 4
    boxes.append(visit.page.get_by_label("numbers of the patterns").bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]
    assert boxes[0]["y"] == boxes[1]["y"]  # side by side at both sizes
    assert visit.foreign == []
    assert visit.errors == []


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_every_family_can_be_selected(visit):
    open_page(visit, "other=none&matrix=false")
    for label in FAMILIES:
        visit.page.get_by_role("combobox", name="Pattern").click()
        visit.page.get_by_role("menuitem", name=label, exact=True).click()
        name = {"Stripes": "stripes", "CLEAR": "disc", "PowerAttention": "power", "HaloNet": "halo"}
        first = re.split(r"[: ]", label)[0]
        visit.wait_for_status(f"{name.get(first, first.lower())}(")
        assert visit.page.get_by_role("alert").count() == 0
    assert visit.errors == []


def test_a_click_moves_the_query_of_both_patterns(visit):
    open_page(visit, SMALL)
    box = visit.box(".pattern-a")
    visit.page.mouse.click(box["x"] + 0.12 * box["width"], box["y"] + 0.7 * box["height"])
    visit.page.wait_for_function("() => !window.__statuses().some(s => s.includes('row 4, column 6'))", timeout=30_000)
    places = re.findall(r"\(row (\d+), column (\d+)\)", visit.status())
    assert len(places) == 2
    assert places[0] == places[1]
    assert visit.errors == []


def test_the_window_and_the_number_of_keys_follow_the_pointer(visit):
    open_page(visit, SMALL)
    before = visit.status()
    box = visit.box(".pattern-b")
    for share in (0.3, 0.31):
        visit.page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
    visit.page.wait_for_function(f"() => ({DRAWN})().texts.length > 0")
    found = drawn(visit)
    assert found["texts"][1] == "49 keys"
    assert re.fullmatch(r"row \d+, column \d+", found["texts"][0])
    assert found["boxes"] == 2
    assert visit.status() == before  # a pointer that passes chooses nothing


def test_the_page_can_be_used_with_the_keyboard_alone(visit):
    open_page(visit, SMALL)
    keyboard = visit.page.keyboard
    wanted = {"move the query one cell left", "move the query one cell down", "Affinity", "Patterns", "Copy link"}
    reached: set[str] = set()
    for _ in range(60):
        keyboard.press("Tab")
        name = visit.page.evaluate("() => window.__focused()")
        reached.add(name)
        if name == "move the query one cell down":
            keyboard.press("Enter")
        if name == "Copy link":
            break
    assert wanted <= reached
    visit.wait_for_status("row 5, column 6) reads")


def test_the_slider_of_blocks_answers_to_arrow_keys(visit):
    open_page(visit, SMALL)
    visit.page.get_by_label("Blocks in the stack (0: all)").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.wait_for_status("after 1 block it depends on 49 positions")


def test_a_bad_parameter_is_one_sentence_and_the_picture_stays(visit):
    open_page(visit, SMALL)
    before = visit.status()
    visit.page.get_by_label("Shift").first.fill("9")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert "shift must be a whole number from 0 to 6" in visit.page.get_by_role("alert").inner_text()
    assert visit.status() == before
    assert visit.errors == []


def test_a_box_on_the_matrix_shows_single_pairs(visit):
    open_page(visit, SMALL + "&other=none")
    visit.page.locator(".matrix-a canvas").first.wait_for(timeout=60_000)
    visit.page.locator(".matrix-a").first.scroll_into_view_if_needed()
    assert drawn(visit)["matrices"] == [196]
    box = visit.box(".matrix-a")
    visit.page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.3 * box["height"])
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    visit.page.mouse.up()
    visit.page.wait_for_function(f"() => ({DRAWN})().matrices[0] < 150", timeout=30_000)
    assert visit.errors == []


def test_a_link_restores_the_page_and_pages_link_to_each_other(visit):
    open_page(visit, "pattern=disc(radius=3)&other=none&rows=12&cols=20&row=3&col=5&blocks=2")
    assert visit.status().startswith("disc(radius=3): query (row 3, column 5) reads 25 keys of 240; after 2 blocks")
    current = visit.page.locator("nav a[aria-current=page]")
    assert current.inner_text() == "Patterns"
    visit.page.get_by_role("link", name="Affinity").click()
    visit.page.wait_for_selector("text=mass within 3 cells", timeout=60_000)
    assert current.inner_text() == "Affinity"
    visit.page.get_by_role("link", name="Patterns").click()
    visit.page.wait_for_selector("text=keys per query: mean", timeout=60_000)
    assert visit.errors == []
