"""What leaves the Directions page: the movie, the sheet and the result, and Python that computes them."""

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from workbench.analysis.export import netcdf_bytes
from workbench.plots.directions_movie import animation
from workbench.plots.directions_sheet import png, sheet, svg

from .directions_request import DirectionsDrawing
from .state import shared_model

if TYPE_CHECKING:
    from .directions import DirectionsView

Make = Callable[["DirectionsView", DirectionsDrawing], bytes]


def movie_file(page: "DirectionsView", drawing: DirectionsDrawing) -> bytes:
    """The movie as the page plays it, no faster than 30 frames a second."""
    milliseconds = round(1000 / page.speed)
    return animation(
        drawing.result, "gif", drawing.photograph, milliseconds, page.scale, page.trail, page.large
    )  # fmt: skip


def sheet_file(write: Callable[[Any], bytes], page: "DirectionsView", drawing: DirectionsDrawing) -> bytes:
    """The sheet of four moments."""
    return write(sheet(drawing.result, scale=page.scale, trail=page.trail))


#: Label of a button -> how a file's name ends, what it is in words, and what makes it.
FILES: dict[str, tuple[str, str, Make]] = {
    "GIF": ("gif", "the movie, a picture for every step", movie_file),
    "Sheet PNG": ("png", "four moments of every direction on white, for slides and paper", partial(sheet_file, png)),
    "Sheet SVG": ("svg", "the same as a vector graphic", partial(sheet_file, svg)),
    "NetCDF": ("nc", "all numbers", lambda page, drawing: netcdf_bytes(drawing.result)),
}


class Downloads:
    """A button for every kind of file; a file is made when its button is clicked, from what is shown then."""

    def __init__(self, page: "DirectionsView") -> None:
        self._page = page
        self.buttons = {name: self._button(name) for name in FILES}
        self.row = pn.FlexBox(*self.buttons.values(), sizing_mode="stretch_width", gap="4px", align_items="center")

    def _button(self, name: str) -> Any:
        suffix, words, _ = FILES[name]
        return pmui.FileDownload(
            label=name, filename=f"directions.{suffix}", callback=partial(self.file, name), variant="outlined",
            size="small", description=f"{name}: {words}",
        )  # fmt: skip

    def file(self, name: str) -> io.BytesIO:
        """The file of what is shown; the button learns its name.

        Raises:
            ValueError: nothing is shown, or the format cannot hold it; the page says so.
        """
        suffix, _, make = FILES[name]
        try:
            drawing = self._page.shown()
            if drawing is None:
                raise ValueError("There is nothing to save: no fronts are shown.")
            a = drawing.result.attrs
            self.buttons[name].filename = f"directions_{a['model']}_{a['layer']}_{a['hash']}.{suffix}"
            return io.BytesIO(make(self._page, drawing))
        except Exception as error:
            self._page.refuse(error)
            raise


def python_code(page: "DirectionsView", drawing: DirectionsDrawing) -> str:
    """A script that computes what is shown, and writes the movie and the sheet."""
    request, spec = drawing.request, drawing.result.attrs["spec"]
    model = shared_model(request.model)
    load = f'wb.load_model("{model.name}", weights="{model.weights}", seed={model.seed})'
    image = f'"{request.image}"' if request.upload is None else '"your_picture.png"'
    options = ", ".join(f"{name}={spec[name]!r}" for name in ("towards", "channel", "reduce", "quantity"))
    look = f"scale={page.scale!r}, trail={page.trail}"
    lines = [
        "from pathlib import Path",
        "",
        "import workbench as wb",
        "from workbench.plots.directions_movie import animation",
        "from workbench.plots.directions_sheet import png, sheet",
        "",
        f"model = {load}" if request.model == model.name else f"model = ...  # your {model.name}",
        f"image = wb.load_image({image}, size=model.input_size)",
        f'op = wb.operator(model, image, "{request.layer}")',
        f"result = wb.directions(op, {spec['position']}, {options})",
        f'Path("directions.gif").write_bytes(animation(result, photograph=image.rgb, {look}))',
        f'Path("directions.png").write_bytes(png(sheet(result, {look})))',
    ]
    return "\n".join(lines) + "\n"
