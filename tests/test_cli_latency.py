"""`workbench latency`: the file it writes, what Ctrl-C leaves, the comparison of two files, one-sentence refusals."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from workbench.analysis import latency_contests as contests_module
from workbench.analysis import latency_sweep as sweep_module
from workbench.analysis.latency_baselines_file import read_baselines
from workbench.analysis.latency_file import read_latency
from workbench.cli import app

SHORT = ("--budget", "0.01", "--channels", "8", "--device", "cpu")


@pytest.fixture(autouse=True)
def no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "machine_rates", lambda device, dtype: {"bandwidth": 1e9, "matmul": 1e10})


def latency(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["latency", *map(str, arguments)])


def measured(path: Path) -> Path:
    done = latency("depthwise 7x7", "neighborhood attention", "--sizes", "8,5", *SHORT, "--out", path)
    assert done.exit_code == 0, done.output
    return path


def test_times_are_printed_and_written_with_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    settings = ("--sizes", "16,8", *SHORT, "--backward", "--commit", "0123abc", "--out", path)
    done = latency("depthwise 7x7", "swin_nano", *settings)
    assert done.exit_code == 0, done.output
    assert f"Written to {path}." in done.output
    assert "depthwise 7x7: time ~ pixels^" in done.output
    found = read_latency(path)
    assert found.attrs["complete"]
    assert found.attrs["commit"] == "0123abc"
    expected = {"names": ("depthwise 7x7", "swin_nano"), "sizes": (8, 16), "backward": True, "channels": 8}
    assert expected.items() <= found.attrs["spec"].items()
    assert json.loads(path.read_text())["results"][0]["what"] == "depthwise 7x7"


def test_a_size_that_does_not_fit_is_a_line_with_its_reason(tmp_path: Path) -> None:
    done = latency("neighborhood attention", "--sizes", "5", *SHORT)
    assert done.exit_code == 0, done.output
    assert "left out: neighborhood 7x7 needs a map of at least 7 rows" in done.output
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_valid_file_with_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = sweep_module.time_runs, []

    def interrupted(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep_module, "time_runs", interrupted)
    path = tmp_path / "a.json"
    done = latency("depthwise 7x7", "linear attention", "--sizes", "4,8", *SHORT, "--out", path)
    assert done.exit_code == 130
    assert f"Stopped; {path} has what was measured so far." in done.output
    found = read_latency(path)
    assert not found.attrs["complete"]
    assert int((found["reason"] == "").sum()) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_two_files_are_compared_in_a_table(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json")
    document = json.loads(a.read_text())
    for row in document["results"]:
        row |= {name: 2 * row[name] for name in ("median", "p20", "p80") if name in row}
    b = tmp_path / "b.json"
    b.write_text(json.dumps(document))
    done = latency("--compare", a, b)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(" 2.000" in line for line in lines) == 3
    assert [line.split() for line in lines if "not in both" in line] == [
        ["neighborhood", "attention", "5", "not", "in", "both"]
    ]
    assert "not measurements of one thing" not in done.output


def test_files_of_different_devices_are_compared_with_a_warning(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json")
    b = tmp_path / "b.json"
    b.write_text(a.read_text().replace('"device": "CPU', '"device": "another CPU'))
    done = latency("--compare", a, b)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("These are not measurements of one thing")
    assert "another CPU" in done.output.splitlines()[0]


def test_baselines_are_a_table_and_a_file_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests_module, "GSPN_SHAPES", ((3, 6, 2), (2, 5, None)))
    path = tmp_path / "b.json"
    settings = ("--rounds", "3", "--budget", "0.01", "--device", "cpu", "--commit", "0123abc", "--out", path)
    done = latency("mix", "normalise_gates", "--baselines", *settings)
    assert done.exit_code == 0, done.output
    document = read_baselines(path)
    assert document["complete"]
    assert document["commit"] == "0123abc"
    assert document["spec"] == {"names": ["mix", "normalise_gates"], "batch": 1, "rounds": 3, "budget": 0.01}
    printed = [line for line in done.output.splitlines() if line.startswith(("mix ", "normalise_gates "))]
    assert len(printed) == len(document["results"]) == 2 * 2 * (4 + 3)
    for line, row in zip(printed, document["results"], strict=True):
        assert row["shape"] in line
        assert f" {row['against']} " in line
        assert f" {row['ratio']:.2f} " in line
        assert line.endswith("noisy") == row["noisy"]
    assert "ratio: other / ours, above 1 where ours is faster." in done.output
    assert "copy: a copy that reads and writes the least bytes" in done.output


def test_ctrl_c_leaves_valid_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests_module, "GSPN_SHAPES", ((3, 6, 2), (2, 5, None)))
    calls = []

    def interrupted(contestants: object) -> object:
        calls.append(contestants)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(contests_module.Contestants, "check", interrupted)
    path = tmp_path / "b.json"
    done = latency("mix", "--baselines", "--rounds", "1", "--budget", "0.01", "--device", "cpu", "--out", path)
    assert done.exit_code == 130
    assert f"Stopped; {path} has what was measured so far." in done.output
    document = read_baselines(path)
    assert not document["complete"]
    assert len(document["results"]) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--baselines", "--sizes", "64"), "--baselines has its own shapes and measures float32: leave --sizes out."),
        (("--baselines", "--backward", "--dtype", "float16"), "leave --dtype, --backward out."),
        (("gspn_nano", "--rounds", "3"), "--rounds belongs to --baselines."),
        (("davit_nano", "--baselines"), "There is nothing to measure 'davit_nano' against; names are normalise_gates"),
        (("mix", "--baselines", "--rounds", "0"), "rounds must be a whole number from 1; got 0."),
        ((), "Give the names of models or operators to time, or --compare with two files."),
        (("gspn_nan",), "There is no operator or model named 'gspn_nan'; did you mean gspn_nano"),
        (("gspn_nano", "--sizes", "64;128"), "--sizes takes whole numbers, several as 64,128; got '64;128'."),
        (("gspn_nano", "--sizes", "0"), "sizes must be whole numbers from 1; got 0."),
        (("gspn_nano", "--budget", "-1"), "budget must be a positive number; got -1.0."),
        (("gspn_nano", "--dtype", "int8"), "dtype must be one of"),
        (("gspn_nano", "--compare", "a", "b"), "--compare takes two files and measures nothing"),
        (("--compare", "missing.json", "missing.json"), "missing.json cannot be read: No such file"),
        (("depthwise 7x7", "--sizes", "4", *SHORT, "--out", "missing/a.json"), "cannot be written to 'missing/a.json'"),
        (("depthwise 7x7", "--sizes", "4", *SHORT, "--commit", "main"), None),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    arguments: tuple[str, ...], sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if sentence is None:  # a commit is checked where it is written
        arguments, sentence = (*arguments, "--out", "a.json"), "commit must match"
    done = latency(*arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.output
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []
