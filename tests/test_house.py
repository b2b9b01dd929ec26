"""House rules that a linter does not know: no trace of one machine, short files, a first sentence in every module."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 400  # lines
WRITTEN = {".py", ".sh", ".md", ".toml", ".yaml", ".yml", ".js", ".css", ".html"}
BINARY = {".png", ".jpg", ".npz", ".nc", ".safetensors"}


def committed() -> list[Path]:
    """The files that are in the repository or would be with the next commit."""
    # safe.directory: the checkout may belong to another user than the one who runs the tests.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "These tests ask git what is committed and need a git checkout."
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def machine_traces() -> re.Pattern[str]:
    """Folders of one machine and hosts that serve packages; joined here so that this file holds none of them."""
    folders = [re.escape(f"/{top}/") for top in ("work", "root", "home", "Users", "opt")]
    hosts = [re.escape(".".join(parts)) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"))]
    hosts += [re.escape(".".join(parts)) for parts in (("download", "pytorch", "org"), ("anaconda", "org"))]
    return re.compile(rf"(?<![\w.])(?:{'|'.join(folders)})\w|(?:{'|'.join(hosts)})")


def modules() -> list[Path]:
    return [path for path in committed() if path.suffix == ".py"]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def prints(module: ast.Module) -> list[int]:
    """The lines that call print."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_no_committed_file_names_a_path_of_one_machine_or_a_registry_host() -> None:
    pattern, found = machine_traces(), []
    for path in committed():
        if path.suffix not in BINARY:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []


def test_the_pattern_finds_traces_and_leaves_other_text_alone() -> None:
    pattern = machine_traces()
    for trace in ("/" + "work/main/x", 'open("/' + 'home/me/x")', "https://" + "pypi." + "org/simple"):
        assert pattern.search(trace)
    for text in (
        "docs/" + "work/notes",
        "./home/x",
        "https://github.com/x",
        "a frame/" + "root/leaf",
        "/usr/bin/env bash",
    ):
        assert not pattern.search(text)


def test_libraries_do_not_print() -> None:
    found = []
    for path in modules():
        place = path.relative_to(ROOT)
        if place.parts[0] in ("kernels", "workbench"):
            found += [f"{place}:{line}" for line in prints(tree(path))]
    assert found == []


def test_a_call_of_print_is_found_and_a_word_is_not() -> None:
    assert prints(ast.parse("# print(0)\ntext = 'print(1)'\npprint(2)\nprint(3)\n")) == [4]


def test_no_file_is_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in committed()
        if path.suffix in WRITTEN
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_module_opens_by_saying_what_is_in_it() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in modules() if not ast.get_docstring(tree(path))] == []


def test_every_dependency_says_what_it_is_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f'"{requirement}",'))
        assert re.search(r"#\s*\w+", line), f"{requirement} has no comment"
