"""Latency sweeps as files: one JSON document with its provenance, as data/latency/schema.json describes it.

A file of a sweep that was cancelled is as valid as a whole one: it says complete: false and holds what was measured.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .export import write
from .latency_schema import problem
from .latency_sweep import NUMBERS, PENDING, with_exponents

FORMAT, VERSION = "gspn-workbench latency", 1

#: Files larger than this are not read.
LARGEST = 2**24

#: The longest whole number that is read: all such fit 64 bits.
DIGITS = 18

MACHINE = ("device", "device_type", "processor", "cores", "threads")
COPIED = ("complete", "date", "hash", "versions", "method", "memory_method", "noisy_share")
RATES = ("bandwidth", "matmul")


def write_latency(sweep: xr.Dataset, path: Path, *, commit: str | None = None) -> None:
    """Write a sweep, whole or partial, so that the file is at no moment incomplete.

    Args:
        sweep: from `latency_sweep` or `read_latency`.
        path: the .json file.
        commit: of the code that was measured, where it is known; None keeps the one that the sweep was read with.

    Raises:
        ValueError: the sweep does not fit the schema.
        OSError: the file cannot be written.
    """
    document = to_document(sweep, commit)
    if wrong := _wrong(document):
        raise ValueError(f"This is no latency sweep: {wrong}.")
    write(path, json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def read_latency(path: Path) -> xr.Dataset:
    """The sweep of a file, as `latency_sweep` returned it.

    Raises:
        ValueError: the file cannot be read or is no valid latency file; one sentence.
    """
    return from_document(read_document(path, _wrong))


def read_document(path: Path, wrong: Callable[[Any], str]) -> Any:
    """The JSON document of a file that anyone may have written; `wrong` says what is wrong with it, or nothing.

    Raises:
        ValueError: the file cannot be read or is no valid document; one sentence.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST // 2**20} MiB")
        document = json.loads(path.read_bytes(), parse_constant=_refuse, parse_int=_whole, parse_float=_float)
        if found := wrong(document):
            raise ValueError(found)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RecursionError:
        raise ValueError(f"{path} is no latency file: it is nested too deeply.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no latency file: it is no text.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no latency file: it is no JSON, line {error.lineno}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no latency file: {error}.") from None
    return document


def to_document(sweep: xr.Dataset, commit: str | None = None) -> dict[str, Any]:
    """The JSON document of a sweep."""
    attrs = sweep.attrs
    spec = {name: list(v) if isinstance(v, tuple) else v for name, v in attrs["spec"].items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        **{name: attrs[name] for name in COPIED},
        "commit": commit or attrs.get("commit"),
        "machine": {name: attrs[name] for name in MACHINE},
        "spec": spec,
        "rates": {name: float(sweep[name]) for name in RATES},
        "results": [
            row
            for size in sweep["size"].values
            for what in sweep["what"].values
            if (row := _row(sweep.sel(what=what, size=size), str(what), int(size)))
        ],
    }


def _row(cell: xr.Dataset, what: str, size: int) -> dict[str, Any] | None:
    reason = str(cell["reason"].item())
    if reason == PENDING:
        return None
    if reason:
        return {"what": what, "size": size, "reason": reason}
    numbers = {name: float(cell[name]) for name in NUMBERS}
    peak = numbers["peak"] if math.isfinite(numbers["peak"]) else None
    return {"what": what, "size": size} | numbers | {"peak": peak, "n": int(cell["n"]), "noisy": bool(cell["noisy"])}


def from_document(document: dict[str, Any]) -> xr.Dataset:
    """The sweep of a valid document."""
    spec = {name: tuple(v) if isinstance(v, list) else v for name, v in document["spec"].items()}
    over, shape = ("what", "size"), (len(spec["names"]), len(spec["sizes"]))
    variables: dict[str, Any] = {name: (over, np.full(shape, np.nan)) for name in NUMBERS}
    variables["n"] = (over, np.zeros(shape, np.int64))
    variables["noisy"] = (over, np.zeros(shape, bool))
    variables["reason"] = (over, np.full(shape, PENDING, object))
    for row in document["results"]:
        at = spec["names"].index(row["what"]), spec["sizes"].index(row["size"])
        for name, value in ({"reason": ""} | row).items():
            if name in variables and value is not None:
                variables[name][1][at] = value
    attrs = {
        "analysis": "latency_sweep",
        "spec": spec,
        "direction": "forward and backward" if spec["backward"] else "forward",
        **document["machine"],
        **{name: document[name] for name in COPIED},
    }
    if document["commit"]:
        attrs["commit"] = document["commit"]
    sweep = xr.Dataset(
        variables | {name: ((), document["rates"][name]) for name in RATES},
        coords={"what": list(spec["names"]), "size": list(spec["sizes"])},
        attrs=attrs,
    )
    return with_exponents(sweep)


def _wrong(document: Any) -> str:
    """What is wrong with a document, by the schema and by what a schema cannot say; or nothing."""
    if found := problem(document):
        return found
    spec, seen = document["spec"], set()
    for i, row in enumerate(document["results"]):
        pair = (row["what"], row["size"])
        if row["what"] not in spec["names"] or row["size"] not in spec["sizes"]:
            return f"results[{i}] is of {pair[0]} at {pair[1]}, which the spec does not ask for"
        if pair in seen:
            return f"results[{i}] is of {pair[0]} at {pair[1]}, which was there before"
        seen.add(pair)
        if "median" in row and not row["p20"] <= row["median"] <= row["p80"]:
            return f"results[{i}] must have p20 <= median <= p80; got {row['p20']}, {row['median']}, {row['p80']}"
    missing = len(spec["names"]) * len(spec["sizes"]) - len(seen)
    if document["complete"] != (missing == 0):
        return f"complete is {str(document['complete']).lower()}, and {missing} of the results asked for are missing"
    return ""


def _refuse(constant: str) -> float:
    raise ValueError(f"it has the number {constant}, which JSON does not know")


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"it has a whole number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it has a number that is too large")
    return number
