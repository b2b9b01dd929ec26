"""Python that computes what the Affinity page shows."""

import xarray as xr

from workbench.plots.affinity import over_channels

from .request import Drawing, Request
from .state import shared_model


def python_of(request: Request, drawing: Drawing | None) -> str:
    """A script that computes the maps of a drawing; only its first line before anything is drawn."""
    lines = ["import workbench as wb"]
    request = request if drawing is None else drawing.request
    image = f'"{request.image}"' if request.upload is None else '"your_picture.png"'
    for (name, layer), result in zip(request.sources, drawing.results if drawing else (), strict=drawing is not None):
        model = shared_model(name)
        load = f'wb.load_model("{model.name}", weights="{model.weights}", seed={model.seed})'
        lines += [
            "",
            f"model = {load}" if name == model.name else f"model = ...  # your {model.name}",
            f"image = wb.load_image({image}, size=model.input_size)",
            f'op = wb.operator(model, image, "{layer}")',
            *_maps(result),
        ]
    return "\n".join(lines) + "\n"


def _maps(result: xr.Dataset) -> list[str]:
    """The lines that compute the merged map and that of the first group."""
    spec, first = result.attrs["spec"], result["group"].values[0]
    if over_channels(result):
        return [f'merged = op.channel_matrix(reduce="{spec["reduce"]}")', f'one = op.channel_matrix("{first}")']
    call = f"op.{'row' if spec['side'] == 'reads' else 'column'}({spec['position']}, "
    rest = f'channel={spec["channel"]}, reduce="{spec["reduce"]}")'
    return [f"merged = {call}{rest}", f'one = {call}group="{first}", {rest}']
