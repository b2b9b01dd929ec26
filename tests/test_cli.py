"""The command line: what it prints, and that a wrong argument is a sentence and no traceback."""

import re

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kernels.inspect import TARGETS
from workbench.cli import app
from workbench.models import list_models, load_model


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def parameters(name: str) -> int:
    return sum(tensor.numel() for tensor in load_model(name).parameters())


def listed(output: str) -> dict[str, int]:
    """Model -> parameters, from the lines of `workbench models`."""
    lines = (re.match(r"(\S+)\s+([\d,]+) parameters", line) for line in output.splitlines())
    return {line[1]: int(line[2].replace(",", "")) for line in lines if line}


def test_models_are_listed_with_their_exact_parameters() -> None:
    found = run("models")
    assert found.exit_code == 0, found.output
    counts = listed(found.output)
    assert list(counts) == list_models()
    assert counts["gspn_tiny"] == 31_510_268
    assert counts["swin_tiny"] == 28_288_354
    for name in list_models("*_nano"):
        assert counts[name] == parameters(name)


def test_models_are_listed_by_pattern_with_their_layers() -> None:
    found = run("models", "swin_nano*")
    assert list(listed(found.output)) == ["swin_nano"]
    assert "4 mixing layers on 32x32, 16x16  at 64 pixels" in found.output


def test_a_pattern_that_no_model_has_lists_nothing() -> None:
    found = run("models", "resnet*")
    assert (found.exit_code, found.output) == (0, "")


def test_an_unknown_target_is_one_sentence_and_no_traceback() -> None:
    found = run("kernels", "--target", "sm_42")
    assert found.exit_code != 0
    assert isinstance(found.exception, SystemExit), repr(found.exception)
    assert all(name in found.output for name in ("targets", "sm_42", *TARGETS))
    assert "Traceback" not in found.output


def test_a_text_without_a_kernels_name_and_an_unknown_kernel_are_one_sentence() -> None:
    for arguments, words in (
        (("--ptx",), "name them with --kernel"),
        (("--source", "--kernel", "scan_diagonals"), "There is no kernel named 'scan_diagonals'"),
        (("--kernel", "scan_diagonals"), "There is no kernel named 'scan_diagonals'"),
    ):
        found = run("kernels", *arguments)
        assert found.exit_code == 2
        assert words in found.output
        assert "Traceback" not in found.output


def test_the_python_of_a_kernel_is_printed_without_compiling_it() -> None:
    found = run("kernels", "--kernel", "scan_rows fp32 64 wide", "--source")
    assert found.exit_code == 0, found.output
    assert "def scan_rows(" in found.output


def test_the_cpu_kernels_are_warmed_on_request() -> None:
    found = run("kernels", "--warm")
    assert found.exit_code == 0, found.output
    assert "compiled" in found.output


@pytest.mark.parametrize("command", ["serve", "models", "erf", "kernels"])
def test_every_command_explains_itself(command: str) -> None:
    found = run(command, "--help")
    assert found.exit_code == 0
    assert command in run("--help").output
