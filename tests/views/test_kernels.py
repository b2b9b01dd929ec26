"""The Kernels page without a server: choose a kernel, wait for the lane and its processes, look at what is shown."""

import csv
import io
import json
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

import workbench as wb
from kernels.inspect import TARGETS, specs
from workbench.views import kernel_request
from workbench.views.kernels import KernelsView, shortened
from workbench.views.lane import LANE, Job

DEADLINE = 300  # seconds
NAME = "delta_kernel bf16 window 32"


def settle(view: KernelsView) -> None:
    """Wait until nothing of the page is left in the lane: each turn of its jobs lets another job in."""
    owners = {(id(view), owner) for owner in ("picture", "all")}
    for _ in range(40):
        wait_for_turn()
        if not owners & {*LANE._waiting, LANE._running and LANE._running[0]}:
            return
    raise AssertionError("The page never stops asking.")


def wait_for_turn() -> None:
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


@pytest.fixture
def view() -> KernelsView:
    view = KernelsView(kernel=NAME)
    settle(view)
    return view


def words(text: str) -> str:
    return re.sub(r"<[^>]+>", " ", text)


def test_the_page_opens_on_all_kernels_with_their_costs_and_compiles_the_one_looked_at(view: KernelsView) -> None:
    table = view.layout.table.value
    assert list(table["kernel"]) == [spec["name"] for spec in specs()]
    assert set(table["target"]) == {"sm_90"}
    assert table["FLOP/B"].notna().all()
    row = table[table["kernel"] == NAME].iloc[0]
    assert row["registers"] > 0
    assert row["limited by"]
    assert "registers a thread, no spills" in words(view._status.object)
    assert "operations per byte; memory bounds it on H200 SXM" in words(view._status.object)
    assert "def delta_kernel(" in view.python.text
    assert ".visible .entry delta_kernel" in view.assembly.text
    assert "aria-live='polite'" in view._status.object
    assert view.layout.detail.visible
    assert view.mix.pane.object is not None
    assert not view._messages.visible


def test_targets_are_compared_and_have_their_own_assembly(view: KernelsView) -> None:
    view.targets = ["sm_90", "gfx942"]
    settle(view)
    table = view.layout.table.value
    assert len(table) == 2 * len(specs())
    numbers = words(view.layout.numbers.object)
    assert "sm_90" in numbers
    assert "gfx942" in numbers
    view.target = "gfx942"
    settle(view)
    assert "AMD assembly for gfx942" in view.assembly._title.object
    assert "s_endpgm" in view.assembly.text
    assert "on gfx942" in words(view._status.object)


def test_a_click_on_a_row_looks_at_its_kernel(view: KernelsView) -> None:
    names = list(view.layout.table.value["kernel"])
    other = "delta_kernel fp32 window 32"
    view.choose(names.index(other))
    settle(view)
    assert view.kernel == other
    assert view.layout.table.selection == [names.index(other)]
    assert other in view._status.object
    assert view._file("py")[0] == "delta_kernel_fp32_window_32.py"


def test_the_table_is_filtered_by_operator_and_words(view: KernelsView) -> None:
    view.op = "propagation"
    assert set(view.layout.table.value["op"]) == {"propagation"}
    view.param.update(op="all", find="Delta fp32")
    assert list(view.layout.table.value["kernel"]) == ["delta_kernel fp32 window 32"]
    view.find = "no kernel is called this"
    assert len(view.layout.table.value) == 0
    with pytest.raises(ValueError, match="nothing to save"):
        view.downloads.file("CSV")
    assert "nothing to save" in view._messages.object


def test_everything_in_the_table_is_compiled_on_request_with_progress(view: KernelsView) -> None:
    view.param.update(find="delta_kernel", targets=["sm_90", "sm_80"])
    settle(view)
    seen: list[int] = []
    view.layout.bar.param.watch(lambda event: seen.append(event.new), "value")
    view.compile_all()
    assert not view.layout.stop.disabled
    settle(view)
    table = view.layout.table.value
    assert len(table) == 4
    assert table["registers"].notna().all()
    assert "4 of 4 rows are compiled" in view.layout.words.object
    assert seen == sorted(seen)
    assert view.layout.bar.value == 100
    assert view.layout.stop.disabled


def test_a_cancelled_run_keeps_what_is_compiled_and_starts_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that compiles nothing until it is told to."""
    asked: list[str] = []

    class Never(kernel_request.Compiler):
        def submit(self, numbers: Any, target: str) -> Any:
            asked.append(target)
            return kernel_request.Future()

    monkeypatch.setattr(kernel_request, "COMPILER", Never())
    monkeypatch.setattr(kernel_request, "_compiled", {})
    view = KernelsView(kernel=NAME)
    view.halt()
    view.cancel()
    settle(view)
    view.compile_all()
    while not asked or not LANE._running:
        pass
    view.halt()
    settle(view)
    before = len(asked)
    assert view.layout.stop.disabled
    assert not view.layout.start.disabled
    settle(view)
    assert len(asked) == before < len(specs())


def test_files_hold_the_numbers_of_what_is_compiled(view: KernelsView) -> None:
    view.find = NAME
    (row,) = [json.loads(line) for line in view.downloads.file("JSON").read().splitlines()]
    assert (row["name"], row["target"]) == (NAME, "sm_90")
    (line,) = csv.DictReader(io.StringIO(view.downloads.file("CSV").read().decode()))
    assert int(line["registers"]) == row["registers"]
    assert int(line["instructions integer"]) == row["mix"]["integer"]
    assert view.python.file().read().decode() == view.python.text
    whole = view.assembly.file().read().decode()
    assert whole.startswith(view.assembly.text.rstrip())
    assert view.assembly.save.filename == "delta_kernel_bf16_window_32_sm_90.ptx"


def test_the_python_of_the_page_compiles_what_is_shown(view: KernelsView) -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(str(view._code.value), scope)
    (row,) = scope["rows"]
    assert row == kernel_request.row_of("attention", NAME, "sm_90")
    assert scope["source"] == view.python.text


def test_a_link_is_followed_and_a_bad_one_is_named() -> None:
    query = {"kernel": NAME, "target": "sm_90", "targets": ["sm_80"], "op": "attention", "find": "delta", "side": 28}
    view = KernelsView.from_address(query)
    assert {name: getattr(view, name) for name in query} == query
    assert "tiles of attention on 28 x 28" in view.layout.plans.object
    for bad, said in (({"kernel": "delta_kernel"}, "There is no kernel named"), ({"targets": ["sm_1"]}, "got sm_1")):
        page = KernelsView.from_address(bad)
        assert not page.followed
        assert said in page._messages.object.replace("&#x27;", "'")


def test_show_opens_the_page_without_a_model_and_takes_no_image() -> None:
    assert wb.show(page="kernels", kernel=NAME).kernel == NAME
    with pytest.raises(ValueError, match="shows no image"):
        wb.show(page="kernels", image="coffee")


def test_only_attention_has_a_picture_of_a_tile(view: KernelsView) -> None:
    assert not view.layout.tile.visible
    view.kernel = "forward_kernel bf16 window 32"
    settle(view)
    assert view.layout.tile.visible
    assert "a tile of 7 x 7 queries" in view.layout.tile_caption.object
    assert "BLOCK_Q 64" in view.layout.constants.object


def test_a_debuggers_tables_are_not_shown() -> None:
    text = "code\n\tret;\n\t.section\t.debug_abbrev\n.b8 1\n"
    assert shortened(text) == "code\n\tret;\n"


WITHOUT = """
import sys
sys.modules["triton"] = None  # as where there is no wheel of it
import kernels
from workbench.views.kernels import KernelsView
view = KernelsView()
view.compile_all()
table = view.layout.table.value
print(view._status.object, view._messages.object, len(table), table["FLOP/B"].notna().all())
print("neighborhood" in view.layout.plans.object)
"""


def test_without_triton_a_sentence_says_so_and_costs_and_tile_plans_are_shown() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Triton is not installed") == 2
    assert done.stdout.rstrip().endswith("True")


def test_every_target_can_be_looked_at() -> None:
    assert KernelsView.param.target.objects == list(TARGETS)
