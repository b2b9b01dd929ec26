"""Baselines as files: one JSON document with its provenance, as data/latency/baselines/schema.json describes it.

A file of a run that was stopped is as valid as a whole one: it says complete: false and holds what was measured.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import xarray as xr

from .export import write
from .latency_baselines import NUMBERS, WORDS
from .latency_file import MACHINE, read_document
from .latency_schema import SCHEMA as SWEEP_SCHEMA
from .latency_schema import problem
from .latency_sweep import PENDING

FORMAT, VERSION = "gspn-workbench baselines", 1

SCHEMA = SWEEP_SCHEMA.parent / "baselines" / "schema.json"

COPIED = ("complete", "date", "hash", "versions", "transformers", "dtype", "method", "noisy_share")


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The schema of baseline files."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def write_baselines(result: xr.Dataset, path: Path, *, commit: str | None = None) -> None:
    """Write baselines, whole or partial, so that the file is at no moment incomplete.

    Args:
        result: from `latency_baselines`.
        path: the .json file.
        commit: of the code that was measured, where it is known.

    Raises:
        ValueError: the result does not fit the schema.
        OSError: the file cannot be written.
    """
    document = to_document(result, commit)
    if found := wrong(document):
        raise ValueError(f"These are no baselines: {found}.")
    write(path, json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def read_baselines(path: Path) -> dict[str, Any]:
    """The document of a file, as the schema describes it.

    Raises:
        ValueError: the file cannot be read or is no valid file of baselines; one sentence.
    """
    return read_document(path, wrong)


def to_document(result: xr.Dataset, commit: str | None = None) -> dict[str, Any]:
    """The JSON document of baselines."""
    attrs = result.attrs
    rows = (_row(result.isel(row=i)) for i in range(result.sizes["row"]))
    return {
        "format": FORMAT,
        "version": VERSION,
        **{name: attrs[name] for name in COPIED},
        "commit": commit,
        "machine": {name: attrs[name] for name in MACHINE},
        "spec": {name: list(v) if isinstance(v, tuple) else v for name, v in attrs["spec"].items()},
        "results": [row for row in rows if row.get("reason") != PENDING],
    }


def _row(row: xr.Dataset) -> dict[str, Any]:
    words = {name: str(row[name].item()) for name in WORDS}
    if words["reason"]:
        return words
    del words["reason"]
    numbers = {name: float(row[name]) for name in NUMBERS}
    return words | numbers | {"rounds": int(row["rounds"]), "noisy": bool(row["noisy"])}


def wrong(document: Any) -> str:
    """What is wrong with a document, by the schema and by what a schema cannot say; or nothing."""
    if found := problem(document, schema()):
        return found
    seen = set()
    for i, row in enumerate(document["results"]):
        key = tuple(row[name] for name in ("what", "shape", "direction", "against"))
        if row["what"] not in document["spec"]["names"]:
            return f"results[{i}] is of {row['what']}, which the spec does not ask for"
        if key in seen:
            return f"results[{i}] is of {', '.join(key)}, which was there before"
        seen.add(key)
        if "ratio" in row and not row["p20"] <= row["ratio"] <= row["p80"]:
            return f"results[{i}] must have p20 <= ratio <= p80; got {row['p20']}, {row['ratio']}, {row['p80']}"
    return ""
