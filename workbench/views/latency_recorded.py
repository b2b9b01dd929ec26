"""Recorded sweeps that the Latency page offers: the files of data/latency, and those that a person gives."""

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from workbench.analysis.latency_file import read_latency
from workbench.analysis.latency_schema import SCHEMA

#: Where recordings lie.
FOLDER = SCHEMA.parent


class Recordings(NamedTuple):
    """The sweeps by the names of their files, and a sentence for every file that is none."""

    sweeps: dict[str, xr.Dataset]
    problems: tuple[str, ...]


def recordings(folder: Path | None = None) -> Recordings:
    """The recordings of a folder, None for that of the project; a file is read again when it has changed."""
    sweeps, problems = {}, []
    for path in sorted((folder or FOLDER).glob("*.json")):
        if path == SCHEMA:
            continue
        try:
            found = _read(path, path.stat().st_mtime_ns)
        except OSError as error:  # gone since the folder was listed
            found = f"{path.name} cannot be read: {error.strerror or error}."
        if isinstance(found, str):
            problems.append(found)
        else:
            sweeps[path.stem] = found
    return Recordings(sweeps, tuple(problems))


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> xr.Dataset | str:
    """The sweep of a file, or what is wrong with it."""
    try:
        return read_latency(path)
    except ValueError as error:
        return str(error).replace(str(path), path.name)


def given_recording(data: bytes, name: str) -> xr.Dataset:
    """The sweep of a file that a person gave.

    Raises:
        ValueError: it is no valid latency file; one sentence.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.json"
        path.write_bytes(data)
        try:
            return read_latency(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None


def label_of(name: str, sweep: xr.Dataset) -> str:
    """What the legend calls a recording: its device and what else tells it from others."""
    return f"{sweep.attrs['device']} ({name})"
