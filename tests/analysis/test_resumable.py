"""A run over a folder that was stopped goes on to the same bits, unless a counted file or what computes has changed."""

import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from workbench.analysis import resumable
from workbench.analysis.export import load_result
from workbench.analysis.image_folder import ImageFolder, sample_crops
from workbench.analysis.receptive_field import receptive_field, resolve
from workbench.analysis.resumable import Outcome, resumable_field, run_name
from workbench.models import load_model
from workbench.models.base import VisionModel

#: Small pictures, so that many of them take a moment; images of a batch.
SIDE, BATCH = 16, 4


@lru_cache(maxsize=2)
def model(seed: int = 0) -> VisionModel:
    return load_model("gspn_nano", seed=seed, device="cpu")


def run(images: Path, path: Path, seed: int = 0, **options: Any) -> tuple[Outcome, list[str]]:
    """The outcome over a folder, and what was said."""
    said: list[str] = []
    spec = resolve(model(seed), size=SIDE, batch=BATCH)
    outcome = resumable_field(model(seed), ImageFolder(images, SIDE), spec, path, say=said.append, **options)
    return outcome, said


def stopped(images: Path, path: Path, files: int) -> Outcome:
    """The outcome of a run that is cancelled once so many files are done."""
    done = [0]
    outcome, _ = run(images, path, progress=done.append, cancelled=lambda: done[-1] >= files)
    assert outcome.stopped
    assert outcome.result is None
    assert outcome.files == done[-1]
    return outcome


def agrees_with_a_clean_run(outcome: Outcome, images: Path, tmp_path: Path) -> None:
    assert outcome.result is not None
    path = tmp_path / "clean" / f"{outcome.result.attrs['run']}.nc"
    path.unlink(missing_ok=True)
    clean, said = run(images, path)
    assert said == []
    assert clean.result is not None
    assert outcome.result.identical(clean.result)
    assert outcome.bad == clean.bad
    for name, variable in clean.result.variables.items():
        assert outcome.result[name].values.tobytes() == variable.values.tobytes()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 files of which the second and the last cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "clean").mkdir()
    for i, image in enumerate(sample_crops(24, (SIDE + 4, SIDE + 9), int(torch.randint(2**31, ())))):
        PIL.Image.fromarray(image.rgb).save(folder / f"{i:03}.png")
    for name in ("001.png", "023.png"):
        (folder / name).write_bytes(b"broken")
    return folder


def test_the_result_is_that_of_receptive_field_with_what_tells_the_files(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    outcome, said = run(images, path)
    expected = receptive_field(model(), ImageFolder(images, SIDE), size=SIDE, batch=BATCH)
    result = outcome.result
    assert result is not None
    assert said == []
    assert (outcome.found, outcome.stopped, outcome.files) == (False, False, 24)
    assert result.drop_attrs().identical(expected.drop_attrs())
    added = {name: value for name, value in result.attrs.items() if name not in expected.attrs}
    assert result.attrs == expected.attrs | added
    assert added == {"folder": "images", "files": 24, "files_sha256": added["files_sha256"], "run": "a"}
    assert [name for name, _ in result.attrs["bad"]] == ["001.png", "023.png"]
    assert load_result(path).identical(result)


@pytest.mark.parametrize("files", [1, 9, 20])
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    images: Path, tmp_path: Path, files: int
) -> None:
    path = tmp_path / "a.nc"
    seen = stopped(images, path, files).files
    assert path.with_suffix(".progress").is_file()
    if seen < 16:
        seen = stopped(images, path, seen + 1).files
    outcome, said = run(images, path)
    assert said == [f"goes on after {seen} of 24 files."]
    agrees_with_a_clean_run(outcome, images, tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a.nc"]


def test_files_that_were_counted_are_not_decoded_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stopped(images, tmp_path / "a.nc", 9).files
    read, places = ImageFolder.read, []

    def noted(self: ImageFolder, index: int) -> object:
        places.append(index)
        return read(self, index)

    monkeypatch.setattr(ImageFolder, "read", noted)
    run(images, tmp_path / "a.nc")
    assert places == list(range(seen, 24))


def test_no_more_images_are_in_memory_than_two_batches_and_the_next_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, alive, most = ImageFolder.read, weakref.WeakSet[torch.Tensor](), []

    def counted(self: ImageFolder, index: int) -> object:
        image = read(self, index)
        alive.add(image.tensor)
        most.append(len(alive))
        return image

    monkeypatch.setattr(ImageFolder, "read", counted)
    run(images, tmp_path / "a.nc")
    assert len(most) == 22
    assert max(most) <= 2 * BATCH + 1


def mirror(images: Path) -> None:
    with PIL.Image.open(images / "003.png") as picture:
        mirrored = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(images / "003.png")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (mirror, "'003.png' has changed since it was counted."),
    "gone": (lambda images: (images / "004.png").unlink(), "'004.png' is gone among the files that were counted."),
    "renamed": (lambda images: (images / "000.png").rename(images / "zzz.png"), "'000.png' is gone"),
    "new": (lambda images: (images / "002b.png").write_bytes(b""), "'002b.png' is new among the files"),
    "mended": (lambda images: PIL.Image.new("RGB", (20, 20)).save(images / "001.png"), "'001.png' has changed"),
    "fewer": (lambda images: [path.unlink() for path in images.glob("00[2-9].png")], "'002.png' is gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_files_that_were_counted_starts_again_and_says_which(
    images: Path, tmp_path: Path, change: str
) -> None:
    stopped(images, tmp_path / "a.nc", 9)
    act, sentence = CHANGES[change]
    act(images)
    outcome, said = run(images, tmp_path / "a.nc")
    assert len(said) == 1
    assert said[0].startswith(f"starts again: {sentence}")
    agrees_with_a_clean_run(outcome, images, tmp_path)


def test_files_that_were_not_counted_yet_may_change(images: Path, tmp_path: Path) -> None:
    seen = stopped(images, tmp_path / "a.nc", 9).files
    for name in ("020.png", "021.png", "022.png"):
        (images / name).unlink()
    (images / "015.png").write_bytes(b"")
    outcome, said = run(images, tmp_path / "a.nc")
    assert said == [f"goes on after {seen} of 21 files."]
    agrees_with_a_clean_run(outcome, images, tmp_path)


def test_a_run_of_which_only_broken_files_remain_is_complete(images: Path, tmp_path: Path) -> None:
    seen = stopped(images, tmp_path / "a.nc", 9).files
    for path in sorted(images.iterdir())[seen:]:
        path.write_bytes(b"broken, too")
    outcome, said = run(images, tmp_path / "a.nc")
    assert said == [f"goes on after {seen} of 24 files."]
    agrees_with_a_clean_run(outcome, images, tmp_path)


def test_a_result_is_found_until_a_file_changes_or_comes(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    first, _ = run(images, path)
    state = path.stat().st_mtime_ns, path.read_bytes()
    again, said = run(images, path)
    assert (again.found, again.files, again.bad, said) == (True, first.files, first.bad, [])
    assert (path.stat().st_mtime_ns, path.read_bytes()) == state
    for act in (mirror, lambda images: (images / "024.png").write_bytes(b"")):
        act(images)
        outcome, said = run(images, path)
        assert said == ["starts again: the files are not those that the result was computed from."]
        agrees_with_a_clean_run(outcome, images, tmp_path)
    path.write_bytes(b"not a result")
    assert run(images, path)[1] == ["starts again: 'a.nc' is not a NetCDF 3 file, or it is damaged."]


@pytest.mark.parametrize("wrong", ["damaged", "other versions", "other weights"])
def test_progress_that_does_not_fit_is_not_used(
    images: Path, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seed = tmp_path / "a.nc", 0
    stopped(images, path, 9)
    saved = path.with_suffix(".progress")
    if wrong == "damaged":
        saved.write_bytes(saved.read_bytes()[:-40])
    elif wrong == "other versions":
        monkeypatch.setattr(resumable, "versions", lambda: {"torch": "9.9"})
    else:
        seed = 1
    sentences = {
        "damaged": "starts again: the saved progress is damaged.",
        "other versions": f"starts again: the progress was made with torch {torch.__version__}, and this is 9.9.",
        "other weights": "starts again: the saved progress does not fit: The saved state is of another run",
    }
    outcome, said = run(images, path, seed)
    assert len(said) == 1
    assert said[0].startswith(sentences[wrong])
    assert outcome.result is not None
    assert outcome.result.attrs["seed"] == seed
    assert int(outcome.result["count"]) == 22


def test_progress_is_kept_at_intervals_and_costs_a_small_share_of_the_time(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, kept = [0.0], []
    keep = resumable._keep

    def keeping(saved: Path, field: Any, reader: Any) -> None:
        kept.append(field.read)
        keep(saved, field, reader)
        now[0] += 0.5  # 5 % of 10 s

    monkeypatch.setattr(resumable, "_keep", keeping)
    monkeypatch.setattr(resumable.time, "monotonic", lambda: now[0])

    def tick(_: int) -> None:
        now[0] += 3.5

    run(images, tmp_path / "a.nc", progress=tick, every=2.0)
    assert kept == [4, 16]  # the next one 10 s later, which is 3 batches


def test_a_folder_without_a_readable_image_has_no_result(images: Path, tmp_path: Path) -> None:
    for path in images.iterdir():
        path.write_bytes(b"broken")
    outcome, _ = run(images, tmp_path / "a.nc")
    assert (outcome.result, outcome.stopped, outcome.files, len(outcome.bad)) == (None, False, 24, 24)
    assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_the_name_of_a_run_tells_models_weights_specs_and_folders_apart(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(b"")
    names = set()
    for seed in (0, 1):
        for folder in (ImageFolder(images), ImageFolder(images, limit=3), ImageFolder(other)):
            for unit in ("centre", (3, 4), "2x3"):
                spec = resolve(model(seed), size=SIDE, unit=unit, layer="stage1.block2")
                names.add(run_name(model(seed), spec, folder))
                assert run_name(model(seed), spec, folder) in names
    assert len(names) == 18
    words = {name.rpartition("_")[0] for name in names}
    assert words == {f"gspn_nano_stage1.block2_{unit}" for unit in ("centre", "3,4", "2x3")}
    assert all(np.char.isalnum(name.rpartition("_")[2]) for name in names)
