"""The Latency page in a real browser: a first look, measuring, files, links, and nothing asked of the network."""

import json
import re
from pathlib import Path

import pytest

from workbench.analysis.latency_file import read_latency

pytestmark = pytest.mark.browser

#: The CPU kernels may have to be compiled before anything is timed.
COMPILED = 300_000

SMALL = 'names=["linear attention","depthwise 7x7"]&sizes=4, 8&budget=0.05&part_seconds=0.02'


def open_page(visit, query=""):
    """Open the page, and wait until it shows something measured, if it is the first look, and is at rest."""
    visit.open(f"latency?{query}", shown="What is timed")
    visit.page.wait_for_selector("text=/A first look|Finished: \\d+ of \\d+ points/", timeout=COMPILED)
    visit.page.wait_for_selector("text=/Finished: \\d+ of \\d+ layers/", timeout=COMPILED)
    return visit


def measure(visit):
    visit.page.get_by_role("button", name="Measure", exact=True).click()
    visit.page.wait_for_selector("text=/Finished: \\d+ of \\d+ points/", timeout=COMPILED)


def saved(visit, label):
    with visit.page.expect_download(timeout=60_000) as download:
        visit.page.get_by_role("button", name=label, exact=True).click()
    return download.value


@pytest.mark.parametrize("visit", [(1280, 800), (1920, 1080)], indirect=True)
def test_the_page_opens_on_a_first_look_without_errors_overlaps_or_foreign_requests(visit):
    open_page(visit)
    visit.page.locator(".latency-roofline canvas").first.wait_for(timeout=60_000)
    assert re.search("Time grows|No power law|No exponent", visit.status())
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in visit.page.locator(".bk-Figure").all()]
    assert len(boxes) == 4  # the sweep; bars, pictures and roofline of the layers
    boxes.append(visit.page.get_by_text("Median and band from p20 to p80").first.bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]
    assert visit.foreign == []
    assert visit.errors == []


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_what_is_chosen_is_measured_and_saved_as_the_file_of_the_command(visit, tmp_path):
    open_page(visit, SMALL)
    measure(visit)
    visit.page.wait_for_selector("text=Finished: 4 of 4 points", timeout=60_000)
    file = saved(visit, "JSON")
    assert re.fullmatch(r"latency_[0-9a-f]{16}\.json", file.suggested_filename)
    sweep = read_latency(Path(file.path()))
    assert sweep.attrs["spec"]["names"] == ("linear attention", "depthwise 7x7")
    assert sweep["size"].values.tolist() == [4, 8]
    assert saved(visit, "CSV").suggested_filename.endswith(".csv")
    assert Path(saved(visit, "Figure PNG").path()).read_bytes().startswith(b"\x89PNG")
    assert visit.errors == []


def test_a_cancelled_sweep_keeps_what_was_measured(visit):
    open_page(visit, SMALL.replace("4, 8&budget=0.05", "4, 6, 8, 10, 12, 14&budget=1"))
    visit.page.get_by_role("button", name="Measure", exact=True).click()
    visit.page.wait_for_selector("text=/Measuring: [1-9]\\d* of 12 points; now/", timeout=60_000)
    visit.page.get_by_role("button", name="Cancel", exact=True).click()
    visit.page.wait_for_selector("text=/Stopped: \\d+ of 12 points/", timeout=30_000)
    document = json.loads(Path(saved(visit, "JSON").path()).read_text())
    assert not document["complete"]
    assert 1 <= len(document["results"]) < 12
    assert visit.errors == []


def test_the_keyboard_changes_what_is_measured_and_the_link_keeps_it(visit):
    open_page(visit, SMALL)
    sizes = visit.page.get_by_label("Sides: positions, a model's pixels")
    sizes.fill("6, x")
    visit.page.keyboard.press("Enter")
    button = visit.page.get_by_role("button", name="Measure", exact=True)
    button.focus()
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert "Sizes are whole numbers with commas between them" in visit.page.get_by_role("alert").inner_text()
    sizes.fill("6, 10, 14")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("() => location.search.includes('14')", timeout=30_000)
    button.focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("text=Finished: 6 of 6 points", timeout=60_000)
    assert visit.page.get_by_role("alert").count() == 0
    link = visit.page.url
    visit.page.goto(link)
    visit.page.wait_for_selector("text=Finished: 6 of 6 points", timeout=60_000)  # of this process, not timed again
    assert visit.errors == []


def test_every_control_and_button_is_reached_with_the_keyboard_alone(visit):
    open_page(visit, SMALL)
    wanted = {"Measure", "JSON", "CSV", "Figure PNG", "Copy as Python", "Copy link", "Measure the layers"}
    reached: set[str] = set()
    for _ in range(120):
        visit.page.keyboard.press("Tab")
        reached.add(visit.page.evaluate("() => window.__focused()"))
        if wanted <= reached:
            break
    assert wanted <= reached


def test_a_recorded_file_is_drawn_dashed_and_a_wrong_one_is_one_sentence(visit, tmp_path):
    open_page(visit, SMALL)
    measure(visit)
    data = Path(saved(visit, "JSON").path()).read_text()
    good, bad = tmp_path / "other.json", tmp_path / "cut.json"
    good.write_text(data.replace('"device": "', '"device": "Another machine, '))
    bad.write_text(data[:-20])
    chooser = visit.page.locator("input[type=file][accept='.json']")
    chooser.set_input_files(good)
    visit.page.wait_for_selector("text=/recorded: Another machine/", timeout=60_000)
    assert visit.page.get_by_text("dashed, recorded as 'Another machine").count() == 1
    chooser.set_input_files(bad)
    visit.page.get_by_role("alert").wait_for(timeout=30_000)
    assert "cut.json is no latency file" in visit.page.get_by_role("alert").inner_text()
    assert visit.errors == []
