"""The patterns of the published models, by the names of their fields. Positions are (row, col), sizes (rows, cols)."""

import operator
from typing import Literal

from .axis import Axis, PowerAxis
from .pattern import WHOLE, Pattern

#: The direction of a stripe: along axis 0 it runs down the rows of a column, along axis 1 across the columns of a row.
VERTICAL, HORIZONTAL = 0, 1
DIRECTIONS = {0: 0, 1: 1, "vertical": 0, "horizontal": 1}

Pair = int | tuple[int, int]


def swin(window: Pair, shift: Pair = 0) -> Pattern:
    """Windows of `window` positions, their boundaries moved by `shift`: Swin's plain and shifted windows.

    A query reads the keys of its own window. Shifted windows are the same windows with an offset and smaller border
    windows, which is what rolling the map and masking the wrapped-around keys amounts to.

    Args:
        window: positions per side, or (rows, cols).
        shift: 0 <= shift < window, or (rows, cols).

    Raises:
        ValueError: `window` or `shift` is out of range.

    Source: Swin (arXiv 2103.14030), section 3.2.
    """
    kernel, offset = _sizes("window", window), _pair("shift", shift)
    if not all(0 <= o < k for o, k in zip(offset, kernel, strict=True)):
        allowed = f"from 0 to {min(kernel) - 1}" if kernel[0] == kernel[1] else "at least 0"
        raise ValueError(
            f"shift must be a whole number {allowed}, smaller than the window {window}, usually {min(kernel) // 2}; "
            f"got {shift}."
        )
    name = f"swin {_by(kernel)}" + (f" shifted by {_by(offset)}" if any(offset) else "")
    rows, cols = (Axis(k, stride=k, offset=o, border="crop") for k, o in zip(kernel, offset, strict=True))
    return Pattern(rows, cols, name)


def block(window: Pair) -> Pattern:
    """Windows of `window` positions that start at the map's corner; a query reads its own window (MaxViT's block).

    Raises:
        ValueError: `window` is out of range.
    """
    kernel = _sizes("window", window)
    rows, cols = (Axis(k, stride=k, border="crop") for k in kernel)
    return Pattern(rows, cols, f"block {_by(kernel)}")


def neighborhood(kernel: Pair, stride: Pair = 1, dilation: Pair = 1, causal: bool = False) -> Pattern:
    """Generalised neighbourhood attention: `kernel` keys around a query, moved back inside at the border.

    Stride 1 is NAT (and DiNAT with a dilation); queries of a cell of `stride` positions share the keys around the
    cell's middle; a stride as large as the kernel is blocked attention. Even kernels reach one further to the left,
    even strides take the right one of the two middles.

    Args:
        kernel: keys per axis, at least 1.
        stride: positions that share their keys, from 1 to the kernel.
        dilation: positions from one key to the next, at least 1.
        causal: read nothing after the query, along either axis.

    Raises:
        ValueError: a size is out of range. On a map smaller than kernel times dilation the pattern is not defined,
            unless it is causal.

    Source: NAT (arXiv 2204.07143), DiNAT (arXiv 2209.15001), generalised neighbourhood attention (arXiv 2504.16922).
    """
    kernels, strides, dilations = _sizes("kernel", kernel), _sizes("stride", stride), _sizes("dilation", dilation)
    if any(s > k for s, k in zip(strides, kernels, strict=True)):
        raise ValueError(f"stride must be from 1 to the kernel {kernel}; got {stride}.")
    rows, cols = (
        Axis(k, stride=s, dilation=d, causal=causal) for k, s, d in zip(kernels, strides, dilations, strict=True)
    )
    name = f"neighborhood {_by(kernels)}"
    name += f" stride {_by(strides)}" if max(strides) > 1 else ""
    name += f" dilation {_by(dilations)}" if max(dilations) > 1 else ""
    return Pattern(rows, cols, name + (" causal" if causal else ""))


def halo(block: Pair, halo: Pair, border: Literal["crop", "clamp"] = "crop") -> Pattern:
    """Blocks of queries that read their own block and `halo` positions around it (HaloNet).

    Args:
        block: queries per side, at least 1.
        halo: further keys on every side, at least 0.
        border: "crop" drops keys outside the map, "clamp" moves the window back inside.

    Raises:
        ValueError: a size or the border is out of range.

    Source: HaloNet (arXiv 2103.12731), section 3.
    """
    blocks, around = _sizes("block", block), _pair("halo", halo)
    if min(around) < 0:
        raise ValueError(f"halo must be at least 0; got {halo}.")
    if border not in ("crop", "clamp"):
        raise ValueError(f"border must be 'crop' or 'clamp'; got {border!r}.")
    rows, cols = (Axis(b + 2 * h, stride=b, border=border) for b, h in zip(blocks, around, strict=True))
    name = f"halo {_by(blocks)} + {_by(around)}"
    return Pattern(rows, cols, name + (" clamped" if border == "clamp" else ""))


def grid(window: Pair, size: Pair) -> Pattern:
    """A grid of `window` keys spread over a map of `size` positions (MaxViT's grid attention).

    A query reads the positions that equal it modulo size / window, so the keys lie size / window positions apart.

    Args:
        window: keys per side, or (rows, cols).
        size: the map's positions per side, or (rows, cols); multiples of the window.

    Raises:
        ValueError: a size is out of range or no multiple.

    Source: MaxViT (arXiv 2204.01697), section 3.2.
    """
    kernels, sizes = _sizes("window", window), _sizes("size", size)
    if any(s % k for k, s in zip(kernels, sizes, strict=True)):
        raise ValueError(f"size must be a multiple of the window {window} along both axes; got {size}.")
    steps = tuple(s // k for k, s in zip(kernels, sizes, strict=True))
    rows, cols = (Axis(k, stride=k, dilation=d, border="crop") for k, d in zip(kernels, steps, strict=True))
    return Pattern(rows, cols, f"grid {_by(kernels)} of {_by(sizes)}")


def stripe(width: int, axis: int | str = VERTICAL) -> Pattern:
    """Stripes of `width` lines; a query reads its whole stripe.

    Args:
        width: columns of a vertical stripe, rows of a horizontal one, at least 1.
        axis: the axis along which the stripe runs: 0 or "vertical", 1 or "horizontal".

    Raises:
        ValueError: `width` or `axis` is out of range.

    Source: CSWin (arXiv 2107.00652), section 3.1.
    """
    lines, direction = _whole("width", width, 1), _direction(axis)
    cells = Axis(lines, stride=lines, border="crop")
    name = f"{'horizontal' if direction else 'vertical'} stripes of {lines}"
    return Pattern(cells, WHOLE, name) if direction else Pattern(WHOLE, cells, name)


def cross(width: int) -> Pattern:
    """The first half of the heads reads vertical stripes, the second half horizontal ones: CSWin's cross.

    Raises:
        ValueError: `width` is out of range.

    Source: CSWin (arXiv 2107.00652), section 3.1.
    """
    halves = stripe(width, VERTICAL), stripe(width, HORIZONTAL)
    return Pattern(name=f"cross of stripes of {width}", heads=halves)


def axial(axis: int | str) -> Pattern:
    """A query reads its own column (axis 0, "vertical") or its own row (axis 1, "horizontal").

    Raises:
        ValueError: `axis` is neither.

    Source: axial attention (arXiv 1912.12180), Axial-DeepLab (arXiv 2003.07853).
    """
    name = "axial, own row" if _direction(axis) else "axial, own column"
    pattern = stripe(1, axis)
    return Pattern(pattern.rows, pattern.cols, name)


def disc(radius: int) -> Pattern:
    """A query reads every key nearer than `radius`: (row - r)^2 + (col - c)^2 < radius^2 (CLEAR).

    Raises:
        ValueError: `radius` is no whole number of at least 1.

    Source: CLEAR (arXiv 2412.16112).
    """
    reach = _whole("radius", radius, 1)
    axis = Axis(2 * reach - 1, border="crop")
    return Pattern(axis, axis, f"disc of radius {reach}", radius=reach)


def power(block: int = 256, window: int = 5, sink: int = 1) -> Pattern:
    """PowerAttention on the positions in raster order: local blocks, blocks a power of two back, and the first ones.

    Args:
        block: positions per block, at least 1.
        window: how many blocks back, the own one included, are read whole, at least 1.
        sink: how many blocks at the start every query reads, at least 0.

    Raises:
        ValueError: a size is out of range.

    Source: PowerAttention (arXiv 2503.03588), algorithm 1.
    """
    size, local, first = _whole("block", block, 1), _whole("window", window, 1), _whole("sink", sink, 0)
    rule = PowerAxis(size, local, first)
    return Pattern(WHOLE, rule, f"power, blocks of {size}, window {local}, sink {first}", raster=True)


def full() -> Pattern:
    """Every query reads every key; the keys may lie on a grid of their own (pooled keys)."""
    return Pattern(name="full")


def heads(*patterns: Pattern) -> Pattern:
    """Equal groups of heads, in order, each with its own pattern.

    Raises:
        ValueError: fewer than two patterns, or one that is itself split.
    """
    fit = (isinstance(pattern, Pattern) and not pattern.heads and not pattern.raster for pattern in patterns)
    if len(patterns) < 2 or not all(fit):
        raise ValueError("heads takes two patterns or more, none of them split over heads or in raster order.")
    return Pattern(name=" | ".join(pattern.name for pattern in patterns), heads=patterns)


def _direction(axis: int | str) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int | str) or axis not in DIRECTIONS:
        raise ValueError(f"axis must be 0 or 'vertical', 1 or 'horizontal'; got {axis!r}.")
    return DIRECTIONS[axis]


def _pair(name: str, value: Pair) -> tuple[int, int]:
    try:
        rows, cols = value if isinstance(value, tuple | list) else (value, value)
        if isinstance(rows, bool) or isinstance(cols, bool):
            raise TypeError
        return operator.index(rows), operator.index(cols)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number or a (rows, cols) pair of them; got {value!r}.") from None


def _whole(name: str, value: int, least: int) -> int:
    """A single whole number; ValueError for everything else."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {value!r}.") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")
    return number


def _sizes(name: str, value: Pair) -> tuple[int, int]:
    pair = _pair(name, value)
    if min(pair) < 1:
        unit = " position a side" if name == "window" else ""
        raise ValueError(f"{name} must be at least 1{unit}; got {value}.")
    return pair


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
