"""The Kernels page in a real browser: the table, a click on a row, code that is copied, links, and no network."""

import re

import pytest

pytestmark = pytest.mark.browser

SIZES = [(1280, 800), (1920, 1080)]
NUMBER = re.compile(r"^\d+$")
DELTA = "kernel=delta_kernel%20bf16%20window%2032"


def open_page(visit, query=DELTA, compiled="registers a thread"):
    """Compiling the first kernel takes the start of a process that imports Triton."""
    visit.open(f"kernels?{query}", shown="rows are compiled")
    visit.page.wait_for_selector(f"text={compiled}", timeout=120_000)
    visit.page.get_by_label("PTX for").wait_for(timeout=120_000)
    return visit


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_the_page_opens_on_a_compiled_kernel_without_errors_overlaps_or_foreign_requests(visit):
    open_page(visit)
    assert "delta_kernel bf16 window 32 on sm_90" in visit.status()
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    parts = [".kernels-table", ".kernel-mix", ".kernel-python", ".kernel-assembly"]
    boxes = [visit.page.locator(part).first.bounding_box() for part in parts]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if overlap(a, b)]
    assert boxes[2]["y"] == boxes[3]["y"]  # source beside PTX
    assert visit.foreign == []
    assert visit.errors == []


def overlap(a, b):
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return across > 1 and down > 1


def test_a_click_on_a_row_of_the_sorted_table_looks_at_that_kernel(visit):
    open_page(visit, f"{DELTA}&find=delta")
    visit.page.locator(".tabulator-col-title", has_text="kernel").first.click()
    visit.page.locator(".tabulator-col-title", has_text="kernel").first.click()  # the other way round
    names = visit.page.locator(".tabulator-row [tabulator-field=kernel]")
    names.first.filter(has_text="delta_kernel fp32 window 32").wait_for(timeout=30_000)
    names.first.click()
    visit.wait_for_status("delta_kernel fp32 window 32 on sm_90")
    visit.page.wait_for_function("() => location.search.includes('fp32')")
    assert visit.errors == []


def test_the_code_is_copied_as_it_is_shown(visit):
    open_page(visit)
    shown = visit.page.get_by_label("Python of delta_kernel bf16 window 32").inner_text()
    visit.page.get_by_role("button", name="copy kernel-python").click()
    visit.page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('def delta_kernel')")
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == shown.strip()
    assert "out + h * D" in copied
    assert visit.errors == []


def test_all_kernels_of_the_table_are_compiled_on_request(visit):
    open_page(visit, f"{DELTA}&find=input_gradient")  # which no other test compiles in this server
    visit.page.get_by_role("button", name="Compile all in the table").click()
    visit.page.wait_for_selector("text=2 of 2 rows are compiled", timeout=120_000)
    cells = visit.page.locator(".tabulator-row [tabulator-field=registers]")
    assert cells.count() == 2
    for cell in cells.all():
        cell.filter(has_text=NUMBER).wait_for(timeout=30_000)
    assert visit.errors == []


def test_a_link_that_names_no_kernel_is_one_sentence(visit):
    open_page(visit, "kernel=scan_diagonals")
    assert "There is no kernel named 'scan_diagonals'" in visit.page.get_by_role("alert").inner_text()
    assert visit.page.locator("nav a[aria-current=page]").inner_text() == "Kernels"
    assert visit.errors == []
