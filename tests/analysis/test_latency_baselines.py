"""Baselines: who runs against whom, in turns, what the ratios are made of, and their file. No time is asserted."""

import json
import sys

import jsonschema
import numpy as np
import pytest
import torch

import workbench.analysis.latency_baselines as module
import workbench.analysis.latency_contests as contests_module
from workbench.analysis.latency_baselines import (
    NAMES,
    BaselinesSpec,
    in_turns,
    latency_baselines,
    ratios,
    stream_baselines,
)
from workbench.analysis.latency_baselines_file import (
    SCHEMA,
    read_baselines,
    schema,
    to_document,
    write_baselines,
    wrong,
)
from workbench.analysis.latency_contests import AGAINST, Contestants, contests
from workbench.analysis.latency_sweep import PENDING

CPU = torch.device("cpu")
SHORT = {"rounds": 3, "budget": 0.01, "device": "cpu"}
PYTORCH = {"eager", "reference", "copy"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small shapes in place of those of the tiny models."""
    monkeypatch.setattr(contests_module, "GSPN_SHAPES", ((3, 6, 2), (2, 5, None)))
    monkeypatch.setattr(contests_module, "SWIN_SHAPES", ((8, 14), (64, 7)))


@pytest.fixture
def clock(monkeypatch):
    """Given times in place of measured ones: the n-th takes n ms; `calls` counts them."""

    class Clock:
        calls = 0

        def __call__(self, run, device, seconds):
            run()
            self.calls += 1
            return np.full(2, 1e-3 * self.calls)

    chosen = Clock()
    monkeypatch.setattr(module, "time_runs", chosen)
    return chosen


def rows_of(result):
    return [{name: result[name].values[i] for name in result.data_vars} for i in range(result.sizes["row"])]


# Contests


def test_every_operator_runs_against_pytorch_and_a_copy_forward_and_backward():
    result = latency_baselines(["normalise_gates", "propagate", "mix", "attend"], **SHORT)
    assert result.attrs["complete"]
    assert (result["reason"] == "").all()
    assert (result["ratio"] > 0).all()
    assert ((result["p20"] <= result["ratio"]) & (result["ratio"] <= result["p80"])).all()
    assert (result["rounds"] == 3).all()
    found = {(row["what"], row["shape"], row["direction"]): set() for row in rows_of(result)}
    for row in rows_of(result):
        found[row["what"], row["shape"], row["direction"]].add(row["against"])
    assert {what for what, _, _ in found} == {"normalise_gates", "propagate", "mix", "attend"}
    for (what, shape, _), against in found.items():
        assert against == (PYTORCH - {"eager"} if "neighborhood" in shape else PYTORCH) | (
            {"unfused"} if what == "mix" else set()
        )
    assert {direction for _, _, direction in found} == {"forward", "forward and backward"}


def test_the_shapes_are_those_of_the_tiny_models(monkeypatch):
    monkeypatch.undo()
    from workbench.models.registry import variant

    gspn, swin = (variant(name).build({}) for name in ("gspn_tiny", "swin_tiny"))
    scans = {(mixer.grn.gamma.shape[1], layer.grid[0], mixer.chunk)
             for layer, (_, mixer) in zip(gspn.layers(), gspn.blocks().values(), strict=True)}  # fmt: skip
    assert scans == set(contests_module.GSPN_SHAPES)
    windows = {(mixer.proj.in_features, layer.grid[0])
               for layer, (_, mixer) in zip(swin.layers(), swin.blocks().values(), strict=True)}  # fmt: skip
    assert windows == set(contests_module.SWIN_SHAPES)
    assert NAMES == ("normalise_gates", "propagate", "mix", "attend", "gspn_tiny", "swin_tiny")


def test_windows_are_shifted_where_there_are_several():
    shapes = [contest.shape for contest in contests(["attend"], 1, CPU) if not contest.backward]
    assert shapes == [
        "windows 7, 8 x 14 x 14",
        "shifted windows 7, 8 x 14 x 14",
        "neighborhood 7, 8 x 14 x 14",
        "windows 7, 64 x 7 x 7",
        "neighborhood 7, 64 x 7 x 7",
    ]


@pytest.mark.parametrize(("backward", "values"), [(False, 2 * 108), (True, 5 * 108)])
def test_a_copy_moves_the_least_bytes_of_the_operator(backward, values, monkeypatch):
    x = torch.ones(12, 9)
    found = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda target, source: found.append((target, source)))
    Contestants({"ours": lambda: 2 * x}, [x], ()).timed("copy", backward)()
    ((target, source),) = found
    assert target.numel() + source.numel() == values
    assert target.data_ptr() != source.data_ptr()


def test_a_contestant_with_another_output_is_left_out_with_the_reason(monkeypatch, clock):
    monkeypatch.setattr(contests_module, "eager_gates", lambda logits: 1.01 * logits.sigmoid())
    result = latency_baselines(["normalise_gates"], **SHORT)
    by_name = {row["against"]: row for row in rows_of(result)}
    assert "its output is not ours: it differs by" in by_name["eager"]["reason"]
    assert np.isnan(by_name["eager"]["ratio"])
    assert by_name["reference"]["reason"] == ""
    assert result.attrs["complete"]


def test_whole_models_run_against_the_eager_gspn_and_transformers():
    result = latency_baselines(["gspn_nano", "swin_nano"], batch=2, **SHORT)
    rows = rows_of(result)
    assert [(row["what"], row["against"], row["shape"]) for row in rows] == [
        ("gspn_nano", "eager", "3 x 64 x 64"), ("swin_nano", "transformers", "3 x 64 x 64"),
    ]  # fmt: skip
    assert all(row["ratio"] > 0 and row["reason"] == "" for row in rows)
    assert result.attrs["transformers"][0].isdigit()


def test_without_transformers_its_row_says_so_and_the_others_are_there(monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "transformers", None)
    rows = rows_of(latency_baselines(["swin_nano", "gspn_nano"], **SHORT))
    assert rows[0]["reason"].startswith("transformers is not installed, so its Swin is not measured: pip install")
    assert rows[1]["reason"] == ""


# Turns and ratios


def test_contestants_take_turns_and_share_the_budget(monkeypatch):
    turns = []

    def time_runs(run, device, seconds):
        run()
        turns.append(seconds)
        return np.array([1e-3, 3e-3, 2e-3])

    order = []
    monkeypatch.setattr(module, "time_runs", time_runs)
    times = in_turns({name: lambda name=name: order.append(name) for name in "abc"}, CPU, 4, 6.0)
    assert order == list("abc") * 4
    assert turns == [0.5] * 12
    assert {name: list(each) for name, each in times.items()} == {name: [2e-3] * 4 for name in "abc"}


def test_a_ratio_is_taken_round_by_round():
    found = ratios(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0]))
    assert (found["ours"], found["other"], found["ratio"], found["p20"], found["p80"]) == (2, 4, 2, 2, 2)
    assert not found["noisy"]
    assert ratios(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 4.0]))["noisy"]
    assert ratios(np.array([1.0, 1.0]), np.array([1.0, 1.0]))["noisy"]  # too few


# Progress, cancelling, refusals


def test_progress_starts_empty_and_goes_contest_by_contest(clock):
    seen = []
    result = latency_baselines(["mix"], **SHORT, progress=seen.append)
    pending = [int((so_far["reason"] == PENDING).sum()) for so_far in seen]
    assert pending == [16, 12, 8, 4, 0]
    assert [so_far.attrs["complete"] for so_far in seen] == [False] * 4 + [True]
    assert seen[-1].identical(result)
    assert clock.calls == 4 * 5 * 3  # contests, contestants, rounds


def test_a_cancelled_run_keeps_what_was_measured(clock):
    spec, done = BaselinesSpec(("propagate",), rounds=3, budget=0.01), []
    for result in stream_baselines(spec, CPU, cancelled=lambda: len(done) == 2):
        done.append(result)
    assert not result.attrs["complete"]
    assert int((result["reason"] == "").sum()) == 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"names": ["mox"]}, "nothing to measure 'mox' against; names are normalise_gates"),
        ({"names": ["davit_nano"]}, "nothing to measure 'davit_nano' against"),
        ({"names": []}, "at least one name"),
        ({"batch": 0}, "batch must be a whole number from 1; got 0"),
        ({"rounds": 1.5}, "rounds must be a whole number from 1; got 1.5"),
        ({"budget": 0.0}, "budget must be a positive number; got 0.0"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda'; got 'tpu'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        latency_baselines(**{"names": ["mix"], **SHORT, **settings})


# Files


def test_every_recorded_file_of_baselines_is_valid():
    assert SCHEMA.is_file()
    for path in sorted(path for path in SCHEMA.parent.glob("*.json") if path != SCHEMA):
        assert read_baselines(path)["complete"], path.name


def test_whole_and_partial_runs_are_written_with_their_provenance_and_follow_the_schema(clock, tmp_path):
    jsonschema.Draft202012Validator.check_schema(schema())
    seen, path = [], tmp_path / "a.json"
    latency_baselines(["mix", "swin_nano"], **SHORT, progress=seen.append)
    for so_far in seen:
        write_baselines(so_far, path, commit="0123abc")
        document = read_baselines(path)
        jsonschema.validate(document, schema())
        assert document == json.loads(json.dumps(to_document(so_far, "0123abc")))
    assert document["complete"]
    assert document["spec"] == {"names": ["mix", "swin_nano"], "batch": 1, "rounds": 3, "budget": 0.01}
    assert document["machine"]["device_type"] == "cpu"
    assert len(document["results"]) == 17
    assert {row["against"] for row in document["results"]} == set(AGAINST)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_the_schema_knows_everyone_who_runs_against_ours():
    for kind in schema()["properties"]["results"]["items"]["anyOf"]:
        assert set(kind["properties"]["against"]["enum"]) == set(AGAINST)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(format="gspn-workbench latency"), "format must be gspn-workbench baselines"),
        (lambda d: d["results"][0].update(ratio=0), r"results\[0\].ratio must be above 0"),
        (lambda d: d["results"][0].update(p20=9e9), "must have p20 <= ratio <= p80"),
        (lambda d: d["results"][0].update(what="attend"), "which the spec does not ask for"),
        (lambda d: d["results"].append(d["results"][0]), "which was there before"),
        (lambda d: d.pop("machine"), "lacks 'machine'"),
    ],
)
def test_a_file_that_was_changed_is_refused_in_one_sentence(change, sentence, clock, tmp_path):
    path = tmp_path / "a.json"
    write_baselines(latency_baselines(["normalise_gates"], **SHORT), path)
    document = json.loads(path.read_text())
    assert wrong(document) == ""
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=sentence):
        read_baselines(path)
