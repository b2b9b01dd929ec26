"""What leaves the Attribution page: pictures and files of the attributions shown, and Python that computes them."""

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from workbench.analysis.export import netcdf_bytes, npz_bytes
from workbench.plots.affinity import DIVERGING, QUERY, SEQUENTIAL
from workbench.plots.attribution import caption

from .attribution_figures import Look
from .attribution_request import AttributionDrawing, AttributionRequest, Panel
from .state import shared_model

if TYPE_CHECKING:
    from .attribution import AttributionView

#: Label of a button -> how a file's name ends.
FILES = {"PNG": "png", "NetCDF": "nc", "npz": "npz"}

#: Pixels that a side of an exported picture has at least.
LEAST_SIDE = 512


class Downloads:
    """Buttons under each panel, one for every kind of file; a file is made when its button is clicked."""

    def __init__(self, page: "AttributionView") -> None:
        self._page = page
        self.buttons = tuple({kind: self._button(n, kind) for kind in FILES} for n in range(len(page.figures)))
        self.rows = tuple(
            pn.FlexBox(*buttons.values(), sizing_mode="stretch_width", gap="4px") for buttons in self.buttons
        )

    def _button(self, number: int, kind: str) -> Any:
        what = "the picture as it is shown" if kind == "PNG" else "the attribution with all that it was computed from"
        return pmui.FileDownload(
            label=kind, filename=f"attribution.{FILES[kind]}", callback=partial(self.file, number, kind),
            variant="outlined", size="small", description=f"download {what}, as {kind}",
        )  # fmt: skip

    def file(self, number: int, kind: str) -> io.BytesIO:
        """The file of a panel as it is shown; the button learns its name.

        Raises:
            ValueError: nothing is shown there; the page says so.
        """
        page = self._page
        try:
            drawing = page.shown()
            if drawing is None or number >= len(drawing.panels):
                raise ValueError("There is nothing to save: no attribution is shown.")
            panel = drawing.panels[number]
            self.buttons[number][kind].filename = file_name(panel, FILES[kind])
            if kind == "PNG":
                return io.BytesIO(png_bytes(drawing.request, panel, page.looks()[number], page.opacity))
            return io.BytesIO(netcdf_bytes(panel.result) if kind == "NetCDF" else npz_bytes(panel.result))
        except Exception as error:
            page.refuse(error)
            raise


def file_name(panel: Panel, suffix: str) -> str:
    """The model, the method and the hash of a result."""
    attrs = panel.result.attrs
    return f"attribution_{attrs['model']}_{attrs['spec']['method']}_{attrs['hash']}.{suffix}"


def png_bytes(request: AttributionRequest, panel: Panel, look: Look, opacity: float) -> bytes:
    """The attribution over the picture, its caption in the file's text "Description"."""
    file, text = io.BytesIO(), PngInfo()
    text.add_itxt("Description", f"{caption(panel.result, look.sign, look.outlier)} {look.words()}")
    PIL.Image.fromarray(blended(request, panel, look, opacity)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def blended(request: AttributionRequest, panel: Panel, look: Look, opacity: float) -> np.ndarray:
    """(rows, cols, 3) uint8: the picture under the attribution in its colours, and the outline of the unit's cell."""
    zoom = -(-LEAST_SIDE // max(look.shown.shape))
    shown = np.kron(look.shown, np.ones((zoom, zoom)))
    low = -1.0 if look.sign == "all" else 0.0
    palette = np.array([_rgb(colour) for colour in (DIVERGING if look.sign == "all" else SEQUENTIAL)])
    places = np.nan_to_num((shown - low) / (1 - low) * (len(palette) - 1))
    under = request.picture(max(shown.shape)).rgb.astype(float)
    alpha = np.where(np.isfinite(shown), opacity, 0.0)[..., None]  # what is not finite is not drawn
    mixed = np.rint((1 - alpha) * under + alpha * palette[np.rint(places).astype(int)]).astype(np.uint8)
    if panel.unit is not None and panel.grid is not None:
        _outline(mixed, panel.unit, panel.grid)
    return mixed


def _outline(picture: np.ndarray, unit: tuple[int, int], grid: tuple[int, int], width: int = 2) -> None:
    """Draw the border of a cell into a picture."""
    (top, bottom), (left, right) = (
        (side * index // count, side * (index + 1) // count)
        for side, index, count in zip(picture.shape[:2], unit, grid, strict=True)
    )
    cell = picture[top:bottom, left:right]
    for border in (cell[:width], cell[-width:], cell[:, :width], cell[:, -width:]):
        border[:] = _rgb(QUERY)


def _rgb(colour: str) -> tuple[int, int, int]:
    """ "#0a10ff" -> (10, 16, 255)."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def python_code(drawing: AttributionDrawing) -> str:
    """A script that computes what is shown."""
    request = drawing.request
    image = f'"{request.image}"' if request.upload is None else '"your_picture.png"'
    lines = ["import workbench as wb", "", "results = []"]
    for panel in drawing.panels:
        name, model = panel.source.model, shared_model(panel.source.model)
        load = f'wb.load_model("{model.name}", weights="{model.weights}", seed={model.seed})'
        arguments = ", ".join(f"{name}={value!r}" for name, value in recomputing(panel).items())
        lines += [
            f"model = {load}" if name == model.name else f"model = ...  # your {model.name}",
            f"image = wb.load_image({image}, size=model.input_size)",
            f'results.append(wb.attribute(model, image, "{panel.source.method}", {arguments}))',
        ]
    return "\n".join(lines) + "\n"


def recomputing(panel: Panel) -> dict[str, Any]:
    """The arguments of `attribute` that give this result again: everything resolved, whatever was left to choose."""
    spec = panel.result.attrs["spec"]
    told = ("method", "size", "dtype")
    return {name: value for name, value in spec.items() if value is not None and name not in told}
