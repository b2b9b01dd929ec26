"""A result written and read again is the same; a file is whole or not there; a table has every digit and its units."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from workbench.analysis import export
from workbench.analysis.export import csv_text, load_result, netcdf_bytes, save, write

ATTRS: dict[str, Any] = {
    "analysis": "receptive field",
    "model": "gspn_nano",
    "hash": "0123456789abcdef",
    "spec": {"unit": ((3, 4), (0, 1)), "size": (64, 32), "thresholds": (0.2, 0.99), "layer": "stage2.block1"},
    "config": {"heads": (2, 4), "chunk": None, "merge": "released", "rate": 0.1, "deep": {"list": [1, (2,)]}},
    "bad": [("ünreadable\n.png", "It is 'damaged'.")],
    "seed": 2**62,
    "complete": True,
    "nothing": None,
    "empty": "",
    "gap": [],
    "mass": 1.25e-300,
    "two words": 3,
}


def result() -> xr.Dataset:
    """A result with every type that one may have."""
    random = np.random.default_rng(int(torch.randint(2**31, ())))
    rows, cols = random.integers(1, 9, 2)
    return xr.Dataset(
        {
            "map": (("row", "col"), random.random((rows, cols)), {"units": "seconds", "shown": (1, 2), "raw": False}),
            "theoretical": (("row", "col"), random.random((rows, cols)) > 0.5),
            "r": (("threshold",), [0.25, np.nan]),
            "sigma_major": ((), 3.5),
            "odd": (("five",), [np.nan, np.inf, -np.inf, -0.0, 5e-324]),
            "single": (("row",), random.random(rows).astype(np.float32)),
            "half": (("row",), random.random(rows).astype(np.float16)),
            "rgb": (("row", "colour"), random.integers(0, 256, (rows, 3), dtype=np.uint8)),
            "count": ((), np.int64(200)),
            "many": (("five",), np.array([-(2**53), -(2**31) - 1, 0, 2**31, 2**53])),
            "words": (("colour",), np.array(["rot", "grün", ""])),
        },
        coords={"threshold": [0.2, 0.99], "colour": ["red", "green", "blue"], "unit_row": 3},
        attrs=ATTRS,
    )


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    """Equal in values bit for bit, types, order, coordinates and attributes."""
    assert list(a.data_vars) == list(b.data_vars)
    assert set(a.coords) == set(b.coords)
    for name, variable in a.variables.items():
        other = b.variables[name]
        assert (variable.dims, variable.dtype, dict(variable.attrs)) == (other.dims, other.dtype, dict(other.attrs))
        assert variable.values.tobytes() == other.values.tobytes(), name
    assert a.attrs == b.attrs
    assert types(a.attrs) == types(b.attrs)


def types(value: Any) -> Any:
    """The types inside a value, as 1 == True and 1 == 1.0."""
    if isinstance(value, dict):
        return {key: types(item) for key, item in value.items()}
    return type(value), [types(item) for item in value] if isinstance(value, list | tuple) else None


@pytest.mark.parametrize("_", range(5))
def test_a_result_that_is_written_and_read_again_is_the_same(tmp_path: Path, _: int) -> None:
    written = result()
    save(written, tmp_path / "a.nc")
    same(written, load_result(tmp_path / "a.nc"))
    same(written, load_result(save(load_result(tmp_path / "a.nc"), tmp_path / "b.nc")))
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_any_netcdf_reader_finds_numbers_and_text_as_they_are(tmp_path: Path) -> None:
    written = result()
    found = xr.load_dataset(save(written, tmp_path / "a.nc"), engine="scipy", decode_timedelta=False)
    np.testing.assert_array_equal(found["map"], written["map"])
    np.testing.assert_array_equal(found["theoretical"], written["theoretical"])
    assert found["theoretical"].dtype == np.int8
    assert found.attrs["model"] == "gspn_nano"
    assert found.attrs["mass"] == 1.25e-300
    assert json.loads(found.attrs["config"])["merge"] == "released"
    assert found.attrs["complete"] == "true"


def test_a_value_that_the_format_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    for dataset, sentence in (
        (xr.Dataset({"big": ((), np.int64(2**53 + 1))}), "big holds whole numbers beyond"),
        (xr.Dataset({"z": ((), 1j)}), "z is of type complex128"),
        (xr.Dataset({"gone": (("nothing",), np.zeros(0))}), "The dimension nothing has no entries"),
        (xr.Dataset(attrs={"device": torch.device("cpu")}), "The attribute device of the result cannot be written"),
        (xr.Dataset(attrs={"table": {1: 2}}), "The attribute table of the result cannot be written"),
    ):
        with pytest.raises(ValueError, match=sentence):
            save(dataset, tmp_path / "a.nc")
    with pytest.raises(ValueError, match="words holds Python objects"):
        save(xr.Dataset({"words": (("n",), np.array(["a", None], dtype=object))}), tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"written as \.nc, \.npz or \.csv; got 'a\.txt'"):
        save(result(), tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"A \.nc file holds one result; got 2"):
        save([result(), result()], tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_result_is_one_sentence(tmp_path: Path) -> None:
    whole = netcdf_bytes(result())
    other = bytes(xr.Dataset({"x": 1}).to_netcdf(engine="scipy"))
    changed = whole.replace(b"stored_dtype", b"another_type")
    for data, sentence in (
        (b"", "'a.nc' is not a NetCDF 3 file, or it is damaged"),
        (b"CDF\x02 and then text", "'a.nc' is not a NetCDF 3 file, or it is damaged"),
        (whole[: len(whole) // 2], "'a.nc' is not a NetCDF 3 file, or it is damaged"),
        (other, "'a.nc' is a NetCDF file, but no result of the workbench"),
        (changed, "'a.nc' has been changed since the workbench wrote it"),
    ):
        (tmp_path / "a.nc").write_bytes(data)
        with pytest.raises(ValueError, match=sentence):
            load_result(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="There is no result file"):
        load_result(tmp_path / "b.nc")


def test_an_archive_holds_every_array_and_the_attributes_and_runs_no_code(tmp_path: Path) -> None:
    written = result()
    with np.load(save(written, tmp_path / "a.npz"), allow_pickle=False) as found:
        for name, variable in written.variables.items():
            assert found[str(name)].tobytes() == variable.values.tobytes()
            assert found[str(name)].dtype == variable.dtype
        assert json.loads(str(found["dims.json"]))["rgb"] == ["row", "colour"]
        attrs = json.loads(str(found["attrs.json"]))
    assert attrs["spec"]["unit"] == [[3, 4], [0, 1]]
    assert attrs["bad"] == [["ünreadable\n.png", "It is 'damaged'."]]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    write(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a.nc", []
    replace = os.replace

    def look(part: Path, target: Path) -> None:
        seen.append((Path(part).parent, Path(part).read_bytes(), path.exists()))
        replace(part, target)

    monkeypatch.setattr(export.os, "replace", look)
    write(path, b"all of it")
    assert seen == [(tmp_path, b"all of it", False)]
    assert path.read_bytes() == b"all of it"


def table(*results: xr.Dataset) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(results))))


def test_a_table_has_one_row_a_result_with_all_digits_and_units_in_its_header() -> None:
    first = result().assign(sigma_major=((), 0.1 + 0.2))
    second = first.drop_vars("count").assign_attrs(model="a, b", seed=1)
    rows = table(first, second)
    assert [row["model"] for row in rows] == ["gspn_nano", "a, b"]
    assert rows[0]["layer"] == "stage2.block1"
    assert rows[0]["size"] == "64 x 32"
    assert float(rows[0]["sigma_major [pixels]"]) == 0.1 + 0.2
    assert float(rows[0]["r 0.2 [share of the picture's area]"]) == 0.25
    assert math.isnan(float(rows[0]["r 0.99 [share of the picture's area]"]))
    assert (rows[0]["count [images]"], rows[1]["count [images]"]) == ("200", "")
    assert rows[0]["hash"] == ATTRS["hash"]
    assert not any("map" in name or "rgb" in name for name in rows[0])


def test_a_table_has_one_row_a_unit() -> None:
    units = xr.Dataset(
        {"sigma_major": (("unit",), [1.5, 2.5]), "centre_of_mass": (("unit", "axis"), [[1.0, 2.0], [3.0, 4.0]])},
        coords={"axis": ["row", "col"], "unit_row": (("unit",), [0, 5]), "unit_col": (("unit",), [1, 6])},
        attrs=ATTRS,
    )
    first, second, third = table(units, result())
    assert (first["unit_row [cell]"], second["unit_row [cell]"]) == ("0", "5")
    assert second["centre_of_mass col [pixel index]"] == "4.0"
    assert second["sigma_major [pixels]"] == "2.5"
    assert third["sigma_major [pixels]"] == "3.5"
