"""The rule of one axis: which positions a query reads along the rows, or along the columns, of a map.

Every rule answers the same questions: `keys` for people and tests, `check` for bad input, and `spans` and `segments`
for the tables that the kernels read (tiles.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class Segment(NamedTuple):
    """Positions first, first + step, ... before stop; those outside the map do not exist."""

    first: int
    stop: int
    step: int


@dataclass(frozen=True)
class Axis:
    """A query reads `kernel` positions around the middle of its cell.

    The axis falls into `dilation` residue classes, and a query reads positions of its own class only. Within a class,
    cells of `stride` positions share their keys; the first boundary of a cell is at `offset`. A window that crosses the
    border is moved back inside ("clamp"), or what lies outside is dropped ("crop").

        g = i mod dilation, n = i div dilation, L = positions of class g
        leader = the start of n's cell + stride div 2       (causal: the cell's last position)
        clamp:   c = clamp(min(leader, L - 1), kernel div 2, L - 1 - (kernel - 1 - kernel div 2)), and the window is
                 c - kernel div 2 ... c - kernel div 2 + kernel - 1   (causal: leader - kernel + 1 ... n)
        crop:    the same window around the leader, without what lies outside the map

    Swin's windows are cells as large as the kernel, cropped; neighbourhood attention is cells of 1, clamped. A kernel
    of None is the whole axis.

    Source: generalised neighbourhood attention (arXiv 2504.16922) for stride and dilation; Swin (arXiv 2103.14030) for
    the offset.
    """

    kernel: int | None = None
    stride: int = 1
    dilation: int = 1
    offset: int = 0
    border: Literal["clamp", "crop"] = "clamp"
    causal: bool = False

    def __post_init__(self) -> None:
        if self.kernel is not None and not 1 <= self.stride <= self.kernel:
            raise ValueError(
                f"stride must be from 1 to the kernel {self.kernel}, and both at least 1; got {self.stride}."
            )
        if self.dilation < 1:
            raise ValueError(f"dilation must be at least 1; got {self.dilation}.")
        if self.border not in ("clamp", "crop"):
            raise ValueError(f"border must be 'clamp' or 'crop'; got {self.border!r}.")

    def check(self, size: int, name: str, axis: str) -> None:
        """Raise ValueError unless `size` positions are enough; name: the pattern's; axis: "rows" or "columns"."""
        least = self.dilation * (self.kernel or 1)
        if self.kernel is None or self.border == "crop" or self.causal or size >= least:
            return
        times = f"{self.kernel} x {self.dilation} = " if self.dilation > 1 else ""
        most = f"a kernel of at most {size // self.dilation}" if size >= self.dilation else ""
        less = f"a dilation of at most {size // self.kernel}" if self.dilation > 1 and size >= self.kernel else ""
        choices = " or ".join(filter(None, (most, less, "a larger map")))
        raise ValueError(
            f"{name} needs a map of at least {times}{least} {axis}, its window (kernel times dilation); got {size}: "
            f"choose {choices}."
        )

    def keys(self, position: int, size: int) -> range:
        """The positions, out of `size`, that the query at `position` reads, in order."""
        first, stop, step = self.segment(position, size)
        if first < 0:
            first += -(first // step) * step
        return range(first, min(stop, size), step)

    def segment(self, position: int, size: int) -> Segment:
        """The window of a query before what lies outside the map is dropped."""
        if self.kernel is None:
            return Segment(0, size, 1)
        g, n = position % self.dilation, position // self.dilation
        start, stop = self._window(n, -(-(size - g) // self.dilation))
        return Segment(g + self.dilation * start, g + self.dilation * stop, self.dilation)

    def _window(self, n: int, length: int) -> tuple[int, int]:
        """The window of member n of a class of `length` members: its first member, and the one after its last."""
        assert self.kernel is not None
        left = self.kernel // 2
        cell = self.offset + (n - self.offset) // self.stride * self.stride
        leader = cell + (self.stride - 1 if self.causal else self.stride // 2)
        if self.border == "crop":
            start = leader - (self.kernel - 1 if self.causal else left)
            return start, min(start + self.kernel, n + 1) if self.causal else start + self.kernel
        leader = min(leader, length - 1)
        if self.causal:
            return max(leader - self.kernel + 1, 0), min(n + 1, length)
        centre = min(max(leader, left), length - self.kernel + left)
        return centre - left, centre - left + self.kernel

    def extent(self, size: int) -> int:
        """The distance, in steps, that a query and a key stay below: the kernel, or the whole axis."""
        return size if self.kernel is None else self.kernel

    @property
    def step(self) -> int:
        """Positions from one key to the next."""
        return self.dilation if self.kernel is not None else 1

    @property
    def cell(self) -> int | None:
        """Members of a cell, which share their keys; None for the whole axis."""
        return None if self.kernel is None else self.stride

    def counts(self, size: int) -> np.ndarray:
        """(size,): how many positions each query reads."""
        first, last = self.spans(size).T
        return (last - first) // self.step + 1

    def mask(self, size: int) -> np.ndarray:
        """(size, size) bool: True where the query (first index) reads the key."""
        place, (first, last) = np.arange(size), self.spans(size).T[:, :, None]
        return (place >= first) & (place <= last) & ((place[:, None] - place) % self.step == 0)

    def spans(self, size: int) -> np.ndarray:
        """(size, 2): the first and the last position that each query reads."""
        read = [self.keys(i, size) for i in range(size)]
        return np.array([(keys[0], keys[-1]) for keys in read], np.int32)


@dataclass(frozen=True)
class PowerAxis:
    """PowerAttention's rule for a sequence in blocks: a query reads back to blocks whose distance is a power of two.

    With n = query div block - key div block, key j is read iff j <= i and (n < window, or n is a power of two, or j is
    in one of the first `sink` blocks).

    Source: PowerAttention (arXiv 2503.03588), algorithm 1.
    """

    block: int
    window: int
    sink: int

    step = 1

    def check(self, size: int, name: str, axis: str) -> None:
        """Any sequence will do."""

    def blocks(self, block: int) -> list[int]:
        """The blocks that the queries of a block read, in order."""
        return [k for k in range(block + 1) if self._reads(block - k) or k < self.sink]

    def _reads(self, distance: int) -> bool:
        return distance < self.window or distance & (distance - 1) == 0

    def keys(self, position: int, size: int) -> Sequence[int]:
        """The positions that the query at `position` reads, in order."""
        found = [j for k in self.blocks(position // self.block) for j in range(k * self.block, (k + 1) * self.block)]
        return [j for j in found if j <= position]

    def counts(self, size: int) -> np.ndarray:
        """(size,): how many positions each query reads: its own block up to itself, the others whole."""
        block, within = np.divmod(np.arange(size), self.block)
        others = np.array([len(self.blocks(b)) - 1 for b in range(-(-size // self.block))])
        return others[block] * self.block + within + 1

    def mask(self, size: int) -> np.ndarray:
        """(size, size) bool: True where the query (first index) reads the key."""
        place = np.arange(size)
        block = place // self.block
        back = block[:, None] - block
        near = (back < self.window) | (back & (back - 1) == 0) | (block < self.sink)
        return near & (place <= place[:, None])

    def spans(self, size: int) -> np.ndarray:
        """(size, 2): the first and the last position of each query's blocks that it may read."""
        last = np.arange(size, dtype=np.int32)
        return np.stack([np.zeros_like(last), last], axis=1)


Rule = Axis | PowerAxis
