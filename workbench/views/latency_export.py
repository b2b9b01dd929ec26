"""What leaves the Latency page: the sweep as the file that `workbench latency` writes, as a table, and its figure."""

import csv
import io
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.analysis.latency_file import write_latency
from workbench.analysis.latency_sweep import NUMBERS, LatencySweepSpec
from workbench.plots.latency_paper import png

if TYPE_CHECKING:
    from .latency import LatencyView

#: Label of a button -> how a file's name ends. JSON is what `workbench latency --out` writes.
FILES = {"JSON": "json", "CSV": "csv", "Figure PNG": "png"}

#: What the machine and the settings are called in the table's last columns.
SETTINGS = ("batch", "channels", "dtype")
PROVENANCE = ("direction", "device", "processor", "threads", "method", "date")


def json_bytes(sweep: xr.Dataset) -> bytes:
    """The file that `workbench latency --out` writes of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency.json"
        write_latency(sweep, path)
        return path.read_bytes()


def csv_bytes(sweep: xr.Dataset) -> bytes:
    """A row for each name and size; seconds, bytes and operations; empty where nothing was measured."""
    a, buffer = sweep.attrs, io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["what", "size", *NUMBERS, "n", "noisy", "reason", *SETTINGS, *PROVENANCE, "torch"])
    settings = [*(a["spec"][name] for name in SETTINGS), *(a[name] for name in PROVENANCE), a["versions"]["torch"]]
    for what in sweep["what"].values:
        for size in sweep["size"].values:
            cell = sweep.sel(what=what, size=size)
            numbers = [float(cell[name]) for name in NUMBERS]
            shown = ["" if number != number else repr(number) for number in numbers]
            end = [int(cell["n"]), bool(cell["noisy"]), cell["reason"].item()]
            table.writerow([what, size, *shown, *end, *settings])
    return buffer.getvalue().encode()


class Downloads:
    """A button for every kind of file; a file is made when its button is clicked, from what is shown then."""

    def __init__(self, page: "LatencyView") -> None:
        self._page = page
        self.buttons = {kind: self._button(kind) for kind in FILES}
        self.row = pn.Row(*self.buttons.values())

    def _button(self, kind: str) -> Any:
        return pmui.FileDownload(
            label=kind, filename=f"latency.{FILES[kind]}", callback=partial(self.file, kind), variant="outlined",
            size="small",
        )  # fmt: skip

    def file(self, kind: str) -> io.BytesIO:
        """The file of what is shown; the button learns its name.

        Raises:
            ValueError: nothing has been measured; the page says so.
        """
        page = self._page
        drawing = page.shown()
        try:
            sweep = None if drawing is None else drawing.sweep
            if kind == "Figure PNG":
                data = png(page.figure_names(), sweep, page.shown_recordings(), page.floors)
            elif sweep is None:
                raise ValueError("There is nothing to save: nothing has been measured yet.")
            else:
                data = json_bytes(sweep) if kind == "JSON" else csv_bytes(sweep)
            name = "recorded" if sweep is None else sweep.attrs["hash"]
            self.buttons[kind].filename = f"latency_{name}.{FILES[kind]}"
            return io.BytesIO(data)
        except Exception as error:
            page.refuse(error)
            raise


def python_code(request: LatencySweepSpec) -> str:
    """A script that measures what the page would."""
    return (
        "import workbench as wb\n\n"
        f"result = wb.latency_sweep(\n    {list(request.names)!r},\n    {list(request.sizes)!r},\n"
        f"    batch={request.batch}, channels={request.channels}, dtype={request.dtype!r},\n"
        f"    backward={request.backward}, budget={request.budget:g},\n)\n"
    )
