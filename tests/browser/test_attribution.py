"""The Attribution page in a real browser: pointer, keyboard, running and cancelling, files, and no foreign request."""

import io
import re

import numpy as np
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

SIZES = [(1280, 800), (1920, 1080)]
SHOWN = "time, measured"


def open_page(visit, query=""):
    return visit.open(f"attribution{query}", SHOWN)


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_the_page_opens_on_a_finished_picture_without_errors_or_foreign_requests(visit):
    open_page(visit)
    assert "gspn_nano Saliency of class" in visit.status()
    assert "swin_nano Saliency of class" in visit.status()
    assert visit.page.get_by_text("An attribution is not an explanation").count() == 1
    assert visit.page.get_by_text("the class numbers mean nothing").count() == 1
    assert visit.page.locator(".bk-Figure").count() == 3
    assert visit.foreign == []
    assert visit.errors == []


@pytest.mark.parametrize("query", ["?other=none", "?method=neuron_gradient"])
@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_nothing_is_wider_than_the_window_and_no_two_parts_overlap(visit, query):
    open_page(visit, query)
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    parts = [*visit.page.locator(".bk-Figure").all(), *visit.page.locator("table.numbers").all()]
    parts += visit.page.get_by_role("button", name="NetCDF").all()
    boxes = [box for part in parts if part.is_visible() and (box := part.bounding_box())]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]


def overlap(a, b) -> bool:
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_a_click_on_the_picture_and_on_a_map_choose_the_unit_of_both_models(visit):
    open_page(visit, "?method=neuron_gradient")
    assert visit.status().count("unit (8, 8) of stage2.block2") == 2
    for figure in (".photograph", ".attribution-b"):
        before = visit.status()
        box = visit.box(figure)
        visit.page.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 0.3 * box["height"])
        visit.page.wait_for_function("b => !window.__statuses().includes(b)", arg=before, timeout=30_000)
        first, second = (line.partition("unit ")[2].partition(" of")[0] for line in visit.status().splitlines())
        assert first == second != "(8, 8)"
        row, col = re.findall(r"\d+", first)
        expect(visit.page.get_by_label("Row", exact=True)).to_have_value(row)  # else it would overwrite what is typed
        expect(visit.page.get_by_label("Column", exact=True)).to_have_value(col)
        visit.page.get_by_label("Row", exact=True).fill("8")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_label("Column", exact=True).fill("8")
        visit.page.keyboard.press("Enter")
        visit.wait_for_status("unit (8, 8) of stage2.block2")
    assert visit.errors == []


def test_the_unit_moves_with_the_keyboard_alone(visit):
    open_page(visit, "?target=unit&other=none")
    keyboard, wanted = visit.page.keyboard, "move the unit one cell down"
    for _ in range(30):
        keyboard.press("Tab")
        if visit.page.evaluate("() => window.__focused()") == wanted:
            break
    assert visit.page.evaluate("() => window.__focused()") == wanted
    keyboard.press("Enter")
    visit.wait_for_status("Saliency of unit (9, 8) of stage2.block2")


def choose(visit, label, option):
    visit.page.get_by_label(label, exact=True).first.click()
    visit.page.locator(".MuiMenuItem-root").get_by_text(option, exact=True).click()


def test_a_long_run_says_how_far_it_is_and_cancel_keeps_the_picture(visit):
    open_page(visit, "?model=gspn_nano&other=none&stride=1")
    before = visit.status()
    choose(visit, "Method", "Occlusion")
    visit.page.wait_for_selector("text=/Occlusion of gspn_nano: pass \\d+ of \\d+/", timeout=60_000)
    visit.page.get_by_role("button", name="Cancel").click()
    visit.page.wait_for_selector("text=Cancelled", timeout=10_000)
    assert visit.status() == before
    choose(visit, "Method", "Grad-CAM")
    visit.wait_for_status("Grad-CAM of class")
    assert visit.errors == []


def test_a_method_that_does_not_run_on_a_model_says_why_and_the_picture_stays(visit):
    open_page(visit, "?other=none")
    before = visit.status()
    choose(visit, "Method", "DeepLIFT")
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert "gspn_nano has none of them" in visit.page.get_by_role("alert").inner_text()
    assert visit.status() == before


def test_the_sign_and_the_outliers_change_the_caption_at_once(visit):
    open_page(visit, "?method=input_x_gradient&other=none")
    choose(visit, "Show", "with sign")
    visit.page.wait_for_selector("text=/with sign; linear colours/", timeout=30_000)
    assert visit.errors == []


def test_a_link_restores_the_page_and_a_slow_method_follows(visit):
    open_page(visit, "?model=swin_nano&method=integrated_gradients&steps=8&other=none&target=class&number=2")
    visit.wait_for_status("swin_nano Integrated gradients of class 2: score")
    assert visit.page.get_by_text("completeness gap", exact=True).count() == 1


def test_a_link_that_cannot_be_followed_says_so_and_shows_the_defaults(visit):
    open_page(visit, "?target=class&number=10&other=none")
    assert visit.page.get_by_role("alert").inner_text().startswith("The link could not be followed")
    assert visit.status().count("the one with the highest score") == 2
    visit.page.wait_for_function("() => location.search.includes('target=predicted')")
    assert not visit.page.get_by_label("Class number", exact=True).is_visible()
    assert visit.page.get_by_role("alert").inner_text().startswith("The link could not be followed")
    choose(visit, "Method", "Grad-CAM")
    visit.wait_for_status("swin_nano Grad-CAM of class")
    assert "other=swin_nano" in visit.page.url


def test_a_number_out_of_its_range_is_refused_in_words(visit):
    open_page(visit, "?model=swin_nano&method=integrated_gradients&steps=8&other=none")
    visit.wait_for_status("Integrated gradients")
    visit.page.get_by_label("Steps on the path", exact=True).fill("0")
    visit.page.keyboard.press("Tab")
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert "must be at least 8, not 0" in visit.page.get_by_role("alert").inner_text()


def test_files_of_what_is_shown_can_be_downloaded(visit):
    open_page(visit, "?model=swin_nano&other=none")
    for kind, start in (("PNG", b"\x89PNG"), ("NetCDF", b"CDF\x02"), ("npz", b"PK")):
        with visit.page.expect_download(timeout=60_000) as download:
            visit.page.get_by_role("button", name=kind).first.click()
        data = open(download.value.path(), "rb").read()  # noqa: SIM115
        assert data.startswith(start)
        assert download.value.suggested_filename.startswith("attribution_swin_nano_saliency_")
    with np.load(io.BytesIO(data)) as arrays:
        assert arrays["attribution"].shape == (3, 64, 64)


def test_the_page_copies_python_and_its_link(visit):
    open_page(visit, "?model=swin_nano&other=none&method=layer_grad_cam")
    visit.page.get_by_role("button", name="Copy as Python").click()
    visit.page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('import workbench')")
    assert 'wb.attribute(model, image, "layer_grad_cam"' in visit.page.evaluate("navigator.clipboard.readText()")
    visit.page.get_by_role("button", name="Copy link").click()
    visit.page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('method=layer_grad_cam')")


def test_the_dark_theme_is_a_button_away(visit):
    open_page(visit, "?other=none")
    light = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    visit.page.get_by_label("Toggle theme").first.click()
    visit.page.wait_for_function("light => getComputedStyle(document.body).backgroundColor !== light", arg=light)
    assert visit.errors == []
