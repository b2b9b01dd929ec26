"""Which input positions an output position depends on, step by step: relations that carry masks backwards.

Each step of a model (a convolution, attention over a pattern, a scan, ...) is a relation between the positions of its
output and those of its input. `back` takes a mask of outputs and returns the mask of all inputs that any of them can
depend on; carried from one unit back to the picture, the mask is the unit's theoretical receptive field.

Masks come in pairs, (2, rows, cols) bool: FIELD counts statistics over all positions (a norm over the map, for
example), MIXING leaves them out. Nothing here knows a model: model_dependence.py says which relations its parts have.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import torch

from kernels.attention import Pattern
from kernels.attention.axis import PowerAxis
from kernels.propagation import DIRECTIONS
from kernels.propagation.reference import to_image_frame, to_scan_frame

Grid = tuple[int, int]

#: The masks of a pair: with statistics over all positions, and without them.
FIELD, MIXING = 0, 1


class Relation:
    """Which inputs the outputs of a step depend on; here: each on the input at its own position.

    grid: (rows, cols) of the outputs; statistics: the names of the statistics over all positions that the step takes.
    """

    def __init__(self, grid: Grid, statistics: tuple[str, ...] = ()) -> None:
        self.grid, self.statistics = grid, statistics

    def back(self, reads: np.ndarray) -> np.ndarray:
        """Masks of outputs, (2, rows, cols) bool -> masks of the inputs that any of them depends on."""
        return reads


class Everything(Relation):
    """Every output depends on every input of a map of the same size: keys pooled over the whole map."""

    def back(self, reads: np.ndarray) -> np.ndarray:
        return np.broadcast_to(reads.any((1, 2), keepdims=True), reads.shape)


class Statistic(Relation):
    """Every output depends on the input at its own position and, through a statistic called `name`, on all inputs."""

    def __init__(self, grid: Grid, name: str) -> None:
        super().__init__(grid, (name,))

    def back(self, reads: np.ndarray) -> np.ndarray:
        reads = reads.copy()
        reads[FIELD] = reads[FIELD].any()
        return reads


class Separable(Relation):
    """The rows that an output reads do not depend on its column, nor the columns on its row: convolutions, windows.

    Args:
        rows: (rows out, rows in) bool, True where a row of the output reads a row of the input.
        cols: (cols out, cols in) bool, the same for columns.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray) -> None:
        super().__init__((len(rows), len(cols)))
        self.rows, self.cols = rows, cols

    def back(self, reads: np.ndarray) -> np.ndarray:
        return _along(self.cols, _along(self.rows, reads).swapaxes(1, 2)).swapaxes(1, 2)


def _along(relation: np.ndarray, reads: np.ndarray) -> np.ndarray:
    """Masks (2, outputs, n) carried back along their first axis by a relation (outputs, inputs): (2, inputs, n)."""
    alike: dict[bytes, list[int]] = {}  # outputs that read the same inputs, such as those of one window
    for output, inputs in enumerate(relation):
        alike.setdefault(inputs.tobytes(), []).append(output)
    found = np.zeros((len(reads), relation.shape[1], reads.shape[2]), bool)
    for outputs in alike.values():
        found[:, relation[outputs[0]]] |= reads[:, outputs].any(1, keepdims=True)
    return found


def convolution(
    grid: Grid, kernel: Grid, stride: Grid = (1, 1), padding: Grid = (0, 0), dilation: Grid = (1, 1), after: int = 0
) -> Relation:
    """A convolution or pooling of a map of `grid`; all pairs are (rows, cols).

    Output o reads o stride - padding + t dilation, t = 0 ... kernel - 1, where that is inside the map. padding: zeros
    on every side; after: further zeros below and on the right.
    """
    axes = zip(grid, kernel, stride, padding, dilation, strict=True)
    return Separable(*(_taps(size, k, s, p, p + after, d) for size, k, s, p, d in axes))


def _taps(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> np.ndarray:
    """(outputs, size) bool: which of `size` positions each output of a convolution reads."""
    count = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    places = np.arange(count)[:, None] * stride - before + np.arange(kernel) * dilation
    reads = np.zeros((count, size), bool)
    for output, taken in zip(reads, places, strict=True):
        output[taken[(taken >= 0) & (taken < size)]] = True
    return reads


class Keys(Relation):
    """Attention over a pattern: a query depends on its keys and their values and, being the query, on itself.

    padded: the grid of the pattern, larger than `grid` where tokens of padding lie below and on the right. A token of
    padding is a key, but no input, so nothing depends on anything through it.
    """

    def __init__(self, grid: Grid, pattern: Pattern, padded: Grid) -> None:
        super().__init__(grid)
        self.pattern, self.padded = pattern, padded

    def back(self, reads: np.ndarray) -> np.ndarray:
        rows, cols = self.grid
        queries = np.zeros((len(reads), *self.padded), bool)
        queries[:, :rows, :cols] = reads
        keys = _any(_keys(group, queries) for group in self.pattern.groups)
        return keys[:, :rows, :cols] | reads


def _keys(pattern: Pattern, queries: np.ndarray) -> np.ndarray:
    """The keys that any of the queries reads: (2, rows, cols) -> the same, for a pattern that all heads have."""
    height, width = pattern.on((queries.shape[1], queries.shape[2]))
    lines = queries.reshape(len(queries), height, width)
    if pattern.raster and isinstance(pattern.cols, PowerAxis):
        return _power_keys(pattern.cols, lines[:, 0]).reshape(queries.shape)
    rows, cols = pattern.rows.mask(height), pattern.cols.mask(width)
    if pattern.radius is not None:
        return _near_keys(rows, cols, pattern.radius, lines)
    return Separable(rows, cols).back(lines).reshape(queries.shape)


def _near_keys(rows: np.ndarray, cols: np.ndarray, radius: int, queries: np.ndarray) -> np.ndarray:
    """The keys nearer than `radius` that the axes' masks allow: one separable relation for each distance in rows."""
    down, right = (np.subtract.outer(np.arange(size), np.arange(size)) for size in queries.shape[1:])
    distances = range(1 - radius, radius)
    return _any(Separable(rows & (down == n), cols & (right**2 < radius**2 - n**2)).back(queries) for n in distances)


def _power_keys(rule: PowerAxis, queries: np.ndarray) -> np.ndarray:
    """PowerAttention on (2, N): blocks before the query's are read whole or not at all, its own up to the query."""
    count = -(-queries.shape[1] // rule.block)
    blocks = np.zeros((len(queries), count * rule.block), bool)
    blocks[:, : queries.shape[1]] = queries
    blocks = blocks.reshape(len(queries), count, rule.block)
    # The rule for blocks of one position says which blocks are read.
    before = PowerAxis(1, rule.window, rule.sink).mask(count) & ~np.eye(count, dtype=bool)
    whole = _along(before, np.any(blocks, 2, keepdims=True))
    own = np.logical_or.accumulate(blocks[:, :, ::-1], axis=2)[:, :, ::-1]
    return (whole | own).reshape(len(queries), -1)[:, : queries.shape[1]]


class Scan(Relation):
    """Line propagation in four directions whose gates, lambda, u and D are predicted from the values, point by point.

    h[t, n] depends on the values at (t, n) and on h[t-1, n-1], h[t-1, n], h[t-1, n+1]: a cone against the direction of
    the scan, which ends where the chunk starts. With merge="released" every direction scans left to right in a frame
    of its own: the values of a place are those of the transposed or mirrored one, everything else is the place's own.

    chunk: lines per chunk, None for one chunk; merge: "aligned" or "released", see `PropagationState.modulated`.
    """

    def __init__(self, grid: Grid, chunk: int | None, merge: str) -> None:
        super().__init__(grid)
        self.chunk, self.merge = chunk, merge

    def back(self, reads: np.ndarray) -> np.ndarray:
        if self.merge == "aligned":
            return _any(_cone(reads, direction, self.chunk) for direction in DIRECTIONS)
        cone = _cone(reads, DIRECTIONS[0], self.chunk)
        mirrored = cone[:, :, ::-1]
        return _any((cone, cone.swapaxes(1, 2), mirrored, mirrored.swapaxes(1, 2)))


def _cone(reads: np.ndarray, direction: str, chunk: int | None) -> np.ndarray:
    """The positions from which a scan in one direction carries something to any of `reads`."""
    lines = to_scan_frame(torch.from_numpy(reads.copy()), direction).numpy()
    for t in range(lines.shape[1] - 1, 0, -1):
        if chunk is None or t % chunk:
            line, before = lines[:, t], lines[:, t - 1]
            before |= line
            before[:, :-1] |= line[:, 1:]
            before[:, 1:] |= line[:, :-1]
    return to_image_frame(torch.from_numpy(lines), direction).numpy()


class Passes(Relation):
    """Slice-by-slice convolution: a line depends on itself and on `size` positions of each of the line before it.

    The passes run in turn, each on what the last one left. That a ReLU may be inactive counts as a weight that is zero.
    """

    def __init__(self, grid: Grid, directions: tuple[str, ...], size: int) -> None:
        super().__init__(grid)
        self.directions, self.size = directions, size

    def back(self, reads: np.ndarray) -> np.ndarray:
        for direction in reversed(self.directions):
            lines = to_scan_frame(torch.from_numpy(reads.copy()), direction).numpy()
            taps = _taps(lines.shape[2], self.size, 1, self.size // 2, self.size // 2, 1)
            for t in range(lines.shape[1] - 1, 0, -1):
                lines[:, t - 1] |= lines[:, t] @ taps
            reads = to_image_frame(torch.from_numpy(lines), direction).numpy()
        return reads


class Series(Relation):
    """Steps one after the other, in the order of the forward pass."""

    def __init__(self, steps: Sequence[Relation]) -> None:
        super().__init__(steps[-1].grid, tuple(name for step in steps for name in step.statistics))
        self.steps = steps

    def back(self, reads: np.ndarray) -> np.ndarray:
        return reduce(lambda masks, step: step.back(masks), reversed(self.steps), reads)


class Sum(Relation):
    """Branches from one input whose outputs are added."""

    def __init__(self, *branches: Relation) -> None:
        super().__init__(branches[0].grid, tuple(name for branch in branches for name in branch.statistics))
        self.branches = branches

    def back(self, reads: np.ndarray) -> np.ndarray:
        return _any(branch.back(reads) for branch in self.branches)


def _any(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Where any of several masks is True."""
    return reduce(np.logical_or, masks)
