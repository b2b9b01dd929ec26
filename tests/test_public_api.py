"""The public names of the workbench: they exist, answer a wrong argument in one sentence, refuse another `kernels`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn
import pytest

import workbench as wb

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", wb.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(wb, name).__doc__


def test_public_names_are_sorted() -> None:
    assert wb.__all__ == sorted(wb.__all__)


def test_models_are_listed_by_pattern() -> None:
    assert wb.list_models("gspn_*") == ["gspn_base", "gspn_nano", "gspn_small", "gspn_tiny"]


def test_show_opens_a_viewer_on_a_model_and_an_image() -> None:
    view = wb.show("swin_nano", "astronaut", row=3, col=4)
    assert isinstance(view, pn.viewable.Viewer)
    assert (view.model, view.image, view.other, view.row, view.col) == ("swin_nano", "astronaut", "none", 3, 4)


def test_show_takes_a_loaded_model_and_an_array() -> None:
    model = wb.load_model("gspn_nano", seed=4)
    pixels = np.linspace(0, 1, 40 * 60 * 3).reshape(40, 60, 3)
    view = wb.show(model, pixels, other="swin_nano")
    assert view.other == "swin_nano"
    (given, beside) = view._drawing.results
    assert (given.attrs["seed"], given.attrs["weights_sha256"]) == (4, model.weights_sha256)
    assert given.attrs["image"] == beside.attrs["image"] == "upload"


def test_patterns_are_listed_and_computed_without_a_model() -> None:
    assert list(wb.list_patterns())[:3] == ["swin", "nat", "dinat"]
    result = wb.patterns(wb.PatternSpec("nat(kernel=3)", grid=(5, 6), position=(0, 1)))
    assert int(result["keys"].sum()) == 9


def test_show_opens_the_page_of_patterns() -> None:
    view = wb.show(page="patterns", image="astronaut", pattern="halo", rows=16, cols=16)
    assert isinstance(view, pn.viewable.Viewer)
    assert (view.pattern, view.other, view.image) == ("halo(block=8, halo=3, border=crop)", "none", "astronaut")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"page": "paterns"}, "There is no page named 'paterns'; did you mean patterns?"),
        ({"page": "patterns", "pattern": "swim"}, "There is no pattern named 'swim'; did you mean swin"),
        ({"page": "patterns", "kernel": 7}, "There is no setting named 'kernel' in patterns"),
        ({"page": "afinity"}, "There is no page named 'afinity'; did you mean affinity"),
        ({"model": "gspn_nan"}, "There is no model named 'gspn_nan'; did you mean gspn_nano"),
        ({"other": "swin_nan"}, "There is no model named 'swin_nan'; did you mean swin_nano"),
        ({"image": "cofee"}, "There is no image named 'cofee'; did you mean coffee?"),
        ({"layr": "stage1.block1"}, "There is no setting named 'layr' in affinity; did you mean layer"),
        ({"layer": "stage1.block9"}, "There is no layer named 'stage1.block9' in gspn_nano; did you mean stage1.block"),
    ],
)
def test_a_wrong_argument_of_show_is_one_sentence_with_near_matches(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="There is no") as raised:
        wb.show(**arguments)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_page_of_patterns_takes_the_name_of_a_picture() -> None:
    with pytest.raises(ValueError, match=r"^image must be the name of a picture .* coffee.*; got ndarray\.$"):
        wb.show(page="patterns", image=np.zeros((4, 4, 3)))


def test_another_package_named_kernels_is_refused_in_one_sentence(tmp_path: Path) -> None:
    foreign = tmp_path / "kernels"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("DISTRIBUTION = 'kernels'\n")
    done = subprocess.run(
        [sys.executable, "-c", "import workbench"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: `kernels` at {foreign / '__init__.py'} is not the package that comes with gspn-workbench: "
        "uninstall it, or install gspn-workbench into an environment of its own."
    )
