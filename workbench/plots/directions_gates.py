"""The gates of one direction: three maps with one colour range, and the mean flow that they make as arrows."""

import math

import holoviews as hv
import numpy as np
import xarray as xr

from .affinity import DIVERGING, FRAME, SEQUENTIAL
from .directions import moves, words

#: Arrows along the longer side of a map, at most.
ARROWS = 14

#: The colours of arrows by the gate that dominates: information that comes from index - 1, the same, index + 1.
DOMINANT = ("#ffb000", "#ffffff", "#41b6ff")
NAMES = ("from index - 1", "from the same", "from index + 1")

#: The largest cells of a head, and the share of an arrow's room that it fills.
HEAD, FILLED = 0.35, 0.85

Place = tuple[int, int]


def quarters(grid: Place) -> tuple[list[Place], Place]:
    """The top left corners of four maps in two rows, (row, col) in cells, and the shape of the whole."""
    rows, cols = grid
    gap = max(1, round(0.04 * max(grid)))
    places = [(r * (rows + gap), c * (cols + gap)) for r in (0, 1) for c in (0, 1)]
    return places, (2 * rows + gap, 2 * cols + gap)


def fill(maps: list[np.ndarray], grid: Place) -> np.ndarray:
    """The maps in the first quarters; NaN elsewhere."""
    places, shape = quarters(grid)
    array = np.full(shape, np.nan, np.float32)
    for (row, col), values in zip(places, maps, strict=False):
        array[row : row + grid[0], col : col + grid[1]] = values
    return array


def gate_maps(result: xr.Dataset, direction: int) -> list[np.ndarray]:
    """The three gates of a direction; NaN on the first line of a chunk, which reads nothing."""
    reads = result["reads"].values[direction]
    return [np.where(reads, gate, np.nan).astype(np.float32) for gate in result["gates"].values[direction]]


def gate_range(result: xr.Dataset) -> tuple[float, float]:
    """One range for the gates of all directions: their 0.5th to 99.5th percentile, symmetric about 0 if signed.

    Positions at the border, which share their sum among two neighbours, do not count: they would hide the others.
    """
    gates = result["gates"].values
    values = gates[np.broadcast_to((gates != 0).all(1, keepdims=True), gates.shape)]
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
    if low < 0:
        return -max(-low, high), max(-low, high)
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def arrows(result: xr.Dataset, direction: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The mean flow of a direction, averaged over blocks so that its arrows can be told apart.

    An arrow points where information goes: one line on, and across by g0 - g2 = -flow, which is drawn `gain` times so
    that the strongest flow slants by 45 degrees.

    Returns:
        Segments of shafts and heads (n, 4), the index of the dominant gate of each (n,), and the gain.
    """
    rows, cols = result.attrs["grid"]
    block = max(1, math.ceil(max(rows, cols) / ARROWS))
    gates, reads = result["gates"].values[direction], result["reads"].values[direction]
    count = _blocks(reads.astype(float), block)
    used = count > 0
    mean = np.stack([_blocks(np.where(reads, gate, 0), block) for gate in gates])[:, used] / count[used]
    flow = mean[2] - mean[0]
    strongest = float(np.abs(flow).max(initial=0))
    gain = 1 / strongest if np.isfinite(strongest) and strongest > 0 else 1.0
    along, across = (np.array(step, float) for step in moves(result, direction))
    size = FILLED * block / math.sqrt(2)
    down, right = (along[:, None] - across[:, None] * flow * gain) * size
    start = np.stack(np.nonzero(used)) * block
    centre = (start + np.minimum(start + block, [[rows], [cols]])) / 2
    middle = np.stack([centre[1], -centre[0]])
    vector = np.stack([right, -down])
    kind = np.abs(mean).argmax(0)
    return _with_heads(middle, vector), np.tile(kind, 3), gain


def _blocks(maps: np.ndarray, block: int) -> np.ndarray:
    """Sums over blocks of block x block cells; those at the border may be smaller."""
    rows, cols = (np.arange(0, size, block) for size in maps.shape)
    return np.asarray(np.add.reduceat(np.add.reduceat(maps, rows, 0), cols, 1))


def _with_heads(middle: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(2, n) middles and vectors in plot coordinates -> shafts, then the two sides of the heads, (3 n, 4)."""
    start, end = middle - vector / 2, middle + vector / 2
    turned = np.stack([-vector[1], vector[0]])
    sides = [end - HEAD * vector + sign * 0.5 * HEAD * turned for sign in (1, -1)]
    parts = [np.concatenate([start, end]), *(np.concatenate([end, side]) for side in sides)]
    return np.concatenate(parts, axis=1).T


def gate_title(result: xr.Dataset, direction: int) -> str:
    """Which gates are drawn."""
    name = words(result["direction"].values[direction])
    return f"gates of {name}"


def gate_caption(result: xr.Dataset, direction: int) -> str:
    """What the maps and the arrows mean, with the gain that the arrows are drawn with."""
    axis = "row" if moves(result, direction)[0][1] else "column"
    channel = result.attrs["spec"]["channel"]
    of = "mean over channels" if channel is None else f"channel {channel}"
    gain = arrows(result, direction)[2]
    return (
        f"{of}; index: {axis} on the previous line; one colour range for all directions, 0.5th to 99.5th percentile "
        "away from the border; empty where a chunk starts and nothing is read. Arrows: where information goes, one "
        f"line on and across by g0 - g2, block means, across drawn {gain:.3g} times; colour: the largest gate, "
        f"{NAMES[0]} orange, {NAMES[1]} white, {NAMES[2]} blue"
    )


def gate_mosaic(result: xr.Dataset, direction: int, photograph: np.ndarray) -> hv.Overlay:
    """The three gates of a direction, and its arrows over the photograph in the fourth quarter."""
    grid: Place = result.attrs["grid"]
    places, (rows, cols) = quarters(grid)
    low, high = gate_range(result)
    image = hv.Image(fill(gate_maps(result, direction), grid), bounds=(0, -rows, cols, 0), vdims=["gate"]).opts(
        cmap=DIVERGING if low < 0 else SEQUENTIAL, clim=(low, high), colorbar=True, tools=[], xaxis=None, yaxis=None,
        clipping_colors={"NaN": "rgba(0, 0, 0, 0)"}, colorbar_opts={"title": "gate", "width": 10, "padding": 2},
    )  # fmt: skip
    row, col = places[3]
    photo = hv.RGB(photograph // 2, bounds=(col, -(row + grid[0]), col + grid[1], -row))
    segments, kind, _ = arrows(result, direction)
    shafts = hv.Segments(
        (*(segments + np.array([col, -row, col, -row])).T, np.array(DOMINANT)[kind]), ["x0", "y0", "x1", "y1"], "colour"
    ).opts(color="colour", line_width=1.6)
    names = ["g0, index - 1", "g1, same index", "g2, index + 1", "flow"]
    texts = {"x": [c + 0.5 for _, c in places], "y": [-r - 0.5 for r, _ in places], "text": names}
    labels = hv.Labels(texts, ["x", "y"], "text").opts(
        text_font_size="9pt", text_align="left", text_baseline="top", text_color="white",
        background_fill_color="black", background_fill_alpha=0.55,
    )  # fmt: skip
    return (image * photo * shafts * labels).opts(hv.opts.Overlay(**FRAME))
