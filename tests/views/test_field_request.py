"""How the Receptive field page computes: in turns, stopped and resumed, remembered, from files and into files."""

import html
import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import xarray as xr

from workbench.analysis.export import load_result
from workbench.models import load_model
from workbench.models.checkpoint import save
from workbench.views import field_memory, field_request
from workbench.views.field_request import MOST_PIXELS, FieldRequest, Images, Kept, Memory, Source, draw_fields
from workbench.views.lane import LANE, Job
from workbench.views.receptive_field import ReceptiveFieldView
from workbench.views.show import show
from workbench.views.state import KERNELS

DEADLINE = 300  # seconds
TWO = ["swin_nano", "nat_nano"]


@pytest.fixture(scope="module", autouse=True)
def warm_kernels() -> Iterator[None]:
    """A page that warms its kernels draws itself again; these tests start after that, and leave no work behind."""
    KERNELS.start()
    assert KERNELS.ready.wait(DEADLINE)
    yield
    while LANE._waiting or LANE._running:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def page() -> ReceptiveFieldView:
    """A page with two models over two images; building one takes longer than most tests."""
    return ReceptiveFieldView(models=TWO, count=2)


@pytest.fixture
def view(page: ReceptiveFieldView) -> ReceptiveFieldView:
    """The page as it opens, finished."""
    as_opened = {name: page.param[name].default for name in page.param if name not in ("name", "layers", "row", "col")}
    page.param.update(**as_opened | {"models": TWO, "layers": ["stage2.block2"] * 2, "count": 2, "row": 8, "col": 8})
    settle(page)
    page.refresh()
    settle(page)
    return page


def turn() -> None:
    """Wait until the lane has done one step of what it is at work on."""
    finished = threading.Event()
    LANE.submit(("test", id(finished)), Job(lambda job: None, lambda result: finished.set(), lambda error: None))
    assert finished.wait(DEADLINE)


def settle(view: ReceptiveFieldView) -> None:
    """Wait until the lane has done what the page asked for last, and the page has drawn it."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        turn()
        asked, drawing = view._asked, view.shown()
        if asked is None or (drawing is not None and drawing.request == asked and not (drawing.running or view._busy)):
            return
    raise AssertionError("The lane did not finish.")


def change(view: ReceptiveFieldView, **values: Any) -> list[xr.Dataset]:
    """Set parameters and return the results that the page then shows."""
    view.param.update(**values)
    settle(view)
    return shown(view)


def shown(view: ReceptiveFieldView) -> list[xr.Dataset]:
    drawing = view.shown()
    assert drawing is not None
    return [result for result in drawing.results if result is not None]


def units(view: ReceptiveFieldView) -> list[tuple[int, int]]:
    return [result.attrs["spec"]["unit"][0] for result in shown(view)]


def message(view: ReceptiveFieldView) -> str:
    """The sentence that the page shows, or nothing."""
    return html.unescape(view._messages.object) if view._messages.visible else ""


def words(pane: Any) -> str:
    """A pane's HTML without its tags."""
    return re.sub(r"<[^>]+>", "", pane.object)


def test_a_stopped_run_keeps_its_partial_picture_and_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ReceptiveFieldView(models=["nat_nano"], count=16)
    settle(view)
    reached, hold = threading.Event(), threading.Event()
    step = field_request.Run.step

    def slow(run: field_request.Run) -> None:
        step(run)
        if run.read == 6:
            reached.set()
            hold.wait(DEADLINE)

    monkeypatch.setattr(field_request.Run, "step", slow)
    monkeypatch.setattr(field_request, "EVERY", 0.0)
    view.query(2, 3)
    assert reached.wait(DEADLINE)
    start = time.perf_counter()
    view.layout.stop.clicks += 1
    assert time.perf_counter() - start < 1
    hold.set()
    settle(view)
    assert "partial: 5 of 16 images" in words(view.layout.headings[0])
    assert "Stopped" in words(view.layout.words)
    assert view.layout.again.label == "Go on"
    (partial,) = shown(view)
    assert (int(partial["count"]), partial.attrs["complete"]) == (5, False)
    assert message(view) == ""
    reads: list[int] = []
    monkeypatch.setattr(field_request.Run, "step", lambda run: (step(run), reads.append(run.read)))
    view.layout.again.clicks += 1
    settle(view)
    assert reads[0] == 7  # six are remembered
    (whole,) = shown(view)
    assert (int(whole["count"]), whole.attrs["complete"]) == (16, True)


def test_the_newest_request_replaces_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ReceptiveFieldView(models=["nat_nano"], count=24)
    seen = []
    redraw = view._redraw

    def seeing(whole: bool = True) -> None:
        seen.append(view.shown().specs[0].unit)  # type: ignore
        redraw(whole)

    monkeypatch.setattr(view, "_redraw", seeing)
    for col in range(6):
        view.query(0, col)
    settle(view)
    assert units(view) == [(0, 5)]
    first = seen.index(((0, 5),))
    assert all(unit == ((0, 5),) for unit in seen[first:])
    assert int(shown(view)[0]["count"]) == 24


def test_going_back_computes_nothing_and_running_again_everything(
    view: ReceptiveFieldView, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = change(view, row=5, col=6)
    change(view, row=7, col=8)
    computed: list[int] = []
    stream = field_request.stream

    def counted(*args: Any, **options: Any) -> Any:
        for field in stream(*args, **options):
            computed.append(field.read)
            yield field

    monkeypatch.setattr(field_request, "stream", counted)
    again = change(view, row=5, col=6)
    assert computed == []
    assert [r.attrs["hash"] for r in again] == [r.attrs["hash"] for r in before]
    view.run_again()
    settle(view)
    assert sorted(computed) == [1, 1, 2, 2]
    for one, other in zip(shown(view), before, strict=True):
        np.testing.assert_array_equal(one["map"], other["map"])


@pytest.fixture
def fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered yet."""
    monkeypatch.setattr(field_request, "MEMORY", Memory(MOST_PIXELS))


def test_models_take_turns_by_the_time_they_used(fresh_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    step = field_request.Run.step

    def timed(run: field_request.Run) -> None:
        step(run)
        run.spent = run.read * (5.0 if run.source.name == "swin_nano" else 1.0)
        order.append(run.source.name)

    monkeypatch.setattr(field_request.Run, "step", timed)
    request = FieldRequest(tuple(Source(name, "stage2.block2") for name in TWO), Images("crops", count=7), (1, 1))
    job = Job(lambda job: None, lambda result: None, lambda error: None)
    steps = list(draw_fields(request, True, lambda: True, job))
    assert order[:7] == ["swin_nano", *["nat_nano"] * 5, "swin_nano"]
    assert order.count("swin_nano") == order.count("nat_nano") == 7
    pictures = [each for each in steps if each is not None]
    assert [result is not None for result in pictures[0].results] == [True, True]


def test_a_browser_that_is_still_drawing_is_sent_no_further_picture(fresh_memory: None) -> None:
    request = FieldRequest((Source("nat_nano", "stage2.block2"),), Images("crops", count=4), (1, 2))
    job = Job(lambda job: None, lambda result: None, lambda error: None)
    assert [each for each in draw_fields(request, False, lambda: False, job) if each is not None] == []


def test_sums_of_two_backends_are_not_mixed(fresh_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    request = FieldRequest((Source("nat_nano", "stage2.block2"),), Images("crops", count=3), (2, 2))
    (run,) = field_request.runs_of(request)
    monkeypatch.setattr(field_request, "KERNELS", type("Cold", (), {"backend": "reference"}))
    run.step()
    monkeypatch.undo()
    while not run.ended:
        run.step()
    result = run.result()
    assert result is not None
    assert (int(result["count"]), result.attrs["backend"]) == (3, "cpu")


def test_the_memory_keeps_the_latest_runs_and_of_one_run_what_is_furthest() -> None:
    def kept(read: int) -> Kept:
        return Kept({"sums": np.zeros((1, 10, 10))}, None, read)

    memory = Memory(300)
    memory.put("a", kept(5))
    memory.put("a", kept(3))
    assert memory.get("a").read == 5  # type: ignore[union-attr]
    for name in "bc":
        memory.put(name, kept(1))
    assert memory.get("a") is not None  # used, so that "b" is now the oldest
    memory.put("d", kept(1))
    assert [memory.get(name) is not None for name in "abcd"] == [True, False, True, True]
    memory.forget("a")
    assert memory.get("a") is None


def test_a_gradient_that_does_not_fit_into_memory_is_refused_before_it_is_tried(
    view: ReceptiveFieldView, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shown(view)
    monkeypatch.setattr(field_memory, "_memory", lambda device: 2 * 10**9)
    change(view, size=256)
    assert all(result.sizes["row"] == 256 for result in shown(view))
    change(view, size=1024)
    assert re.fullmatch(
        r"The gradient of swin_nano stage2.block2 at 1024 x 1024 pixels takes about \d GB, and this machine has 2 GB: "
        r"choose a smaller picture or an earlier layer\.",
        message(view),
    )
    change(view, size=0)
    assert message(view) == ""
    change(view, models=["gspn_nano(input_size=1024)"])
    assert "The gradient of gspn_nano stage2.block2 at 1024 x 1024 pixels takes about" in message(view)
    change(view, models=TWO, layers=["stage2.block2"] * 2, row=8, col=8)
    assert [r.attrs["hash"] for r in shown(view)] == [r.attrs["hash"] for r in before]


def test_an_upload_replaces_the_pictures_until_another_is_chosen(view: ReceptiveFieldView) -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)).save(file, "PNG")
    view.upload_picture(file.getvalue())
    settle(view)
    assert [int(result["count"]) for result in shown(view)] == [1, 1]
    view.upload_picture(b"no picture")
    assert "is not an image that can be read" in message(view)
    assert view.upload == file.getvalue()
    change(view, image="coffee")
    assert view.upload is None


def test_a_checkpoint_is_read_safely_and_compared(view: ReceptiveFieldView, tmp_path: Path) -> None:
    trained = load_model("nat_nano", seed=9)
    save(trained, tmp_path / "weights.safetensors")
    view.add_checkpoint((tmp_path / "weights.safetensors").read_bytes(), "weights.safetensors")
    settle(view)
    settle(view)
    assert view.models == [*TWO, "nat_nano (weights.safetensors)"]
    assert shown(view)[2].attrs["weights_sha256"] == trained.weights_sha256
    torch.save({"model": trained.state_dict()}, tmp_path / "plain.pth")
    view.add_checkpoint((tmp_path / "plain.pth").read_bytes(), "plain.pth")
    settle(view)
    settle(view)
    assert view.models[3] == "nat_nano (plain.pth)"
    assert message(view) == ""


class Hostile:
    """Pickled, it asks for code to be run."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def test_a_file_that_is_no_checkpoint_is_one_sentence_and_leaves_nothing_behind(
    view: ReceptiveFieldView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.save({"model": Hostile()}, tmp_path / "hostile.pth")
    hostile = (tmp_path / "hostile.pth").read_bytes()
    (tmp_path / "hostile.pth").unlink()
    for data, name in ((hostile, "../../hostile.pth"), (b"junk", "weights.pth"), (b"junk", "notes.txt")):
        view.add_checkpoint(data, name)
        settle(view)
        assert Path(name).name in message(view)
        assert str(tmp_path) not in message(view)
        assert view.models == TWO
    assert list(tmp_path.iterdir()) == []


def test_given_models_are_compared_under_names_of_their_own() -> None:
    first, second = load_model("nat_nano", seed=4), load_model("nat_nano", seed=5)
    view = show([first, "swin_nano", second], None, "receptive_field", count=1)
    settle(view)
    assert view.models == ["nat_nano (given)", "swin_nano", "nat_nano (given 2)"]
    assert [r.attrs["weights_sha256"] for r in shown(view)[::2]] == [first.weights_sha256, second.weights_sha256]
    assert "model = ...  # your nat_nano (given)" in view._code.value
    with pytest.raises(ValueError, match="models from load_model"):
        show(torch.nn.Linear(2, 2), None, "receptive_field")


@pytest.mark.parametrize("kind", ["Figure PNG", "Figure SVG", "NetCDF", "npz", "CSV"])
def test_files_are_made_of_what_is_shown(view: ReceptiveFieldView, kind: str, tmp_path: Path) -> None:
    data = view.downloads.file(kind).read()
    name = view.downloads.buttons[kind].filename
    assert name.startswith("receptive_field_swin_nano_nat_nano_")
    if kind == "Figure PNG":
        assert data.startswith(b"\x89PNG")
    elif kind == "Figure SVG":
        assert b"<svg" in data
        assert b"swin_nano" in data
    elif kind == "CSV":
        assert len(data.decode().splitlines()) == 3
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert len(archive.namelist()) == 2
            assert all(r.attrs["hash"] in n for r, n in zip(shown(view), archive.namelist(), strict=True))


def test_a_single_result_is_saved_as_itself_under_its_hash(view: ReceptiveFieldView, tmp_path: Path) -> None:
    (result,) = change(view, models=["gspn_nano(chunk=4)"], layers=["stage1.block1"])
    data = view.downloads.file("NetCDF").read()
    name = view.downloads.buttons["NetCDF"].filename
    assert name == f"receptive_field_gspn_nano-chunk-4_{result.attrs['hash']}.nc"
    (tmp_path / name).write_bytes(data)
    assert load_result(tmp_path / name).attrs["hash"] == result.attrs["hash"]


def test_nothing_is_timed_before_it_is_asked_for(view: ReceptiveFieldView) -> None:
    assert all("time not measured" in words(view.layout.headings[n]) for n in range(2))
    view.measure_now()
    settle(view)
    settle(view)
    for n in range(2):
        assert re.search(
            r"one image [\d.]+ ms \([\d.]+ to [\d.]+, p20 to p80, n = \d+\)", words(view.layout.headings[n])
        )
    change(view, row=0, col=0)
    assert "time not measured" in words(view.layout.headings[0])
