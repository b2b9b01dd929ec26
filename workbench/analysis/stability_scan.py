"""A propagation laid out line by line: its gates, its input, and what the recurrence makes of it in its own precision.

Everything here is in the frame of the scan: line 0 is where the direction starts, the cross index runs along a line.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from kernels.propagation import complement, normalise_gates, propagate
from kernels.propagation.reference import to_image_frame, to_scan_frame
from workbench.images import Image, load_image
from workbench.models.states import PropagationState, to_released_frames

from .stability_spec import COMPLEMENT, DTYPES, StabilitySpec

#: In this direction image coordinates are lines and cross indices.
ALONG_ROWS = ("top_bottom",)

#: Pixels of the photograph before it is stretched to the laboratory's lines.
_PHOTOGRAPH = 512


class Scanned(NamedTuple):
    """One pass: gates (3, lines, cross), lam (1 or C, lines, cross), x and h (C, lines, cross), all of one dtype.

    read (3, cross): which gates have a neighbour that they read; white: whether the input weights leave a white
    picture white (SPN) instead of adding up.
    """

    gates: torch.Tensor
    lam: torch.Tensor
    x: torch.Tensor
    h: torch.Tensor
    read: np.ndarray
    chunk: int | None
    direction: str
    white: bool

    @property
    def span(self) -> int:
        """Lines of the first chunk."""
        lines = self.gates.shape[1]
        return min(self.chunk or lines, lines)

    def picture(self, maps: torch.Tensor) -> np.ndarray:
        """(C, lines, cross) -> (rows, cols, C) float64 in image coordinates."""
        return to_image_frame(maps, self.direction).movedim(0, -1).to(torch.float64).numpy()


def synthetic(spec: StabilitySpec, x: Any = None) -> Scanned:
    """Gates, input and result of a Spec; `x` (rows, cols) or (rows, cols, C) takes the place of its picture.

    Gates and recurrence run in the Spec's dtype on the reference backend, which rounds after every operation.
    """
    dtype = DTYPES[spec.dtype]
    gates = synthetic_gates(spec)
    if spec.lam == COMPLEMENT:
        lam = complement(gates, ALONG_ROWS, chunk=spec.chunk)
    else:
        lam = torch.full((1, 1, 1, spec.length, spec.cross), float(spec.lam), dtype=dtype)
    rows, cols = (spec.cross, spec.length) if spec.direction in ("left_right", "right_left") else (
        spec.length, spec.cross,
    )  # fmt: skip
    picture = stretched(spec.image if x is None else x, rows, cols)
    read = np.ones((3, spec.cross), bool)
    read[0, 0] = read[2, -1] = False
    if spec.neighbours == 1:
        read[[0, 2]] = False
    source = to_scan_frame(picture, spec.direction).to(dtype)
    return _run(gates[0, :, 0, 0], lam[0, 0], source, read, spec.chunk, spec.direction, spec.lam == COMPLEMENT)


def synthetic_gates(spec: StabilitySpec) -> torch.Tensor:
    """A Spec's gates in its dtype, (1, 3, 1, 1, lines, cross); a longer field begins with a shorter one's lines."""
    noise = np.random.default_rng(spec.seed).standard_normal((spec.length, 3, spec.cross))
    logits = torch.from_numpy(spec.logit_mean + spec.noise * noise).movedim(0, 1)
    if spec.neighbours == 1:  # gates that are 0 under each rule
        logits[[0, 2]] = -torch.inf if spec.normalisation in ("sigmoid", "softmax") else 0.0
    logits = logits.to(DTYPES[spec.dtype])[None, :, None, None]
    gates = normalise_gates(logits, ALONG_ROWS, rule=spec.normalisation, backend="reference")
    return gates if spec.gain == 1 else gates * spec.gain


def stretched(source: Any, rows: int, cols: int) -> torch.Tensor:
    """A picture at exactly that size, (C, rows, cols) float64: photographs are stretched, to values from 0 to 1.

    Args:
        source: an image's name, an `Image`, or an array (rows, cols) or (rows, cols, C) that is taken as it is.

    Raises:
        ValueError: an array of another size, or one with values that are not finite.
    """
    if isinstance(source, str):
        return _shipped(source, rows, cols)
    if isinstance(source, Image):
        return _photograph(source.rgb, rows, cols)
    array = np.asarray(source, np.float64)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[:2] != (rows, cols) or array.shape[2] == 0:
        raise ValueError(f"x must be ({rows}, {cols}) or ({rows}, {cols}, channels); got {np.shape(source)}.")
    if not np.isfinite(array).all():
        raise ValueError("x must be finite: what is to be seen is what the propagation makes of it.")
    return torch.from_numpy(array.copy()).movedim(-1, 0)


@lru_cache(maxsize=16)
def _shipped(name: str, rows: int, cols: int) -> torch.Tensor:
    return _photograph(load_image(name, size=_PHOTOGRAPH).rgb, rows, cols)


def _photograph(rgb: np.ndarray, rows: int, cols: int) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, rows, cols) float64 from 0 to 1."""
    picture = PIL.Image.fromarray(rgb).resize((cols, rows), PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture) / 255.0).movedim(-1, 0)


def of_layer(state: PropagationState, direction: str, channel: int, x: Any = None) -> Scanned:
    """One direction and channel of a layer frozen at an image, in the layer's dtype; `x` as in `stretched`.

    Without `x` the layer's own values of that channel are propagated, with it every channel of x under the same gates.
    """
    k = state.groups.index(direction)
    value = state.value[:1]
    # A released merge has gates and lambda in the frame of its left-to-right scan.
    frame = "left_right" if state.merge == "released" else direction
    if x is not None:
        value = stretched(x, *value.shape[-2:]).to(value.dtype)[None]
        channels = slice(None)
    else:
        channels = slice(channel, channel + 1)
    if state.merge == "released":
        value = to_released_frames(value)[k]
    gates = state.gates[k, :, 0, min(channel, state.gates.shape[3] - 1)].cpu()
    lam = state.lam[k, 0, min(channel, state.lam.shape[2] - 1)][None].cpu()
    read = np.ones((3, to_scan_frame(gates, frame).shape[-1]), bool)
    read[0, 0] = read[2, -1] = False
    lines = [to_scan_frame(maps, frame) for maps in (gates, lam, value[0, channels].cpu())]
    return _run(lines[0], lines[1], lines[2], read, state.chunk, frame, white=False)


def _run(
    gates: torch.Tensor, lam: torch.Tensor, x: torch.Tensor, read: np.ndarray, chunk: int | None, direction: str,
    white: bool,
) -> Scanned:  # fmt: skip
    gates, lam, x = (maps.detach().contiguous() for maps in (gates, lam, x))
    h = propagate(
        x[None], gates[None, :, None, None], lam[None, None], directions=ALONG_ROWS, chunk=chunk, backend="reference"
    )
    return Scanned(gates, lam, x, h[0, 0], read, chunk, direction, white)
