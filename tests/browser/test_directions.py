"""The Directions page in a real browser: it plays by itself, answers to clicks, and its files open."""

import io
import re
import time
from itertools import pairwise
from pathlib import Path

import PIL.Image
import pytest

pytestmark = pytest.mark.browser

SHOWN = "cells in the cone"
#: The frame that the figure shows, and how many it has shown since `COUNT`.
FRAME = "() => Bokeh.documents[0].get_model_by_name('fronts').tags[0]"
COUNT = """() => {
  const store = Bokeh.documents[0].get_model_by_name('fronts')
  window.__drawn = []
  store.properties.tags.change.connect(() => window.__drawn.push(store.tags[0]))
}"""


def open_page(visit, query=""):
    visit.open(f"directions?{query}", shown=SHOWN)
    visit.page.wait_for_function("() => Bokeh.documents[0].get_model_by_name('fronts') !== null")
    return visit


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_the_page_opens_without_errors_overlaps_or_foreign_requests(visit):
    open_page(visit)
    assert "gspn_nano stage1.block2: what leaves the source at (row 14, column 17)" in visit.status()
    visit.page.get_by_text("being compiled").wait_for(state="hidden", timeout=120_000)  # or things move once it is done
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in visit.page.locator(".bk-Figure").all()]
    assert len(boxes) == 3  # the photograph, the fronts and the gates
    names = ("Play", "Step back", "Step forward", "Sheet PNG", "Copy as Python")
    boxes += [visit.page.get_by_role("button", name=name).first.bounding_box() for name in names]
    boxes.append(visit.page.get_by_label("learned weights and gates of the directions").bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]
    assert visit.foreign == []
    assert visit.errors == []


def test_the_player_shows_every_frame_in_turn_without_a_word_to_the_server(visit):
    sent = []
    visit.page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(frame)))
    open_page(visit, "frame=0&speed=15")
    visit.page.evaluate(COUNT)
    visit.page.get_by_role("button", name="Play", exact=True).click()
    visit.page.wait_for_function("() => window.__drawn.length >= 3", timeout=30_000)
    before, start = len(sent), time.monotonic()
    visit.page.wait_for_function("() => window.__drawn.length >= 33", timeout=30_000)
    seconds = time.monotonic() - start
    assert len(sent) == before
    assert seconds < 10  # 2 seconds where nothing else runs
    visit.page.get_by_role("button", name="Pause", exact=True).click()
    frame = visit.page.evaluate(FRAME)
    visit.wait_for_status(f"Now step {frame} of 17")
    drawn = visit.page.evaluate("window.__drawn")
    assert all((b - a) % 18 == 1 for a, b in pairwise(drawn[:33]))  # around the end, too
    visit.page.get_by_role("button", name="Step forward").click()
    visit.wait_for_status(f"Now step {(frame + 1) % 18} of 17")
    assert visit.errors == []


def test_a_click_moves_the_source_and_a_query_is_reached_from_afar(visit):
    open_page(visit, "frame=3")
    box = visit.box(".fronts canvas")
    visit.page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.7 * box["height"])
    visit.page.wait_for_function("() => !window.__statuses().some(s => s.includes('row 14, column 17'))")
    row, col = map(int, re.search(r"\(row (\d+), column (\d+)\)", visit.status()).groups())
    assert row > 14
    assert col < 17
    visit.page.get_by_role("button", name="towards a query").click()
    steps = max(row, 31 - row, col, 31 - col)
    visit.wait_for_status(f"what reaches the query at (row {row}, column {col})")
    visit.wait_for_status(f"Now step {steps - 3} of {steps}")
    assert visit.errors == []


def test_the_movie_and_the_sheet_open(visit):
    open_page(visit, "layer=stage2.block2")
    steps = int(re.search(r"Now step \d+ of (\d+)", visit.status()).group(1))
    checks = {"GIF": lambda image: image.n_frames == steps + 1, "Sheet PNG": lambda image: image.width > 1500}
    for name, check in checks.items():
        with visit.page.expect_download(timeout=60_000) as download:
            visit.page.get_by_role("button", name=name).click()
        path = Path(download.value.path())
        assert check(PIL.Image.open(io.BytesIO(path.read_bytes())))
    assert visit.errors == []
