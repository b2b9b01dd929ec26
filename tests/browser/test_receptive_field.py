"""The Receptive field page in a real browser: pointer, keyboard, streaming, files, and nothing asked of the network."""

import re

import pytest

pytestmark = pytest.mark.browser

SIZES = [(1280, 800), (1920, 1080)]
SHOWN = "smallest centred square with 50 % of the mass"
SMALL = 'models=["swin_nano","nat_nano"]&count=2'


def open_page(visit, query=""):
    visit.open(f"receptive-field?{query}", shown=SHOWN)
    finished(visit)
    visit.page.locator(".curve-ranked canvas").first.wait_for(timeout=60_000)
    return visit


def finished(visit):
    visit.page.wait_for_selector("text=Finished", timeout=90_000)


def units(visit):
    """The cells that the status names, one for each model."""
    return re.findall(r"\(row (\d+), column (\d+)\)", visit.status())


def click(visit, figure, right, down):
    """Click at a place of a figure, and wait until the status names another cell for every model."""
    before = units(visit)
    visit.page.locator(figure).first.scroll_into_view_if_needed()
    box = visit.box(figure)
    visit.page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    visit.page.wait_for_function(UNITS_DIFFER, arg=[list(unit) for unit in before], timeout=60_000)


#: Whether the status names a cell for every model, and none of them as before.
UNITS_DIFFER = r"""before => {
  const now = [...(window.__statuses()[0] || "").matchAll(/\(row (\d+), column (\d+)\)/g)]
  return now.length === before.length && now.every((m, i) => m[1] !== before[i][0] || m[2] !== before[i][1])
}"""


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_the_page_opens_on_three_models_without_errors_overlaps_or_foreign_requests(visit):
    open_page(visit)
    for name in ("gspn_nano", "swin_nano", "nat_nano"):
        assert f"{name} stage2.block2: cell (row 8, column 8), 8 images" in visit.status()
    visit.page.locator(".difference canvas").first.wait_for(timeout=60_000)
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in visit.page.locator(".bk-Figure").all()]
    assert len(boxes) == 7  # three maps, the photograph, two curves and the difference
    boxes.append(visit.page.locator(".receptive-field-numbers").first.bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]
    assert boxes[0]["y"] == boxes[1]["y"] == boxes[2]["y"]
    assert visit.foreign == []
    assert visit.errors == []


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_a_click_on_a_map_or_the_photograph_moves_the_unit_of_all_models(visit):
    open_page(visit, SMALL)
    click(visit, ".map-2", 0.3, 0.3)
    first = units(visit)
    assert first[0] == first[1] != ("8", "8")
    click(visit, ".photograph", 0.7, 0.5)
    assert units(visit)[0] == units(visit)[1] != first[0]
    finished(visit)
    assert visit.errors == []


def test_a_run_can_be_stopped_and_goes_on(visit):
    open_page(visit, SMALL)
    number = visit.page.get_by_label("Number of crops")
    number.fill("64")
    visit.page.keyboard.press("Enter")
    cancel = visit.page.get_by_role("button", name="Cancel")
    visit.page.wait_for_selector("text=/partial: \\d+ of 64 images/", timeout=60_000)
    cancel.click()
    visit.page.wait_for_selector("text=Stopped", timeout=10_000)
    assert "64 images" in visit.status()
    assert cancel.is_disabled()
    visit.page.get_by_role("button", name="Go on").click()
    finished(visit)
    assert "cell (row 8, column 8), 64 images" in visit.status()
    assert visit.errors == []


def test_the_page_can_be_used_with_the_keyboard_alone(visit):
    open_page(visit, SMALL)
    keyboard = visit.page.keyboard
    wanted = {"remove model 1", "Add a model", "move the unit one cell down", "Centre", "Run again", "Copy link"}
    reached: set[str] = set()
    for _ in range(160):
        keyboard.press("Tab")
        name = visit.page.evaluate("() => window.__focused()")
        reached.add(name)
        if name == "Copy link":
            break
    assert wanted <= reached
    visit.page.get_by_role("button", name="move the unit one cell down").focus()
    keyboard.press("Enter")
    visit.wait_for_status("(row 9, column 8)")


def test_settings_seeds_and_ready_made_comparisons_change_the_maps(visit):
    open_page(visit, 'models=["gspn_nano"]&count=1')
    visit.page.get_by_text("Settings").first.click()
    visit.page.get_by_label("Seed").first.fill("3")
    visit.page.keyboard.press("Enter")
    visit.wait_for_status("gspn_nano(seed=3) stage2.block2")
    visit.page.get_by_role("combobox", name="Comparison").click()
    visit.page.get_by_role("menuitem", name="GSPN: aligned or released merge, off-centre unit").click()
    visit.wait_for_status("gspn_nano(merge=released) stage2.block2: cell (row 4, column 11)")
    assert visit.page.get_by_role("alert").count() == 0
    assert visit.errors == []


def test_files_are_saved_under_names_that_tell_models_and_hash(visit):
    open_page(visit, SMALL)
    for label, suffix in (("Figure PNG", "png"), ("NetCDF", "nc.zip"), ("CSV", "csv")):
        with visit.page.expect_download(timeout=60_000) as download:
            visit.page.get_by_role("button", name=label, exact=True).click()
        name = download.value.suggested_filename
        assert re.fullmatch(rf"receptive_field_swin_nano_nat_nano_[0-9a-f]{{16}}\.{re.escape(suffix)}", name)
    assert visit.errors == []


def test_a_size_that_does_not_fit_is_one_sentence_and_the_picture_stays(visit):
    open_page(visit, SMALL)
    before = visit.status()
    visit.page.get_by_text("Settings").nth(1).click()
    visit.page.get_by_label("Kernel").fill("31")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert (
        "nat_nano takes images whose sides are multiples of 4 pixels, at least"
        in visit.page.get_by_role("alert").inner_text()
    )
    assert visit.status() == before
    assert visit.errors == []


def test_a_link_restores_the_page(visit):
    open_page(visit, 'models=["gspn_nano(chunk=4)","nat_nano"]&layers=["stage1.block1"]&row=3&col=30&count=1')
    assert "gspn_nano(chunk=4) stage1.block1: cell (row 3, column 30), 1 image;" in visit.status()
    assert "nat_nano stage2.block2: cell (row 1, column 15), 1 image;" in visit.status()
    visit.page.get_by_role("button", name="Copy link").click()
    link = visit.page.evaluate("navigator.clipboard.readText()")
    visit.page.goto(link.replace("row=3", "row=5"))
    visit.wait_for_status("cell (row 5, column 30), 1 image;")
    assert visit.errors == []
