"""A receptive field over a folder of images as a run that may be stopped or killed at any moment and then goes on.

Beside the result lies a file of progress, replaced every few seconds: the sums so far, and for every file that they
come from what tells whether it is still the same. A run that finds one goes on after it, in the same batches as if it
had never stopped, and ends with the same bits; a run that finds its result leaves everything as it is.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from workbench.images import Image
from workbench.models.base import VisionModel

from .export import PART, load_result, save, write
from .image_folder import ImageFolder
from .receptive_field import ReceptiveFieldSpec, RunningField, stream
from .spec import spec_hash, versions

#: Seconds between two states of progress, and how much of the time writing them may take.
EVERY, SHARE = 2.0, 0.05


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    #: None if the run was stopped, or if no file could be read.
    result: xr.Dataset | None
    #: Files looked at, and (name, sentence) of those that could not be read.
    files: int
    bad: list[tuple[str, str]]
    #: The result was there already and was not computed again; the run was cancelled before it had one.
    found: bool = False
    stopped: bool = False


class Entry(NamedTuple):
    """A file that has been looked at: the SHA-256 of its pixels, or the sentence why it has none."""

    name: str
    fingerprint: str
    sha256: str
    refusal: str


def run_name(model: VisionModel, spec: ReceptiveFieldSpec, folder: ImageFolder) -> str:
    """The name of a run's files: model, layer and unit to read, and a hash of all that decides which run it is.

    The hash is of the Spec, the model with its weights and settings, backend, device, and where the images lie; what
    is in them is not part of it, so that a folder that has changed is noticed and not taken for another one.
    """
    asked = {
        "spec": asdict(spec),
        "model": [model.name, model.weights_sha256, model.seed, model.config, model.backend, model.device.type],
        "images": [str(folder.path.resolve()), folder.limit],
    }
    unit = spec.unit_name.strip("()").replace(", ", ",")
    return f"{model.name}_{spec.layer}_{unit}_{spec_hash(asked)}"


def resumable_field(
    model: VisionModel,
    folder: ImageFolder,
    spec: ReceptiveFieldSpec,
    path: Path,
    *,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
    finish: Callable[[xr.Dataset], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    every: float = EVERY,
) -> Outcome:
    """The receptive field over a folder, kept in a file and computed only as far as it is not there yet.

    Args:
        model: from `load_model`.
        folder: the images, at the Spec's size.
        spec: from `resolve` for this model.
        path: the result's .nc file; progress is kept beside it.
        progress: called with the number of files done, after each batch.
        say: called with words where a run goes on, or starts again and why.
        finish: called with a result that is not written yet, for files that must be there once it is.
        cancelled: stops the run within about a second once it returns true; progress is kept.
        every: seconds between two states of progress.

    Returns:
        The outcome; its result is what `receptive_field` gives, with these attrs added: folder (its name), files and
        files_sha256 (how many were looked at, and a hash of their names and contents), and run (the file's name).

    Raises:
        OSError: a file cannot be written.
    """
    say = say or (lambda sentence: None)
    saved = path.with_suffix(".progress")
    start, entries, again = _progress(saved, model, spec, folder)
    if start is None:
        result, changed = _finished(path, folder)
        if result is not None:
            return Outcome(result, result.attrs["files"], list(result.attrs["bad"]), found=True)
        if again or changed:
            say(f"starts again: {again or changed}")
    else:
        say(f"goes on after {len(entries)} of {len(folder)} files.")
    reader = _Reader(folder, spec.size, entries)
    if progress is not None:
        progress(len(entries))
    field = _run(model, spec, reader, saved, start, progress, cancelled, every)
    if field is None or not field.complete:
        files = len(reader.entries) if field is None else reader.files(field.read)
        return Outcome(None, files, reader.bad, stopped=field is not None)
    if progress is not None:
        progress(len(reader.entries))
    result = field.result()
    result.attrs |= {
        "folder": folder.path.resolve().name,
        "files": len(reader.entries),
        "files_sha256": _digest((entry.name, entry.fingerprint) for entry in reader.entries),
        "run": path.stem,
    }
    if finish is not None:
        finish(result)
    save(result, path)  # last: it marks the run as done
    for left in (saved, *path.parent.glob(f".{path.stem}.*{PART}")):
        with suppress(OSError):
            left.unlink()
    return Outcome(result, len(reader.entries), reader.bad)


def _run(
    model: VisionModel,
    spec: ReceptiveFieldSpec,
    reader: "_Reader",
    saved: Path,
    start: RunningField | None,
    progress: Callable[[int], None] | None,
    cancelled: Callable[[], bool] | None,
    every: float,
) -> RunningField | None:
    """Average over the images, keeping progress; the field as far as it went, None if no file could be read."""
    field = start or RunningField(spec, model)
    kept, then, pause = field.read, time.monotonic(), every
    try:
        for _ in stream(model, reader, spec, cancelled=cancelled, start=field):
            if progress is not None:
                progress(reader.files(field.read))
            now = time.monotonic()
            if now - then >= pause and not field.complete:
                _keep(saved, field, reader)
                kept, then = field.read, time.monotonic()
                pause = max(every, (then - now) / SHARE)
    except ValueError:
        if reader.ended and not reader.images:
            return None
        raise
    if not field.complete and field.read > kept:
        _keep(saved, field, reader)
    return field


class _Reader:
    """The images of a folder, and a note of every file; files that were counted before are not decoded again."""

    def __init__(self, folder: ImageFolder, size: tuple[int, int], entries: Sequence[Entry]) -> None:
        self.folder, self.size = folder, size
        self.entries = list(entries)
        #: The place among the files of every one that is an image.
        self.images = [place for place, entry in enumerate(entries) if entry.sha256]
        self.ended = False

    def __len__(self) -> int:
        return len(self.folder)

    @property
    def bad(self) -> list[tuple[str, str]]:
        return [(entry.name, entry.refusal) for entry in self.entries if entry.refusal]

    def files(self, images: int) -> int:
        """How many files have been looked at to find that many images."""
        return self.images[images - 1] + 1 if images else 0

    def __iter__(self) -> Iterator[Image]:
        counted = torch.zeros(()).expand(1, 3, *self.size)
        for place in tuple(self.images):
            yield _Counted(self.entries[place].name, np.zeros((0, 0, 3), np.uint8), counted, self.entries[place].sha256)
        for place in range(len(self.entries), len(self.folder)):
            name, fingerprint = self.folder.names[place], self.folder.fingerprint(place)
            try:
                image = self.folder.read(place)
            except ValueError as error:
                self.entries.append(Entry(name, fingerprint, "", str(error)))
                continue
            self.images.append(place)
            self.entries.append(Entry(name, fingerprint, image.sha256, ""))
            yield image
        self.ended = True


@dataclass(frozen=True, eq=False)
class _Counted(Image):
    """An image that is in the sums already: what is asked of it is only its hash."""

    digest: str

    @property
    def sha256(self) -> str:
        return self.digest


# Files


def _keep(saved: Path, field: RunningField, reader: _Reader) -> None:
    """Write the state of a run after whole batches."""
    entries = reader.entries[: reader.files(field.read)]  # one more image may have been read
    text = json.dumps({"entries": entries, "made_by": _made_by()})
    buffer = io.BytesIO()
    arrays: dict[str, Any] = field.state() | {"notes": np.frombuffer(text.encode(), np.uint8)}
    np.savez(buffer, **arrays)
    write(saved, buffer.getvalue())


def _progress(
    saved: Path, model: VisionModel, spec: ReceptiveFieldSpec, folder: ImageFolder
) -> tuple[RunningField | None, list[Entry], str]:
    """The field to go on with and the files that are in it; or None and, where there is progress, why it is no use."""
    if not saved.is_file():
        return None, [], ""
    try:
        with np.load(io.BytesIO(saved.read_bytes()), allow_pickle=False) as found:
            state = dict(found)
        notes = json.loads(state.pop("notes").tobytes())
        entries = [Entry(*map(str, entry)) for entry in notes["entries"]]
        made_by = dict(notes["made_by"])
    except Exception:  # whatever a damaged archive raises
        return None, [], "the saved progress is damaged."
    for package, number in _made_by().items():
        if made_by.get(package) != number:
            return None, [], f"the progress was made with {package} {made_by.get(package)}, and this is {number}."
    if changed := _changed(entries, folder):
        return None, [], changed
    try:
        return RunningField.restore(state, spec, model), entries, ""
    except Exception as error:
        return None, [], f"the saved progress does not fit: {error}"


def _made_by() -> dict[str, str]:
    """What has to be the same for the same bits."""
    return versions() | {"pillow": version("pillow")}


def _changed(entries: list[Entry], folder: ImageFolder) -> str:
    """The first difference between files that are counted and those that are there, as a sentence, or nothing."""
    for place, entry in enumerate(entries):
        if place >= len(folder) or folder.names[place] != entry.name:
            there = entry.name in folder.names
            new = folder.names[place] if there else entry.name
            return f"{new!r} is {'new' if there else 'gone'} among the files that were counted."
        if folder.fingerprint(place) != entry.fingerprint:
            return f"{entry.name!r} has changed since it was counted."
    return ""


def _finished(path: Path, folder: ImageFolder) -> tuple[xr.Dataset | None, str]:
    """The result that lies at `path`, if it is of these files; else why not, where there is one."""
    if not path.is_file():
        return None, ""
    try:
        result = load_result(path)
    except ValueError as error:
        return None, str(error)
    files = ((name, folder.fingerprint(place)) for place, name in enumerate(folder.names))
    if result.attrs.get("files_sha256") != _digest(files):
        return None, "the files are not those that the result was computed from."
    return result, ""


def _digest(files: Iterator[tuple[str, str]]) -> str:
    """The SHA-256 of names and fingerprints, in order."""
    return hashlib.sha256(json.dumps([list(file) for file in files]).encode()).hexdigest()
