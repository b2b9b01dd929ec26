"""Latency sweeps as files and side by side: what is written is read again, what is broken is refused in a sentence."""

import copy
import json
import math

import jsonschema
import numpy as np
import pytest
import xarray as xr

from workbench.analysis import latency_sweep as sweep_module
from workbench.analysis.latency_compare import compare
from workbench.analysis.latency_file import from_document, read_latency, to_document, write_latency
from workbench.analysis.latency_schema import SCHEMA, problem, schema
from workbench.analysis.latency_sweep import latency_sweep

RATES = {"bandwidth": 1e9, "matmul": 1e10}
SHORT = {"budget": 0.01, "channels": 8, "device": "cpu"}


@pytest.fixture(autouse=True)
def no_rates(monkeypatch):
    """The rates of the machine, given instead of measured: nothing here asks how fast it is."""
    monkeypatch.setattr(sweep_module, "machine_rates", lambda device, dtype: RATES)


@pytest.fixture
def clock(monkeypatch):
    """Given times in place of measured ones; set `clock.seconds` to choose them, `clock.calls` counts."""

    class Clock:
        calls = 0
        seconds = (1e-3, 1e-3, 1e-3, 1e-3)

        def __call__(self, run, device, seconds, most):
            self.calls += 1
            run()
            return np.array(self.seconds)

    chosen = Clock()
    monkeypatch.setattr(sweep_module, "time_runs", chosen)
    return chosen


@pytest.fixture
def result(clock):
    return latency_sweep(["gspn local", "neighborhood attention"], [4, 8], **SHORT)


def test_every_recorded_file_is_valid():
    recorded = sorted(path for path in SCHEMA.parent.glob("*.json") if path != SCHEMA)
    assert SCHEMA.is_file()
    for path in recorded:
        assert read_latency(path).attrs["complete"], path.name


def test_the_schema_is_one_and_a_written_sweep_follows_it(result):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(json.dumps(to_document(result))), schema())


def test_a_sweep_is_read_as_it_was_written_and_appears_whole(result, tmp_path):
    path = tmp_path / "a.json"
    write_latency(result, path)
    xr.testing.assert_identical(read_latency(path), result)
    write_latency(result, path, commit="0123abc")
    again = read_latency(path)
    assert again.attrs["commit"] == "0123abc"
    write_latency(again, path)
    xr.testing.assert_identical(read_latency(path), again)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_cancelled_sweep_leaves_a_valid_partial_file(clock, tmp_path):
    path = tmp_path / "a.json"
    part = latency_sweep(
        ["depthwise 7x7"], [4, 8, 16], cancelled=lambda: clock.calls == 2,
        progress=lambda so_far: write_latency(so_far, path), **SHORT,
    )  # fmt: skip
    read = read_latency(path)
    xr.testing.assert_identical(read, part)
    assert json.loads(path.read_text())["complete"] is False
    assert np.isfinite(read["exponent"]).all()


def broken(document):
    """(how, document, whether the schema itself says so) for many ways in which a document may be wrong."""
    ways = [
        ("format", "other", True), ("version", 2, True), ("version", True, True), ("complete", "yes", True),
        ("complete", False, False), ("date", "yesterday", True), ("commit", "x", True), ("hash", "12", True),
        ("spec.names", [], True), ("spec.names", ["gspn local"] * 2, True), ("spec.sizes", [4, 0], True),
        ("spec.dtype", "float64", True), ("spec.budget", 0, True), ("spec.memory", "all", True),
        ("spec.extra", 1, True), ("machine.cores", 1.5, True), ("machine.device_type", "tpu", True),
        ("machine.processor", "", True), ("versions", {}, True), ("versions.torch", 2, True), ("rates", [], True),
        ("rates.matmul", 0, True), ("results", {}, True), ("results.0", 3, True), ("results.0.n", 0, True),
        ("results.0.median", "fast", True), ("results.0.median", True, True), ("results.0.peak", -1, True),
        ("results.0.what", "swin_nano", False), ("results.0.size", 5, False), ("results.0.size", 8, False),
        ("results.0.p20", 1.0, False), ("results.0.reason", "also", True), ("results.1.reason", "", True),
        ("noisy_share", None, True), ("unknown", 1, True),
    ]  # fmt: skip
    for place, value, by_schema in ways:
        changed = copy.deepcopy(document)
        *way, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
        inside = changed
        for part in way:
            inside = inside[part]
        inside[last] = value
        yield f"{place} = {value!r}", changed, by_schema
    for name in document:
        yield f"no {name}", {key: value for key, value in document.items() if key != name}, True
    yield "a list", [document], True


def test_a_broken_file_is_refused_in_one_sentence_and_the_validator_agrees_with_json_schema(result, tmp_path):
    validator = jsonschema.Draft202012Validator(schema())
    document = json.loads(json.dumps(to_document(result)))
    assert document["results"][1]["reason"]
    assert problem(document) == ""
    assert validator.is_valid(document)
    path = tmp_path / "broken.json"
    for how, changed, by_schema in broken(document):
        assert (problem(changed) != "") == by_schema, how
        assert validator.is_valid(changed) != by_schema, how
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"broken\.json is no latency file: ") as raised:
            read_latency(path)
        assert "\n" not in str(raised.value), how
        assert len(str(raised.value)) < 300 + len(str(path)), how


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": NaN}', b'{"version": 1e999}', b"9" * 5000, b"null", None],
)
def test_a_file_that_is_no_document_is_refused_in_one_sentence(data, tmp_path):
    path = tmp_path / "a.json"
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.json (is no latency file|cannot be read)") as raised:
        read_latency(path)
    assert "\n" not in str(raised.value)


def test_a_sweep_with_a_time_that_is_no_number_is_not_written(result, tmp_path):
    result["median"].loc["gspn local", 4] = math.nan
    with pytest.raises(ValueError, match=r"This is no latency sweep: results\[0\]\.median must be of type number"):
        write_latency(result, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


# Comparison


def test_two_sweeps_are_compared_by_ratios_where_both_have_a_time(result, clock):
    clock.seconds = (2e-3, 2e-3, 4e-3)
    other = latency_sweep(["neighborhood attention", "gspn local", "full attention"], [8, 4, 16], **SHORT)
    found = compare(result, other)
    assert found.attrs == {"comparable": True, "note": ""}
    np.testing.assert_allclose(found["ratio"].sel(what="gspn local"), 2)
    assert np.isnan(found["ratio"].sel(what="neighborhood attention", size=4))
    assert found["noisy"].sel(what="gspn local").all()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("machine", {"device": "NVIDIA H100"}, "device CPU"),
        ("machine", {"processor": "another"}, "and another"),
        ("spec", {"backward": True}, "backward False and True"),
        (None, {"method": "a stopwatch"}, "method torch.utils.benchmark and a stopwatch"),
    ],
)
def test_different_devices_methods_or_inputs_are_not_compared_as_one(result, place, value, words):
    document = to_document(result)
    (document[place] if place else document).update(value)
    found = compare(result, from_document(document))
    assert not found.attrs["comparable"]
    assert words in found.attrs["note"]
    np.testing.assert_allclose(found["ratio"].sel(what="gspn local"), 1)


def test_sweeps_without_anything_in_common_are_refused(result, clock):
    with pytest.raises(ValueError, match="no name and size in common"):
        compare(result, latency_sweep(["full attention"], [4], **SHORT))
