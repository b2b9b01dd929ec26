"""What leaves the page of receptive fields: files of the shown results, and Python that computes them again."""

import io
import re
import zipfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.analysis.export import csv_text, netcdf_bytes, npz_bytes
from workbench.analysis.spec import spec_hash
from workbench.models.expression import python_of
from workbench.plots import receptive_field_paper as paper

from .field_request import CROPS, FieldDrawing

if TYPE_CHECKING:
    from .receptive_field import ReceptiveFieldView

Writer = Callable[[xr.Dataset], bytes]

#: How much of the models' names a file's name repeats.
LONGEST_NAME = 80


def file_name(drawing: FieldDrawing, suffix: str) -> str:
    """The models of what is shown, and the hash of the result, or of all results' hashes."""
    models = dict.fromkeys(source.name for source in drawing.request.sources)
    names = "_".join(re.sub(r"[^\w.-]+", "-", name).strip("-") for name in models)[:LONGEST_NAME]
    hashes = [result.attrs["hash"] for result in drawing.named().values()]
    digest = hashes[0] if len(hashes) == 1 else spec_hash({"results": hashes})
    return f"receptive_field_{names}_{digest}.{suffix}"


def packed(
    drawing: FieldDrawing, decades: float, suffix: str, write: Callable[[xr.Dataset], bytes]
) -> tuple[str, bytes]:
    """A result as a file, or several as a zip archive of one file each."""
    results = [result for result in drawing.results if result is not None]
    if len(results) == 1:
        return file_name(drawing, suffix), write(results[0])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, result in enumerate(results, 1):
            name = f"{n}_{result.attrs['model']}_{result.attrs['spec']['layer']}_{result.attrs['hash']}.{suffix}"
            archive.writestr(name, write(result))
    return file_name(drawing, f"{suffix}.zip"), buffer.getvalue()


def table(drawing: FieldDrawing, decades: float) -> tuple[str, bytes]:
    """The numbers of all results."""
    return file_name(drawing, "csv"), csv_text(drawing.named().values()).encode()


def figure(drawing: FieldDrawing, decades: float, suffix: str) -> tuple[str, bytes]:
    """The comparison as a paper prints it."""
    made = paper.figure(list(drawing.named().values()), decades=decades)
    return file_name(drawing, suffix), paper.png(made) if suffix == "png" else paper.svg(made)


#: Label of a button -> (what is shown, decades of colour) -> the name and the bytes of its file.
FILES: dict[str, Callable[[FieldDrawing, float], tuple[str, bytes]]] = {
    "Figure PNG": partial(figure, suffix="png"),
    "Figure SVG": partial(figure, suffix="svg"),
    "NetCDF": partial(packed, suffix="nc", write=netcdf_bytes),
    "npz": partial(packed, suffix="npz", write=npz_bytes),
    "CSV": table,
}


class Downloads:
    """A button for every kind of file; a file is made when its button is clicked, from what is shown then."""

    def __init__(self, page: "ReceptiveFieldView") -> None:
        self._page = page
        self.buttons = {name: self._button(name) for name in FILES}
        self.row = pn.FlexBox(*self.buttons.values(), sizing_mode="stretch_width", gap="4px", align_items="center")

    def _button(self, name: str) -> Any:
        return pmui.FileDownload(
            label=name, filename=f"receptive_field.{name}", callback=partial(self.file, name),
            variant="outlined", size="small",
        )  # fmt: skip

    def file(self, name: str) -> io.BytesIO:
        """The file of what is shown; the button learns its name.

        Raises:
            ValueError: nothing is shown, or the format cannot hold it; the page says so.
        """
        try:
            drawing = self._page.shown()
            if drawing is None:
                raise ValueError("There is nothing to save: no receptive field is shown.")
            self.buttons[name].filename, data = FILES[name](drawing, self._page.decades)
        except Exception as error:
            self._page.refuse(error)
            raise
        return io.BytesIO(data)


def python_code(drawing: FieldDrawing) -> str:
    """A script that computes what is shown."""
    request = drawing.request
    crops = request.images.upload is None and request.images.picture == CROPS
    lines = ["import workbench as wb"]
    if crops:
        lines.append("from workbench.analysis.image_folder import sample_crops")
    lines += ["", "results = []"]
    for source, spec in zip(request.sources, drawing.specs, strict=True):
        side = spec.size[0]
        many = f"sample_crops({request.images.count}, {side}, seed={request.images.seed})"
        images = many if crops else _image(drawing)
        model = python_of(source.name) if source.given is None else f"...  # your {source.name}"
        unit = '"centre"' if spec.unit_name == "centre" else repr(spec.unit[0])
        lines += [
            f"model = {model}",
            "results.append(wb.receptive_field(",
            f'    model, {images}, "{source.layer}", unit={unit}, size={side},',
            f'    channels="{spec.channels}", gradient="{spec.gradient}", batch={spec.batch},',
            "))",
        ]
    return "\n".join(lines) + "\n"


def _image(drawing: FieldDrawing) -> str:
    images = drawing.request.images
    return f'"{images.picture}"' if images.upload is None else '"your_picture.png"'
