"""What leaves the Stability page: the result as NetCDF, its curves as CSV, and Python that computes it."""

import io
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from workbench.analysis.export import netcdf_bytes
from workbench.analysis.stability_export import curves_csv
from workbench.analysis.stability_spec import StabilitySpec

from .stability_request import StabilityDrawing
from .state import shared_model

if TYPE_CHECKING:
    from .stability import StabilityView

#: Label of a button -> how a file's name ends, and what is in it.
FILES = {"NetCDF": ("nc", "everything that was computed"), "CSV": ("csv", "the curves and numbers")}


class Downloads:
    """A button for every kind of file; a file is made when its button is clicked."""

    def __init__(self, page: "StabilityView") -> None:
        self._page = page
        self.buttons = {kind: self._button(kind) for kind in FILES}
        self.row = pn.Row(*self.buttons.values())

    def _button(self, kind: str) -> Any:
        suffix, what = FILES[kind]
        return pmui.FileDownload(
            label=kind, filename=f"stability.{suffix}", callback=partial(self.file, kind), variant="outlined",
            size="small", description=f"download {what}, as {kind}",
        )  # fmt: skip

    def file(self, kind: str) -> io.BytesIO:
        """The file of what is shown; the button learns its name.

        Raises:
            ValueError: nothing is shown; the page says so.
        """
        drawing = self._page.shown()
        try:
            if drawing is None:
                raise ValueError("There is nothing to save: no propagation is shown.")
            result = drawing.result
            self.buttons[kind].filename = f"stability_{result.attrs['hash']}.{FILES[kind][0]}"
            return io.BytesIO(netcdf_bytes(result) if kind == "NetCDF" else curves_csv(result).encode())
        except Exception as error:
            self._page.refuse(error)
            raise


def python_code(drawing: StabilityDrawing) -> str:
    """A script that computes what is shown."""
    request, spec = drawing.request, drawing.request.spec
    image = f'"{spec.image}"' if request.upload is None else '"your_picture.png"'
    if request.layer is None:
        changed = [
            f"{field.name}={getattr(spec, field.name)!r}"
            for field in fields(StabilitySpec)
            if getattr(spec, field.name) != field.default
        ]
        x = "" if request.upload is None else f", x=wb.load_image({image}, size=512)"
        return f"import workbench as wb\n\nresult = wb.stability(wb.StabilitySpec({', '.join(changed)}){x})\n"
    gates, model = request.layer, shared_model(request.layer.model)
    load = f'wb.load_model("{model.name}", weights="{model.weights}", seed={model.seed})'
    channel = drawing.result.attrs["spec"]["channel"]
    return "\n".join([
        "import workbench as wb",
        "",
        f"model = {load}" if gates.model == model.name else f"model = ...  # your {model.name}",
        f"image = wb.load_image({image}, size=model.input_size)",
        f'op = wb.operator(model, image, "{gates.layer}")',
        f'result = wb.stability(op, direction="{gates.direction}", channel={channel}, x=image)',
        "",
    ])  # fmt: skip
