"""The Latency page without a server: press its buttons, wait for the lane, look at what the page shows."""

import json
import re
import threading
import time
from typing import Any

import pytest

import workbench as wb
from workbench.analysis import latency_sweep as sweeps
from workbench.analysis.latency_file import read_latency
from workbench.views import latency as module
from workbench.views import latency_layers, latency_recorded, latency_request
from workbench.views.lane import LANE, Job
from workbench.views.latency import LatencyView
from workbench.views.latency_request import MEASURED, LatencySweepSpec
from workbench.views.state import KERNELS

DEADLINE = 120  # seconds
SMALL: dict[str, Any] = {"names": ["depthwise 7x7", "linear attention"], "sizes": "4, 8, 12", "budget": 0.02}


def settle() -> None:
    """Wait until nothing of what the lane was asked for is left; a sweep queues again after each of its points."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with LANE._changed:
            if not LANE._waiting and LANE._running is None:
                return
        time.sleep(0.005)
    raise AssertionError("The lane did not come to rest.")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing measured yet, kernels that count as compiled, and no first look by itself."""
    compiled = threading.Event()
    compiled.set()
    monkeypatch.setattr(KERNELS, "ready", compiled)
    monkeypatch.setattr(module, "when_loaded", lambda call: None)
    MEASURED.forget()
    latency_layers.MEASURED.clear()


@pytest.fixture
def view() -> LatencyView:
    return LatencyView(**SMALL)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def measured(view: LatencyView) -> LatencyView:
    view.start()
    settle()
    return view


def test_measuring_draws_every_point_and_tells_exponents_and_machine(view: LatencyView) -> None:
    assert "Nothing has been measured yet" in words(view._texts["progress"].object)
    measured(view)
    drawing = view.shown()
    assert drawing.complete
    assert drawing.measured == drawing.planned == 6
    assert "Finished : 6 of 6 points" in words(view._texts["progress"].object)
    assert "aria-live='polite'" in view._status.object
    numbers = words(view._texts["numbers"].object)
    assert all(word in numbers for word in ("depthwise 7x7", "linear attention", "exponent", "residual", "12²"))
    machine = words(view._texts["machine"].object)
    assert all(word in machine for word in ("copy bandwidth", "matrix rate", "threads", "torch.utils.benchmark"))
    assert view.figure.pane.object is not None
    assert view._bar.value == 100
    assert view._stop.disabled
    assert not view._messages.visible


def test_a_partial_result_is_shown_after_every_point(view: LatencyView) -> None:
    seen: list[int] = []
    view._texts["numbers"].param.watch(lambda event: seen.append(view.shown().measured), "object")
    measured(view)
    assert sorted(set(seen) - {0}) == [1, 2, 3, 4, 5, 6]


def test_a_timing_taken_while_another_job_is_queued_is_not_disturbed_by_it(view, monkeypatch) -> None:
    events: list[str] = []

    def timed(run, device, seconds, most=None):
        events.append("timing begins")
        LANE.submit("a click", Job(lambda job: events.append("the click is answered"), lambda r: None, lambda e: None))
        time.sleep(0.03)  # in which a second worker would answer it
        found = wb.analysis.latency.time_runs(run, device, seconds, most)
        events.append("timing ends")
        return found

    monkeypatch.setattr(sweeps, "time_runs", timed)
    measured(view)
    assert events == ["timing begins", "timing ends", "the click is answered"] * 6


def test_a_cancelled_sweep_leaves_a_valid_partial_file(view, monkeypatch, tmp_path) -> None:
    calls: list[int] = []

    def timed(run, device, seconds, most=None):
        calls.append(1)
        if len(calls) == 4:
            view.halt()
        return wb.analysis.latency.time_runs(run, device, seconds, most)

    monkeypatch.setattr(sweeps, "time_runs", timed)
    measured(view)
    assert len(calls) == 4
    assert view.shown().measured == 3
    assert "Stopped : 3 of 6 points" in words(view._texts["progress"].object)
    assert view._stop.disabled
    path = tmp_path / "partial.json"
    path.write_bytes(view.downloads.file("JSON").read())
    sweep = read_latency(path)
    assert not sweep.attrs["complete"]
    assert int(sweep["median"].notnull().sum()) == 3
    assert len(json.loads(path.read_text())["results"]) == 3


def test_files_hold_what_is_shown(view: LatencyView, tmp_path) -> None:
    measured(view)
    path = tmp_path / "latency.json"
    path.write_bytes(view.downloads.file("JSON").read())
    assert read_latency(path)["median"].equals(view.shown().sweep["median"])
    lines = view.downloads.file("CSV").read().decode().splitlines()
    assert lines[0].startswith("what,size,median,p20,p80,bytes,flops,floor,peak,n,noisy,reason,batch")
    assert len(lines) == 7
    assert view.downloads.file("Figure PNG").read().startswith(b"\x89PNG")
    assert view.downloads.buttons["CSV"].filename == f"latency_{view.shown().sweep.attrs['hash']}.csv"


def test_nothing_measured_is_nothing_to_save(view: LatencyView) -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        view.downloads.file("JSON")
    assert "nothing to save" in view._messages.object
    assert view.downloads.file("Figure PNG").read().startswith(b"\x89PNG")


def test_a_page_takes_a_first_look_and_the_next_one_shows_it(monkeypatch) -> None:
    quick = LatencySweepSpec(("depthwise 7x7",), (4, 8), budget=0.02)
    monkeypatch.setattr(module, "QUICK", quick)
    monkeypatch.setattr(latency_request, "QUICK", quick)
    monkeypatch.setattr(module, "when_loaded", lambda call: call())
    first = LatencyView(part_seconds=0.01)
    settle()
    assert "A first look" in first._texts["progress"].object
    assert "Press Measure" in words(first._texts["progress"].object)
    assert "Finished : 4 of 4 layers" in words(first.layers._texts["progress"].object)
    monkeypatch.setattr(sweeps, "time_runs", None)  # nothing is timed again
    second = LatencyView(part_seconds=0.01)
    settle()
    assert second.shown().sweep.identical(first.shown().sweep)
    assert second.layers.drawing.result.identical(first.layers.drawing.result)


def test_a_first_look_that_was_left_is_taken_anew(monkeypatch) -> None:
    quick = LatencySweepSpec(("depthwise 7x7",), (4, 8), budget=0.02)
    monkeypatch.setattr(module, "QUICK", quick)
    monkeypatch.setattr(latency_request, "QUICK", quick)
    MEASURED.put(quick, wb.latency_sweep(quick.names, quick.sizes, budget=quick.budget, cancelled=lambda: True))
    monkeypatch.setattr(module, "when_loaded", lambda call: call())
    view = LatencyView(part_seconds=0.01)
    settle()
    assert view.shown().sweep.attrs["complete"]


def test_a_page_opens_on_what_was_measured_of_its_own_settings(view: LatencyView) -> None:
    measured(view)
    assert LatencyView(**SMALL).shown().sweep.identical(view.shown().sweep)
    assert LatencyView().shown().sweep is None


@pytest.mark.parametrize("sizes", ["", "16; 32", "-4", "8 5000", " ".join(map(str, range(1, 30))), "1" * 9])
def test_sizes_that_are_none_are_refused_in_a_sentence_and_what_is_shown_stays(view, sizes: str) -> None:
    measured(view)
    before = view.shown()
    view.sizes = sizes
    view.start()
    settle()
    assert view._messages.visible
    assert re.search("[Ss]izes|sides", view._messages.object)
    assert view.shown() is before
    view.sizes = "8 4"
    measured(view)
    assert not view._messages.visible
    assert view.shown().request.sizes == (4, 8)


def test_a_dtype_that_this_machine_cannot_multiply_is_a_sentence_at_once_and_when_measured(view, monkeypatch) -> None:
    monkeypatch.setattr(module, "products_run", lambda dtype: False)
    monkeypatch.setattr(sweeps, "products_run", lambda dtype: False)
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    view.dtype = "bfloat16"
    settle()
    assert "bfloat16 cannot be measured on this machine" in view._messages.object
    measured(view)
    assert "cannot be measured on this CPU" in view._messages.object
    assert view._stop.disabled
    view.dtype = "float32"
    measured(view)
    assert not view._messages.visible
    assert view.shown().complete


def test_what_the_sweep_refuses_is_a_sentence_and_the_page_waits_no_longer(view: LatencyView) -> None:
    view.channels = 33
    measured(view)
    assert "channels must be a multiple of 32" in view._messages.object
    assert view._stop.disabled
    assert "Nothing has been measured yet" in words(view._texts["progress"].object)
    view.param.update(channels=32, names=[])
    measured(view)
    assert "at least one name" in view._messages.object


def test_the_newest_of_two_sweeps_is_shown(view: LatencyView) -> None:
    hold = threading.Event()
    LANE.submit("blocker", Job(lambda job: hold.wait(DEADLINE), lambda r: None, lambda e: None))
    view.start()
    view.sizes = "6"
    view.start()
    hold.set()
    settle()
    assert view.shown().request.sizes == (6,)
    assert view.shown().complete


def test_while_the_kernels_are_compiled_nothing_is_timed(view, monkeypatch) -> None:
    waiting = []
    monkeypatch.setattr(KERNELS, "ready", threading.Event())
    monkeypatch.setattr(KERNELS, "when_ready", waiting.append)
    view.start()
    view.layers.start()
    settle()
    assert "being compiled" in view._texts["progress"].object
    assert "being compiled" in view.layers._texts["progress"].object
    assert view.shown().sweep is None
    view.halt()
    assert "being compiled" not in view._texts["progress"].object
    for call in waiting:
        call()
    settle()
    assert view.shown().sweep is None  # it was cancelled
    assert view.layers.drawing is not None


def test_a_link_is_followed_and_a_bad_one_is_named() -> None:
    query = {"names": ["axial attention"], "sizes": "5, 7", "backward": True, "batch": 2, "floors": True}
    view = LatencyView.from_address(query)
    assert {name: getattr(view, name) for name in query} == query
    assert view.followed
    for bad, told in (({"names": ["axial atention"]}, "axial attention"), ({"sizes": "x"}, "whole numbers")):
        page = LatencyView.from_address(bad)
        assert not page.followed
        assert told in page._messages.object


def test_the_python_of_the_page_measures_what_is_chosen(view: LatencyView) -> None:
    scope: dict[str, Any] = {}
    exec(view._code.value, scope)
    assert tuple(scope["result"].attrs["spec"]["names"]) == view.request().names
    assert scope["result"].attrs["spec"]["sizes"] == (4, 8, 12)


def test_show_opens_the_page_on_a_model_for_its_layers() -> None:
    view = wb.show("swin_nano", "coffee", page="latency", part_seconds=0.01)
    view.layers.open()  # a larger model would keep the lane for long, so it is measured when a person asks
    settle()
    assert view.layers.drawing is None
    assert "Press Measure the layers" in words(view.layers._texts["progress"].object)
    view.layers.start()
    settle()
    result = view.layers.drawing.result
    assert result.attrs["model"] == "swin_nano"
    assert result.attrs["complete"]
    assert all(figure.pane.object is not None for figure in view.layers.figures.values())
    assert "whole model" in view.layers._texts["table"].object


def test_layers_can_be_stopped_and_what_was_measured_stays(view, monkeypatch) -> None:
    view.part_seconds = 0.01
    shown = []

    def stop(event: Any) -> None:
        shown.append(view.layers.drawing.done)
        if view.layers.drawing.done == 2:
            view.layers.halt()

    view.layers._texts["table"].param.watch(stop, "object")
    view.layers.start()
    settle()
    assert max(shown) == 2
    assert "Stopped : 2 of 4 layers" in words(view.layers._texts["progress"].object)
    assert view.layers.stop.disabled


def test_recordings_are_drawn_beside_the_live_lines_and_fitted_by_themselves(view, monkeypatch, tmp_path) -> None:
    measured(view)
    document = json.loads(view.downloads.file("JSON").read())
    document["machine"]["device"], document["commit"] = "Some GPU", "0123456789abcdef"
    for row in document["results"]:
        for name in ("median", "p20", "p80"):
            row[name] = 1e-6 * row["size"] ** 4
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    (tmp_path / "broken.json").write_text('{"format": "other"}')
    monkeypatch.setattr(latency_recorded, "FOLDER", tmp_path)
    page = LatencyView(**SMALL)
    assert page.recorded == ["gpu"]
    assert len(page.recordings.problems) == 1
    assert page.recordings.problems[0].startswith("broken.json is no latency file: ")
    assert str(tmp_path) not in page.recordings.problems[0]
    recorded, live = words(page._texts["recorded"].object), words(page._texts["numbers"].object)
    assert "Some GPU" in recorded
    assert recorded.count("2.00") == 2
    assert "quadratic" in recorded
    assert "Some GPU" not in live
    assert page.shown().sweep["exponent"].equals(view.shown().sweep["exponent"])
    assert "dashed, recorded as 'Some GPU (gpu)'" in page._texts["caption"].object.replace("&#x27;", "'")
    assert "commit 0123456789" in page._texts["caption"].object
    page.recorded = []
    assert page._texts["recorded"].object == ""


def test_a_file_of_a_person_is_drawn_and_a_wrong_one_is_a_sentence(view: LatencyView) -> None:
    measured(view)
    data = view.downloads.file("JSON").read()
    view.add_recording(data, "mine.json")
    assert view.given_shown == ["mine.json"]
    assert "mine.json" in view._texts["recorded"].object
    view.add_recording(data[:-9], "cut.json")
    assert view._messages.object.startswith("cut.json is no latency file: ")
    assert view.given_shown == ["mine.json"]
