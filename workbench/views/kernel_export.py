"""What leaves the Kernels page: the numbers of what is compiled, and Python that compiles it again."""

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from kernels.instructions import KINDS

if TYPE_CHECKING:
    from .kernels import KernelsView

#: Label of a button -> how a file's name ends, and what is in it.
FILES = {
    "JSON": ("jsonl", "all numbers of what is compiled, as workbench kernels --json prints them"),
    "CSV": ("csv", "all numbers of what is compiled"),
}


def json_lines(rows: Sequence[dict[str, Any]]) -> str:
    """A JSON object a line, as `workbench kernels --json` prints them."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def csv_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each kernel and target; the instruction mix has a column for each kind."""
    flat = [
        {name: value for name, value in row.items() if name not in ("mix", "constants")}
        | {f"instructions {kind}": row["mix"][kind] for kind in KINDS}
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


class Downloads:
    """A button for every kind of file; a file is made when its button is clicked."""

    def __init__(self, page: "KernelsView") -> None:
        self._page = page
        self.buttons = {kind: self._button(kind) for kind in FILES}
        self.row = pn.Row(*self.buttons.values())

    def _button(self, kind: str) -> Any:
        suffix, what = FILES[kind]
        return pmui.FileDownload(
            label=kind, filename=f"kernels.{suffix}", callback=partial(self.file, kind), variant="outlined",
            size="small", description=f"download {what}",
        )  # fmt: skip

    def file(self, kind: str) -> io.BytesIO:
        """The file of the kernels in the table that are compiled.

        Raises:
            ValueError: none is; the page says so.
        """
        try:
            rows = [row for row in self._page.listed() if "registers" in row]
            if not rows:
                raise ValueError("There is nothing to save: none of the kernels in the table is compiled yet.")
            return io.BytesIO((json_lines(rows) if kind == "JSON" else csv_table(rows)).encode())
        except Exception as error:
            self._page.refuse(error)
            raise


def python_code(name: str, targets: Sequence[str]) -> str:
    """A script that compiles the kernel that is looked at."""
    return "\n".join([
        "from kernels.inspect import compile_kernels, python_source",
        "",
        'if __name__ == "__main__":  # the processes that compile import this file',
        f'    rows = [kernel.row() for kernel in compile_kernels({list(targets)!r}, ["{name}"])]',
        f'    source = python_source("{name}")',
        "",
    ])  # fmt: skip
