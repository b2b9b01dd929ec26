"""`workbench erf`: a killed run ends with the bits of a clean one, broken files are named, mistakes are sentences."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import xarray as xr
from click.testing import Result
from typer.testing import CliRunner

from workbench.analysis.export import load_result
from workbench.analysis.image_folder import ImageFolder, sample_crops
from workbench.analysis.receptive_field import receptive_field
from workbench.cli import app, erf_request
from workbench.models import load_model
from workbench.plots import receptive_field_paper

#: Small pictures and a small model, so that hundreds of them take seconds.
SIDE = 16
SMALL = ("--set", "dims=(8,16)", "--set", "depths=(1,1)")


def erf(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["erf", *map(str, arguments)])


def results(folder: Path) -> list[xr.Dataset]:
    return [load_result(path) for path in sorted(folder.glob("*.nc"))]


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    seed = int(torch.randint(2**31, ()))
    for i, image in enumerate(sample_crops(count, (SIDE + 4, SIDE + 9), seed)):
        PIL.Image.fromarray(image.rgb).save(folder / f"{i:03}.png")
    return folder


def break_seven(folder: Path) -> list[str]:
    """Replace seven of the files, the first and the last among them, by what cannot be read."""
    names = ["000.png", "017.png", "018.png", "064.png", "150.png", "151.png", "199.png"]
    for name, data in zip(
        names, (b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\0" * 99, None, b"\xff\xd8\xff"), strict=True
    ):
        (folder / name).unlink()
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)
    return names


#: The command, in a process that SIGKILL ends while it writes its 9th state: after the bytes, before the new name.
KILLED = """
import os, signal, sys
from workbench.analysis import export, resumable
from workbench.cli import app, erf_request

resumable.resumable_field.__kwdefaults__["every"] = 0.0  # a state after every batch,
resumable.SHARE = float("inf")  # however long the last one took
whole, states = os.fsync, []

def killing(file):
    whole(file)
    states.append(file)
    if len(states) == 10:  # the first is the check that the folder can be written
        os.kill(os.getpid(), signal.SIGKILL)

export.os.fsync = killing
app()
"""


def test_a_killed_run_over_200_files_goes_on_and_ends_with_the_bits_of_a_clean_one(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 200)
    broken = break_seven(images)
    command = ["gspn_nano", "--images", str(images), "--size", str(SIDE), "--batch", "8", *SMALL]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "erf", *command, "--out", str(tmp_path / "killed")],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = [path.suffix for path in (tmp_path / "killed").iterdir()]
    assert sorted(left) == [".part", ".progress"]

    again, clean = (erf(*command, "--out", tmp_path / name) for name in ("killed", "clean"))
    assert (again.exit_code, clean.exit_code) == (0, 0), again.output + clean.output
    assert "goes on after 68 of 200 files" in again.output  # 8 batches of 8, and the 4 broken among these
    files, others = (sorted((tmp_path / name).iterdir()) for name in ("killed", "clean"))
    assert [path.suffix for path in files] == [".csv", ".nc", ".png"]
    for file, other in zip(files, others, strict=True):
        assert file.name == other.name
        assert file.read_bytes() == other.read_bytes(), file.name
    (result,) = results(tmp_path / "killed")
    assert int(result["count"]) == 193
    assert [name for name, _ in result.attrs["bad"]] == broken
    lines = again.output.splitlines()
    assert [name for name in broken if any(line.startswith(f"  {name}: ") for line in lines)] == broken
    assert "left out: 7 files" in again.output


def test_the_result_is_that_of_the_library_over_the_same_folder(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 5)
    (images / "broken.jpg").write_bytes(b"")
    done = erf(
        "nat_nano", "--images", images, "--out", tmp_path / "out", "--layer", "stage1.block2", "--unit", "1,2",
        "--size", "64x96", "--channels", "channel 3", "--gradient", "square", "--seed", "5", "--batch", "2",
        "--set", "num_classes=7", "--backend", "reference",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (result,) = results(tmp_path / "out")
    model = load_model("nat_nano", seed=5, num_classes=7, backend="reference")
    expected = receptive_field(
        model, ImageFolder(images, (64, 96)), "stage1.block2", (1, 2), size=(64, 96), channels="channel 3",
        gradient="square", batch=2,
    )  # fmt: skip
    for name, variable in expected.variables.items():
        assert variable.values.tobytes() == result[name].values.tobytes(), name
    added = {"folder": "images", "files": 6, "run": next((tmp_path / "out").glob("*.nc")).stem}
    assert result.attrs == expected.attrs | added | {"files_sha256": result.attrs["files_sha256"]}
    assert next((tmp_path / "out").glob("*.csv")).name.startswith("nat_nano_stage1.block2_1,2_")


@pytest.fixture(autouse=True)
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of few dots, which are drawn in a moment."""
    monkeypatch.setattr(receptive_field_paper.png, "__defaults__", (40,))


def signalled(place: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal the first time that the file at a place is read."""
    read, sent = ImageFolder.read, []

    def reading(self: ImageFolder, index: int) -> object:
        if index == place and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return read(self, index)

    monkeypatch.setattr(ImageFolder, "read", reading)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_keeps_its_progress(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "images", 30)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    command = ("gspn_nano", "--images", images, "--size", SIDE, "--batch", 4, "--out")
    signalled(19, number, monkeypatch)
    found = erf(*command, tmp_path / "out")
    assert found.exit_code == 128 + number, found.output
    assert "stopped after 16 of 30 files; the same command goes on from there." in found.output
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "goes on after 16 of 30 files" in erf(*command, tmp_path / "out").output
    erf(*command, tmp_path / "clean")
    assert results(tmp_path / "out")[0].identical(results(tmp_path / "clean")[0])


def test_what_is_done_is_left_as_it_is_until_a_file_changes(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 9)
    (images / "005.png").write_bytes(b"")
    command = ("gspn_nano", "--images", images, "--size", SIDE, "--out", tmp_path / "out")
    assert "done, 8 images of 9 files" in erf(*command).output
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").iterdir()}
    table = next(path for path in before if path.suffix == ".csv")
    table.unlink()
    found = erf(*command)
    assert found.exit_code == 0
    assert "was done before and is left as it is, 8 images of 9 files" in found.output
    assert "  005.png: The file '005.png' is not an image" in found.output
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        p: data for p, (_, data) in before.items()
    }
    result = next(path for path in before if path.suffix == ".nc")
    assert result.stat().st_mtime_ns == before[result][0]

    (images / "003.png").unlink()
    assert "starts again: the files are not those that the result was computed from." in erf(*command).output
    assert result.read_bytes() != before[result][1]
    assert int(results(tmp_path / "out")[0]["count"]) == 7


def test_several_models_and_seeds_are_compared(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "images", 3), tmp_path / "out"
    models, options = ("gspn_nano", "swin_nano"), ("--size", 32, "--seed", "0,7", "--unit", "2x1")
    command = (*models, "--images", images, "--out", out, *options)
    done = erf(*command)
    assert done.exit_code == 0, done.output
    found = results(out)
    runs = [("gspn_nano", 0), ("gspn_nano", 7), ("swin_nano", 0), ("swin_nano", 7)]
    assert sorted((result.attrs["model"], result.attrs["seed"]) for result in found) == runs
    assert all(result.sizes["unit"] == 2 for result in found)
    assert len({result["map"].values.tobytes() for result in found}) == 4
    (comparison,) = out.glob("comparison_*.csv")
    with comparison.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], int(row["seed"])) for row in rows] == [run for run in runs for _ in range(2)]
    assert {row["count [images]"] for row in rows} == {"3"}
    assert len(list(out.glob("*.png"))) == 5
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert erf(*command).output.count("was done before and is left as it is") == 4
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_gradients_that_are_not_finite_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images", 3)

    def overflowing(model: object, x: torch.Tensor, *_: object) -> np.ndarray:
        return np.full((len(x), 1, SIDE, SIDE), np.nan)

    monkeypatch.setattr("workbench.analysis.receptive_field.unit_gradients", overflowing)
    found = erf("gspn_nano", "--images", images, "--size", SIDE, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "done, 0 images of 3 files, without 3 whose gradient is not finite:" in found.output
    assert "No image had a finite gradient, so that there are no numbers." in found.output


def test_settings_and_seeds_are_read_as_they_are_written() -> None:
    given = ["chunk=none", "dims=(4,8)", "merge=released", "rate=0.5", "bias=true", "heads=3", "text=a=b"]
    common = {
        "weights": "random", "backend": "cpu", "chunk": None, "dims": (4, 8), "merge": "released", "rate": 0.5,
        "bias": True, "heads": 3, "text": "a=b",
    }  # fmt: skip
    assert erf_request.configs("random", ["0,2", "7", "2"], "cpu", given) == [common | {"seed": n} for n in (0, 2, 7)]
    assert erf_request.configs("random", None, "auto", None) == [{"weights": "random", "backend": "auto", "seed": 0}]
    assert erf_request.configs("a.pth", None, "auto", None) == [{"weights": "a.pth", "backend": "auto"}]
    assert [erf_request.unit(text) for text in ("3,4", "(3, 4)", "centre", "3x3")] == [(3, 4), (3, 4), "centre", "3x3"]
    assert [erf_request.size(text) for text in ("64", "64x96", None)] == [(64, 64), (64, 96), None]


def test_the_command_explains_itself() -> None:
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["erf", "--help"])
    assert found.exit_code == 0
    options = "images out layer unit size channels gradient weights seed set backend batch limit"
    assert all(f"--{option}" in found.output for option in options.split())


def test_a_limit_spreads_the_files(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 12)
    (images / "003.png").write_bytes(b"")
    done = erf("gspn_nano", "--images", images, "--size", SIDE, "--limit", 4, "--out", tmp_path / "out")
    assert "3 images of 4 files" in done.output
    assert [name for name, _ in results(tmp_path / "out")[0].attrs["bad"]] == ["003.png"]


def test_a_folder_of_broken_files_only_is_the_one_failure(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.jpg"):
        (images / name).write_bytes(b"x")
    found = erf("gspn_nano", "--images", images, "--size", SIDE, "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "could be read" in found.output
    assert all(f"  {name}: " in found.output for name in ("a.png", "b.jpg"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("gspn_nono",), "There is no model named 'gspn_nono'; did you mean gspn_nano"),
        (("gspn_nano", "--layer", "stage9.block1"), "There is no layer named 'stage9.block1'"),
        (("gspn_nano", "--unit", "99,3"), "unit must be a cell of the layer's 16 rows and 16 columns; got (99, 3)."),
        (("gspn_nano", "--unit", "left"), "unit is 'centre', a cell (row, col), or a grid of units"),
        (("gspn_nano", "--size", "big"), "--size is a side in pixels, or ROWSxCOLS such as 224x320; got 'big'."),
        (("swin_nano", "--size", "65"), "swin_nano takes images whose sides are multiples of"),
        (("gspn_nano", "--channels", "all"), "There is no channels named 'all'"),
        (("gspn_nano", "--gradient", "grad"), "There is no gradient named 'grad'"),
        (("gspn_nano", "--weights", "trained", "--seed", "1"), "--seed draws random weights"),
        (("gspn_nano", "--weights", "gone.pth"), "gone.pth"),
        (("gspn_nano", "--seed", "one"), "--seed takes whole numbers, several as 0,1,2; got 'one'."),
        (("gspn_nano", "--set", "merge"), "--set takes KEY=VALUE; got 'merge'."),
        (("gspn_nano", "--set", "colour=red"), "gspn_nano has no setting 'colour'"),
        (("gspn_nano", "--set", "seed=3"), "--set takes settings of the model, and seed is none of them."),
        (("gspn_nano", "--backend", "gpu"), "There is no backend named 'gpu'"),
        (("gspn_nano", "--limit", "0"), "limit is a number of files, at least 1; got 0."),
        (("gspn_nano", "--images", "gone"), "There is no folder 'gone'"),
        (("gspn_nano", "--out", "images/000.png"), "The results cannot be written to"),
        (("gspn_nano", "--out", "images/results"), "lies in the folder of images"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_no_traceback(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path / "images", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    given = {"--images": "images", "--out": "out"}
    words = [word for name, value in given.items() if name not in arguments for word in (name, value)]
    found = erf(*(word.replace("images/000.png", "file") for word in arguments), *words)
    assert found.exit_code == 2, found.output
    assert isinstance(found.exception, SystemExit)
    assert sentence in found.output
    assert found.output.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images", 3)
    whole, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        whole(file)

    monkeypatch.setattr(os, "fsync", full)
    found = erf("gspn_nano", "--images", images, "--size", SIDE, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert f"The results cannot be written to '{tmp_path / 'out'}': No space left on device." in found.output
    assert list((tmp_path / "out").iterdir()) == []
