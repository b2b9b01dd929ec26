"""Imports go down the list of rooms only, and each outside library stays in the rooms that it belongs to."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: The rooms from the ground up: a file imports from its own level and from those before it.
LEVELS = (
    ("kernels",),
    ("workbench.names", "workbench.images"),  # leaves that every room of workbench may use
    ("workbench.models",),
    ("workbench.operators",),
    ("workbench.analysis",),
    ("workbench.plots",),
    ("workbench.views",),
    ("workbench", "workbench.cli"),
    ("apps", "notebooks"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

#: Who draws and who builds pages; nobody else may import these.
INTERFACE = {"workbench.views", "workbench.cli", "apps"}
ONLY_IN = {
    "panel": INTERFACE,
    "panel_material_ui": INTERFACE,
    "holoviews": {"workbench.plots", *INTERFACE},
    "bokeh": {"workbench.plots", *INTERFACE},
}


def violations(root: Path) -> list[str]:
    """One sentence for every import in the four folders under `root` that breaks the rules."""
    known = {module_of(path.relative_to(root)) for path in sources(root)}
    found = []
    for path in sources(root):
        place = path.relative_to(root)
        room = room_of(module_of(place))
        if room is None:
            found.append(f"{place} belongs to no room: put it into one, or name the room in tests/test_rooms.py.")
            continue
        for name in imports(path, package_of(place), known):
            if sentence := judge(room, name):
                found.append(f"{place} {sentence}")
    return found


def judge(room: str, name: str) -> str | None:
    """What is wrong with a file of `room` importing the module `name`, or None."""
    other = room_of(name)
    if other is not None and LEVEL[other] > LEVEL[room]:
        return f"imports {name}, which is above {room}."
    allowed = ONLY_IN.get(name.partition(".")[0])
    if allowed is not None and room not in allowed:
        return f"imports {name}, which only {', '.join(sorted(allowed))} may."
    return None


def room_of(module: str) -> str | None:
    """The room of a module by its dotted name: the longest that contains it; None outside the house or without one."""
    parts = module.split(".")
    if module == "workbench" or parts[0] != "workbench":
        return parts[0] if parts[0] in LEVEL else None
    room = ".".join(parts[:2])
    return room if room in LEVEL else None


def sources(root: Path) -> Iterator[Path]:
    for folder in ("kernels", "workbench", "apps", "notebooks"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in path.parts:
                yield path


def module_of(place: Path) -> str:
    """workbench/plots/affinity.py -> "workbench.plots.affinity"; a package's __init__.py -> the package."""
    parts = place.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(place: Path) -> str:
    return ".".join(place.parent.parts)


def imports(path: Path, package: str, known: set[str]) -> Iterator[str]:
    """The full name of every module that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(code_of(path), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            # `from workbench import images` imports a module of the house, `from workbench import show` a name.
            names = [f"{origin}.{alias.name}" for alias in node.names]
            submodules = [name for name in names if is_module(name, known)]
            yield from submodules
            if len(submodules) < len(names):
                yield origin


def is_module(name: str, known: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for module in known)


def code_of(path: Path) -> str:
    """The Python of a file; of a notebook, its code cells without IPython's own commands."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_no_import_goes_up_the_list_of_rooms() -> None:
    assert violations(ROOT) == []


def plant(root: Path, place: str, code: str) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


UPWARD = [
    ("kernels/scan.py", "import workbench"),
    ("kernels/scan.py", "from workbench import images"),
    ("workbench/images.py", "from .models import registry"),
    ("workbench/models/gspn.py", "from ..operators import PropagationOperator"),
    ("workbench/models/gspn.py", "from .. import plots"),
    ("workbench/analysis/affinity.py", "import workbench as wb"),
    ("workbench/analysis/affinity.py", "def late():\n    from workbench.plots.affinity import row"),
    ("workbench/plots/affinity.py", "from workbench.views import lane"),
    ("workbench/views/affinity.py", "from .. import load_model"),
    ("workbench/views/affinity.py", "import apps.dashboard"),
    ("workbench/cli/__init__.py", "from apps import dashboard"),
    ("workbench/__init__.py", "import apps"),
]
OUTSIDERS = [
    ("kernels/scan.py", "import panel as pn"),
    ("kernels/scan.py", "import holoviews.streams"),
    ("workbench/models/gspn.py", "import panel"),
    ("workbench/analysis/affinity.py", "from holoviews import Image"),
    ("workbench/plots/affinity.py", "from panel.io import state"),
    ("workbench/plots/affinity.py", "import panel_material_ui"),
    ("workbench/__init__.py", "import panel"),
]
ALLOWED = [
    ("kernels/attention/cpu.py", "import numba\nfrom ..backends import run\nfrom . import reference"),
    ("workbench/models/gspn.py", "from kernels.propagation import propagate\nfrom ..names import unknown"),
    ("workbench/operators/__init__.py", "from ..models.base import Layer\nfrom .. import images"),
    ("workbench/plots/affinity.py", "import holoviews as hv\nfrom ..analysis.affinity import Spec"),
    ("workbench/views/affinity.py", "import panel as pn\nfrom ..plots import affinity"),
    ("workbench/__init__.py", "from .views.affinity import Affinity"),
    ("workbench/cli/__init__.py", "import panel\nimport workbench"),
    ("apps/dashboard.py", "import workbench as wb\nimport panel as pn"),
]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house in which every room exists."""
    for room in LEVEL:
        parts = room.split(".")
        is_file = room in ("workbench.names", "workbench.images", "workbench.cli")
        plant(tmp_path, "/".join(parts) + (".py" if is_file else "/__init__.py"), "")
    return tmp_path


@pytest.mark.parametrize(("place", "code"), UPWARD)
def test_a_planted_upward_import_is_caught(house: Path, place: str, code: str) -> None:
    plant(house, place, code)
    (sentence,) = violations(house)
    assert sentence.startswith(f"{place} imports ")
    assert "which is above" in sentence


@pytest.mark.parametrize(("place", "code"), OUTSIDERS)
def test_a_planted_library_in_the_wrong_room_is_caught(house: Path, place: str, code: str) -> None:
    plant(house, place, code)
    (sentence,) = violations(house)
    assert "which only" in sentence


@pytest.mark.parametrize(("place", "code"), ALLOWED)
def test_an_import_within_the_rules_passes(house: Path, place: str, code: str) -> None:
    plant(house, place, code)
    assert violations(house) == []


def test_a_file_outside_every_room_is_caught(house: Path) -> None:
    plant(house, "workbench/helpers.py", "")
    (sentence,) = violations(house)
    assert sentence.startswith("workbench/helpers.py belongs to no room")


def test_the_code_cells_of_a_notebook_are_read(house: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["import panel"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!ls\n", "import workbench as wb"]},
    ]
    plant(house, "notebooks/01.ipynb", json.dumps({"cells": cells}))
    assert violations(house) == []
    cells.append({"cell_type": "code", "source": ["import panel as pn"]})
    plant(house, "notebooks/01.ipynb", json.dumps({"cells": cells}))
    (sentence,) = violations(house)
    assert sentence.startswith("notebooks/01.ipynb imports panel, which only")
