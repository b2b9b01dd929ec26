"""Results as files: NetCDF and npz hold everything and NetCDF reads back; a CSV table holds the numbers of several.

A file appears whole or not at all: it is written under another name in the same folder and then renamed.
"""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

#: The attribute that tells a NetCDF file of this module from others: the variables' names in their order, as JSON.
LAYOUT = "workbench_variables"

#: How the name of a file ends while it is being written; one that stays is what a killed process left.
PART = ".part"

#: What a table says of a result before its numbers, where the result has it.
DESCRIPTION = ("analysis", "model", "weights", "seed", "layer", "unit_name", "channels", "gradient", "size", "method")

#: Dimensions that become columns, one for each label; variables over other dimensions are maps and curves.
LABELLED = ("threshold", "axis")

#: Units of variables that do not tell theirs.
UNITS = {
    "r": "share of the picture's area",
    "r_ranked": "share of the pixels",
    "centre_of_mass": "pixel index",
    "unit_centre": "pixel index",
    "unit_row": "cell",
    "unit_col": "cell",
    "sigma_major": "pixels",
    "sigma_minor": "pixels",
    "orientation": "degrees",
    "count": "images",
    "nonfinite": "images",
    "mass_outside": "share of the mass",
}


def save(results: xr.Dataset | Iterable[xr.Dataset], path: str | os.PathLike[str]) -> Path:
    """Write results as the kind of file that the path's suffix names, and return the path.

    Args:
        results: one result, or for .csv several.
        path: ends in .nc (NetCDF 3), .npz (NumPy) or .csv (a table of the metrics).

    Raises:
        ValueError: another suffix, several results for a file of one, or a value that the format cannot hold.
        OSError: the file cannot be written.
    """
    path = Path(path)
    several = [results] if isinstance(results, xr.Dataset) else list(results)
    if path.suffix == ".csv":
        write(path, csv_text(several).encode())
    elif path.suffix not in (".nc", ".npz"):
        raise ValueError(f"A result is written as .nc, .npz or .csv; got {path.name!r}.")
    elif len(several) != 1:
        raise ValueError(f"A {path.suffix} file holds one result; got {len(several)}.")
    else:
        write(path, netcdf_bytes(several[0]) if path.suffix == ".nc" else npz_bytes(several[0]))
    return path


def write(path: Path, data: bytes) -> None:
    """Put bytes into a file that is at no moment incomplete, not even when the process or the machine stops."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a machine that stops may keep the new name and lose the content
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def netcdf_bytes(dataset: xr.Dataset) -> bytes:
    """The result as a NetCDF 3 file, which every NetCDF reader opens; `load_result` gives it back.

    NetCDF 3 has no booleans, no unsigned and no 64-bit integers: those are stored as the smallest type that holds
    their values. Attributes other than text and floating-point numbers are stored as JSON text, in which a tuple is
    {"tuple": [...]}.

    Raises:
        ValueError: an attribute that JSON has no form for, a dimension without entries, or an integer that no type of
            NetCDF 3 holds.
    """
    for dimension, length in dataset.sizes.items():
        if length == 0:  # in NetCDF 3, length 0 marks the one dimension that may still grow
            raise ValueError(f"The dimension {dimension} has no entries, which a NetCDF 3 file cannot hold.")
    stored = {name: _stored(str(name), variable) for name, variable in dataset.variables.items()}
    plain = xr.Dataset(
        {name: stored[name] for name in dataset.data_vars},
        coords={name: stored[name] for name in dataset.coords},
        attrs=_plain_attrs(dataset.attrs, "the result") | {LAYOUT: json.dumps([*map(str, dataset.data_vars)])},
    )
    encoding = {name: {"_FillValue": None} for name in plain.variables}
    return bytes(cast(Any, plain.to_netcdf(engine="scipy", format="NETCDF3_64BIT", encoding=encoding)))


def load_result(path: str | os.PathLike[str]) -> xr.Dataset:
    """The result of a .nc file that `save` wrote: equal variables of the same types, and the same attributes.

    Raises:
        ValueError: there is no such file, or it is not one of these.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no result file {str(path)!r}.")
    try:
        # Bytes, not the path: nothing of the file stays open or mapped.
        found = xr.load_dataset(
            io.BytesIO(path.read_bytes()),
            engine="scipy",
            decode_times=False,
            decode_timedelta=False,
            mask_and_scale=False,
        )
    except Exception as error:  # the reader raises whatever it likes on a broken file
        raise ValueError(f"{path.name!r} is not a NetCDF 3 file, or it is damaged.") from error
    if LAYOUT not in found.attrs:
        raise ValueError(f"{path.name!r} is a NetCDF file, but no result of the workbench.")
    try:
        variables = {name: _restored(variable) for name, variable in found.variables.items()}
        return xr.Dataset(
            {name: variables[name] for name in json.loads(found.attrs[LAYOUT])},
            coords={name: variables[name] for name in found.coords},
            attrs=_restored_attrs(found.attrs),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name!r} has been changed since the workbench wrote it: {error}.") from error


def npz_bytes(dataset: xr.Dataset) -> bytes:
    """The result as a NumPy archive: each variable an array, and `dims.json` and `attrs.json`, which are JSON text."""
    arrays = {str(name): variable.values for name, variable in dataset.variables.items()}
    for name, values in arrays.items():
        if values.dtype == object:
            raise ValueError(f"{name} holds Python objects, which an .npz file cannot.")
    dims = {str(name): list(variable.dims) for name, variable in dataset.variables.items()}
    texts = {
        "dims.json": np.array(json.dumps(dims)),
        "attrs.json": np.array(_json(dict(dataset.attrs), "attrs", tags=False)),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **cast(Any, arrays | texts))
    return buffer.getvalue()


# Variables


def _stored(name: str, variable: xr.Variable) -> xr.Variable:
    """A variable of a type that NetCDF 3 has; its own type is noted in the attribute `stored_dtype`."""
    values = variable.values
    attrs = _plain_attrs(variable.attrs, name) | {"stored_dtype": values.dtype.str}
    kind = values.dtype.kind
    if kind == "b":
        values = values.astype(np.int8)
    elif kind in "iu":
        values = _smallest(name, values)
    elif kind == "f":
        values = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
    elif kind != "U":
        raise ValueError(f"{name} is of type {values.dtype}, which a NetCDF 3 file cannot hold.")
    return xr.Variable(variable.dims, values, attrs)


def _smallest(name: str, values: np.ndarray) -> np.ndarray:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    if low >= -(2**53) and high <= 2**53:
        return values.astype(np.float64)  # exact
    raise ValueError(f"{name} holds whole numbers beyond 2 ** 53, which a NetCDF 3 file cannot.")


def _restored(variable: xr.Variable) -> xr.Variable:
    attrs = _restored_attrs(variable.attrs)
    dtype = np.dtype(attrs.pop("stored_dtype"))
    return xr.Variable(variable.dims, np.asarray(variable.values).astype(dtype), attrs)


# Attributes


def _plain_attrs(attrs: dict[Any, Any], owner: str) -> dict[str, Any]:
    """Attributes as NetCDF has them: text and floats as they are, everything else as JSON text, which is listed."""
    plain: dict[str, Any] = {}
    as_json = []
    for name, value in attrs.items():
        if (isinstance(value, str) and value and "\0" not in value) or type(value) is float:
            plain[name] = value
        else:
            plain[name] = _json(value, f"{name} of {owner}")
            as_json.append(name)
    return plain | {"json_attrs": json.dumps(as_json)} if as_json else plain


def _restored_attrs(attrs: dict[Any, Any]) -> dict[str, Any]:
    as_json = json.loads(attrs.get("json_attrs", "[]"))
    return {
        name: json.loads(value, object_hook=_untagged)
        if name in as_json
        else (float(value) if isinstance(value, np.floating) else value)
        for name, value in attrs.items()
        if name not in ("json_attrs", LAYOUT)
    }


def _json(value: Any, what: str, tags: bool = True) -> str:
    try:
        return json.dumps(_tagged(value, tags), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The attribute {what} cannot be written as JSON: {error}.") from error


def _tagged(value: Any, tags: bool) -> Any:
    """The value in JSON's own types. With tags a tuple becomes {"tuple": [...]}, so that it comes back as one."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a mapping has keys that are not text")
        return {key: _tagged(item, tags) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        items = [_tagged(item, tags) for item in value]
        return {"tuple": items} if tags and isinstance(value, tuple) else items
    return value


def _untagged(mapping: dict[str, Any]) -> Any:
    return tuple(mapping["tuple"]) if mapping.keys() == {"tuple"} else mapping


# Tables


def csv_text(results: Iterable[xr.Dataset]) -> str:
    """A table of the metrics: a row for each result, or for each of its units, and a header that names the units.

    Numbers have all their digits. A column that a result does not have stays empty; "nan" is a number that has no
    value, such as a threshold that is not reached inside the picture.
    """
    rows = [row for result in results for row in _rows(result)]
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(result: xr.Dataset) -> Iterable[dict[str, str]]:
    described = {name: value for name in DESCRIPTION if (value := _described(result, name)) is not None}
    last = {"hash": str(result.attrs["hash"])} if "hash" in result.attrs else {}
    for number in range(result.sizes.get("unit", 1)):
        row = result.isel(unit=number) if "unit" in result.sizes else result
        yield described | _numbers(row) | last


def _described(result: xr.Dataset, name: str) -> str | None:
    value = result.attrs.get(name, result.attrs.get("spec", {}).get(name))
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return None if value is None else str(value)


def _numbers(row: xr.Dataset) -> dict[str, str]:
    """Column -> number of one row: every variable without dimensions, and one column a label of the short ones."""
    found = {}
    for name in (*row.coords, *row.data_vars):
        variable = row.variables[name]
        units = variable.attrs.get("units", UNITS.get(str(name), ""))
        suffix = f" [{units}]" if units else ""
        if variable.ndim == 0:
            found[f"{name}{suffix}"] = _text(variable.values)
        elif variable.dims[0] in LABELLED and variable.ndim == 1 and name not in row.dims:
            labels = row[variable.dims[0]].values
            found |= {
                f"{name} {label}{suffix}": _text(value) for label, value in zip(labels, variable.values, strict=True)
            }
    return found


def _text(value: Any) -> str:
    return str(np.asarray(value).item())
