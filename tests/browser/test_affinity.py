"""The Affinity page in a real browser: pointer, keyboard, links, uploads, and nothing asked of the network."""

import re

import pytest

pytestmark = pytest.mark.browser

SIZES = [(1280, 800), (1920, 1080)]


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_the_page_opens_on_a_finished_picture_without_errors_or_foreign_requests(visit):
    visit.open()
    assert "gspn_nano stage1.block2: cell (row 14, column 17) reads 1024 of 1024 cells" in visit.status()
    assert "swin_nano stage1.block2: cell (row 14, column 17) reads 64 of 1024 cells" in visit.status()
    assert visit.page.locator(".bk-Figure").count() == 3
    assert visit.foreign == []
    assert visit.errors == []


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_nothing_is_wider_than_the_window_and_no_two_parts_overlap(visit):
    visit.open()
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in visit.page.locator(".bk-Figure").all()]
    boxes.append(visit.page.locator("table.numbers").first.bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if _overlap(a, b)]


def _overlap(a, b) -> bool:
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_a_click_on_the_photograph_moves_the_query_of_both_models(visit):
    visit.open()
    box = visit.box(".photograph")
    visit.page.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 0.3 * box["height"])
    visit.page.wait_for_function(
        "() => !window.__statuses().some(s => s.includes('row 14, column 17'))", timeout=30_000
    )
    places = re.findall(r"\(row (\d+), column (\d+)\)", visit.status())
    assert len(places) == 2
    assert places[0] == places[1]


def test_the_second_of_two_fast_clicks_counts(visit):
    visit.open()
    box = visit.box(".photograph")
    for right, down in ((0.4, 0.3), (0.7, 0.6)):
        visit.page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    visit.page.wait_for_function(
        "() => window.__statuses().some(s => Number((s.match(/column (\\d+)/) || [])[1]) > 17)", timeout=15_000
    )


def test_a_click_on_a_map_moves_the_query_too(visit):
    visit.open()
    box = visit.box(".mosaic-b")
    visit.page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"])
    visit.page.wait_for_function(
        "() => !window.__statuses().some(s => s.includes('row 14, column 17'))", timeout=30_000
    )
    assert "gspn_nano" in visit.status()


def test_the_page_can_be_used_with_the_keyboard_alone(visit):
    visit.open()
    keyboard = visit.page.keyboard
    wanted = {"move the query one cell left", "move the query one cell down", "what it reads", "Layer", "Copy link"}
    reached: set[str] = set()
    for _ in range(60):
        keyboard.press("Tab")
        name = visit.page.evaluate("() => window.__focused()")
        reached.add(name)
        if name == "what it reads":  # the two sides are one stop, with arrow keys inside
            keyboard.press("ArrowRight")
            keyboard.press("Space")
        if name == "move the query one cell down":
            keyboard.press("Enter")
        if name == "Measure on this machine now":
            break
    assert wanted <= reached
    assert "Measure on this machine now" in reached
    visit.wait_for_status("row 15, column 17) is heard at")


def test_the_layer_slider_answers_to_arrow_keys(visit):
    visit.open()
    visit.page.get_by_label("Layer", exact=True).focus()
    visit.page.keyboard.press("ArrowRight")
    visit.wait_for_status("gspn_nano stage2.block1: cell (row 7, column 8)")


def test_a_link_restores_the_page(visit):
    visit.open("?model=swin_nano&layer=stage2.block1&other=none&row=3&col=5&side=heard")
    assert "swin_nano stage2.block1: cell (row 3, column 5) is heard at" in visit.status()
    assert "gspn_nano" not in visit.status()


def test_a_link_to_something_unknown_opens_the_defaults_and_says_so(visit):
    visit.open("?model=gspn_nono")
    assert visit.page.get_by_text("The link could not be followed").count() == 1
    assert "gspn_nano stage1.block2" in visit.status()


def test_an_upload_that_is_not_a_picture_is_refused_and_the_picture_stays(visit, tmp_path):
    visit.open()
    before = visit.status()
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    visit.page.locator("input[type=file]").first.set_input_files(str(file))
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert "image" in visit.page.get_by_role("alert").inner_text()
    assert visit.status() == before
    assert visit.errors == []


def test_nothing_is_measured_before_the_button_is_pressed_and_then_the_floor_stands_beside_it(visit):
    visit.open()
    assert visit.page.get_by_text("Not measured yet").count() == 1
    visit.page.get_by_role("button", name="Measure on this machine now").click()
    table = visit.page.get_by_label("latency on this machine")
    table.wait_for(timeout=60_000)
    assert "floor" in table.inner_text()
    assert table.locator("tbody tr").count() == 6


def test_the_page_copies_python_and_its_link(visit):
    visit.open("?row=3&col=5")
    visit.page.get_by_role("button", name="Copy as Python").click()
    visit.page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('import workbench')")
    assert "op.row((3, 5)" in visit.page.evaluate("navigator.clipboard.readText()")
    visit.page.get_by_role("button", name="Copy link").click()
    visit.page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('row=3')")


def test_the_dark_theme_is_a_button_away(visit):
    visit.open()
    light = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    visit.page.get_by_label("Toggle theme").first.click()
    visit.page.wait_for_function("light => getComputedStyle(document.body).backgroundColor !== light", arg=light)
    assert visit.errors == []


def click(visit, figure, across, down):
    box = visit.box(figure)
    visit.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_a_channel_layer_is_drawn_and_the_photograph_still_moves_the_other_panel(visit):
    visit.open("?model=davit_nano&layer=stage1.block1.channel&other=swin_nano")
    status = visit.status()
    assert "3 heads of 16 channels that read each other" in status
    assert visit.page.get_by_text("no N x N map of who reads whom among positions").count() == 1
    click(visit, ".mosaic-a", 0.2, 0.6)  # nothing to be asked for there
    click(visit, ".photograph", 0.45, 0.3)
    visit.page.wait_for_function(
        "() => !window.__statuses().some(s => s.includes('row 14, column 17'))", timeout=30_000
    )
    assert visit.status().startswith(status.splitlines()[0])
    visit.page.get_by_label("Layer", exact=True).focus()
    visit.page.keyboard.press("ArrowLeft")
    visit.wait_for_status("davit_nano stage1.block1.spatial: cell (row")
    assert visit.errors == []


@pytest.mark.parametrize("model", ["cswin_nano", "maxvit_nano", "hilo_nano", "nat_nano"])
def test_the_new_models_open_from_a_link_without_errors(visit, model):
    visit.open(f"?model={model}&other=none")
    assert f"{model} stage1" in visit.status()
    assert visit.page.locator(".bk-Figure").count() == 2
    assert visit.errors == []
    assert visit.foreign == []
