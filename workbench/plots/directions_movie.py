"""The fronts as a movie for slides: one picture for every step, with its number in words, written by Pillow.

The pictures share one palette, so that a value has the same colour in all of them: heat where something is, the
photograph in grey where nothing is, lines of a front in cyan.
"""

import io
import json
from typing import Any

import colorcet as cc
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import xarray as xr
from matplotlib.colors import to_rgb
from PIL.PngImagePlugin import PngInfo

from .affinity import DIVERGING, SEQUENTIAL
from .directions import MERGED, caption, colour_range, fronts_in_panels, mosaic_of, panel_names, panels, step_at, title

#: Formats of `movie`, by Pillow's names.
FORMATS = {"gif": "GIF", "png": "PNG"}

#: Places of the palette: heat, then greys, then white, black, the front and the position.
HEATS, GREYS = 160, 80
WHITE, BLACK, FRONT, POSITION = HEATS + GREYS, HEATS + GREYS + 1, HEATS + GREYS + 2, HEATS + GREYS + 3
SPECIAL = ((255, 255, 255), (0, 0, 0), (0, 229, 255), (255, 0, 200))

#: Pixels: about how wide the mosaic is drawn, and the heights of the two lines of words above it.
WIDE, HEADER, SMALL = 960, 26, 18

#: How dark the photograph is, so that heat stands out against it.
DARK = 0.55


def animation(
    result: xr.Dataset,
    format: str = "gif",
    photograph: np.ndarray | None = None,
    milliseconds: int = 120,
    scale: str = "log",
    trail: bool = True,
    large: str = MERGED,
) -> bytes:
    """One picture for every step, in order, as an animated file that starts over at its end.

    Args:
        result: from `directions`.
        format: "gif" or "png" (an animated PNG).
        photograph: (H, W, 3) uint8, drawn in grey where nothing is; None for black.
        milliseconds: that every picture is shown, at least 20; the last one stays four times as long.
        scale: "log" or "linear".
        trail: show the lines already passed, too.
        large: what the large panel shows, "merged" or a direction.

    Returns:
        The file; its comment holds what it was computed from.

    Raises:
        ValueError: there is no such format, or the pictures change too fast for a GIF.
    """
    if format not in FORMATS:
        raise ValueError(f"An animation is written as {' or '.join(FORMATS)}; got {format!r}.")
    if milliseconds < 20:
        raise ValueError(f"A picture must be shown for at least 20 milliseconds; got {milliseconds}.")
    frames = [picture(result, frame, photograph, scale, trail, large) for frame in range(result.sizes["step"])]
    durations = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    provenance = _provenance(result, scale)
    file, options = io.BytesIO(), dict[str, Any](save_all=True, append_images=frames[1:], duration=durations, loop=0)
    if format == "gif":
        options |= {"comment": provenance.encode(), "optimize": False, "disposal": 1}
    else:
        text = PngInfo()
        text.add_itxt("Description", provenance)
        options |= {"pnginfo": text}
    frames[0].save(file, FORMATS[format], **options)
    return file.getvalue()


def picture(
    result: xr.Dataset, frame: int, photograph: np.ndarray | None, scale: str, trail: bool, large: str
) -> PIL.Image.Image:
    """The picture of one frame, of palette colours."""
    mosaic, limits = mosaic_of(result), colour_range(result, scale)
    zoom = max(1, WIDE // mosaic.shape[1])
    under = _greys(mosaic, photograph, zoom)
    values = np.kron(mosaic.fill(panels(result, frame, trail, large)), np.ones((zoom, zoom), np.float32))
    shown = np.where(np.isfinite(values), _heat(values, limits, scale), under).astype(np.uint8)
    canvas = np.full((shown.shape[0] + HEADER + SMALL, shown.shape[1]), WHITE, np.uint8)
    canvas[HEADER + SMALL :] = shown
    image = PIL.Image.frombytes("P", canvas.shape[::-1], canvas.tobytes())
    image.putpalette(_palette(limits[0] < 0))
    _write(image, result, frame, zoom, large)
    return image


def _write(image: PIL.Image.Image, result: xr.Dataset, frame: int, zoom: int, large: str) -> None:
    """The words, the lines of the fronts, and the position."""
    draw, mosaic = PIL.ImageDraw.Draw(image), mosaic_of(result)
    draw.fontmode = "1"  # other greys are not in the palette
    step, last = step_at(result, frame), result.sizes["step"] - 1
    row, col = result.attrs["position"]
    side = "to" if result.attrs["spec"]["towards"] else "from"
    draw.text((6, 3), title(result), BLACK, _font(16))
    words = f"step {step} of {last}, {side} (row {row}, column {col})"
    draw.text((6, HEADER - 2), words, BLACK, _font(14))
    for (r, c, _), name in zip(mosaic.places(), panel_names(result, large), strict=True):
        at = (c * zoom + 3, HEADER + SMALL + r * zoom + 2)
        draw.rectangle(draw.textbbox(at, name, _font(13)), fill=BLACK)
        draw.text(at, name, WHITE, _font(13))
    boxes = [(box, FRONT) for box in fronts_in_panels(result, mosaic, frame, large)]
    for (left, bottom, right, top), colour in [*boxes, *((box, POSITION) for box in mosaic.boxes((row, col)))]:
        corners = (left * zoom, -top * zoom + HEADER + SMALL, right * zoom - 1, -bottom * zoom + HEADER + SMALL - 1)
        draw.rectangle(corners, outline=colour)


def _font(size: int) -> Any:
    return PIL.ImageFont.load_default(size)


def _greys(mosaic: Any, photograph: np.ndarray | None, zoom: int) -> np.ndarray:
    """The palette's places of the photograph under every panel; white between them."""
    array = np.full((mosaic.shape[0] * zoom, mosaic.shape[1] * zoom), WHITE, np.uint8)
    for row, col, scale in mosaic.places():
        height, width = (side * scale * zoom for side in mosaic.grid)
        grey = np.full((height, width), HEATS)
        if photograph is not None:
            r, c = (np.arange(n) * size // n for n, size in zip((height, width), photograph.shape[:2], strict=True))
            light = photograph[r[:, None], c[None, :]].astype(float) @ np.array([0.299, 0.587, 0.114])
            grey = HEATS + (light * DARK / 255 * (GREYS - 1)).astype(int)
        array[row * zoom : row * zoom + height, col * zoom : col * zoom + width] = grey
    return array


def _heat(values: np.ndarray, limits: tuple[float, float], scale: str) -> np.ndarray:
    """The palette's places of values."""
    low, high = limits
    values = np.nan_to_num(values, nan=high)
    if scale == "log" and low > 0:
        values, low, high = np.log(np.maximum(values, low)), np.log(low), np.log(high)
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.rint(share * (HEATS - 1)).astype(np.uint8)


def _palette(signed: bool) -> list[int]:
    colours = DIVERGING if signed else SEQUENTIAL
    picked = [to_rgb(colours[i]) for i in np.linspace(0, len(colours) - 1, HEATS).round().astype(int)]
    greys = [to_rgb(cc.CET_L1[i]) for i in np.linspace(0, len(cc.CET_L1) - 1, GREYS).round().astype(int)]
    return [round(255 * v) for colour in (*picked, *greys) for v in colour] + [v for rgb in SPECIAL for v in rgb]


def _provenance(result: xr.Dataset, scale: str) -> str:
    kept = {key: value for key, value in result.attrs.items() if key not in ("quantity", "aggregation")}
    return f"{title(result)}; {caption(result, scale)}; {json.dumps(kept, default=str, sort_keys=True)}"
