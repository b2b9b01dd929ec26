"""The front of each direction, line by line: where the influence of one position goes, and which gates carry it.

A layer that propagates walks the map line by line, once for each direction. The response to one position is therefore
a front: at step s it stands on the line at distance s from the position's own, and all steps together are the
direction's column of the operator (or its row, where the front comes in towards the position that reads).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from kernels.propagation import propagate
from workbench.models.states import PropagationState, to_released_frames
from workbench.names import unknown
from workbench.operators import REDUCTIONS

from .directions_lines import Lines, lines_of, released_maps, released_place
from .spec import record

#: What a front is made of, as the figures print it.
QUANTITIES = {
    "contribution": "what the direction adds to the output: m (u h + D v)",
    "hidden": "the hidden state h of the scan alone, without u, D and m",
}

#: What the gates read, in the order of their axis, by the index across the line.
GATES = ("index - 1", "same index", "index + 1")

#: Bytes that the frames of a result may take.
BUDGET = 256 * 2**20


@dataclass(frozen=True)
class DirectionsSpec:
    """What `directions` computes.

    position: (row, col), the source, or with `towards` the query; channel: one channel, or None to combine all by
    `reduce` (see `REDUCTIONS`); quantity: a name out of `QUANTITIES`.
    """

    position: tuple[int, int]
    towards: bool = False
    channel: int | None = None
    reduce: str = "mean"
    quantity: str = "contribution"

    def __post_init__(self) -> None:
        if not isinstance(self.towards, bool):
            raise ValueError(f"towards must be True or False; got {self.towards!r}.")
        if self.reduce not in REDUCTIONS:
            raise ValueError(unknown("reduction", str(self.reduce), REDUCTIONS))
        if self.quantity not in QUANTITIES:
            raise ValueError(unknown("quantity", str(self.quantity), QUANTITIES))


def directions(
    op: Any,
    position: tuple[int, int],
    *,
    towards: bool = False,
    channel: int | None = None,
    reduce: str = "mean",
    quantity: str = "contribution",
    budget: int = BUDGET,
) -> xr.Dataset:
    """The propagating front of every direction, frame by frame, with the gates that carry it.

    Direction k turns a one at the source p into m_k (u_k h_k + D_k v), and h_k is not 0 only on the lines that the
    direction reaches after p. Frame s of direction k holds the line at distance s and 0 elsewhere, so that the frames
    of a direction sum to its picture of `op.columns(position)`. With `towards` they sum to that of `op.rows(position)`,
    and frame s holds the line from which s lines lead to the query. Everything is in image coordinates, except where
    the layer's merge is "released": there each direction's scan lands in its own frame (see `PropagationState`), the
    fronts all move from left to right, and columns, gates and steps are shown where they land.

    Args:
        op: a SpatialOperator of a layer that propagates, frozen at an image.
        position: (row, col): the source, or with `towards` the query.
        towards: False for the column of A (the source is heard), True for the row (the query reads).
        channel: one channel, or None to combine all.
        reduce: how channels are combined: "mean" | "mean_abs" | "rms" | "max_abs".
        quantity: "contribution" for what a direction adds to the output, "hidden" for h alone, without u, D and m.
        budget: bytes that the frames may take.

    Returns:
        frame (direction, step, row, col) and picture (direction, row, col), the sum of the frames;
        merged_frame (step, row, col): the lines of all directions at that step, added before channels are combined;
        merged (row, col): all directions and steps, `op.columns` or `op.rows` merged;
        together (arrived, row, col): the directions whose bits are set in arrived, added before channels are combined;
        step_of (direction, row, col): the step that reaches a position, -1 for never;
        cone (direction, row, col): the positions that the gates can connect with the source, |across| <= step;
        gates (direction, gate, row, col): the mean over channels, or the channel's; reads (direction, row, col): if
        a position has a line before it in its chunk, so that its gates are used; dominant (direction, row, col): the
        gate, 0 to 2, of the largest magnitude; flow (direction, row, col): g2 - g0, the mean offset across the line at
        which a position reads, so that what moves moves by -flow; weight (direction): m_k;
        chunk_edge (direction, edge): the border before each further chunk, as a column for horizontal directions and
        as a row for vertical ones, NaN where there is none. attrs hold the Spec.

    Raises:
        ValueError: the layer has no directions, an argument is out of range, or the frames exceed the budget.
        TypeError: the position or channel is not made of whole numbers.

    Source: GSPN (arXiv 2501.12381), equations 1 and 2; SPN (NeurIPS 2017).
    """
    state = getattr(op, "state", None)
    if not isinstance(state, PropagationState):
        raise ValueError(
            f"{op.info.get('layer', 'This layer')} has no directions (its kind is {op.info.get('kind', 'unknown')!r}): "
            "fronts exist in layers that propagate line by line, those of kind 'propagation'."
        )
    spec = DirectionsSpec(op.check_position(position), towards, _channel(channel, state), reduce, quantity)
    fronts = _fronts(state, spec.position, towards, op.grid)
    step_of = np.stack([front.step_of for front in fronts])
    steps = int(step_of.max()) + 1
    needed = 4 * (len(fronts) + 1) * steps * step_of[0].size
    if needed > budget:
        raise ValueError(
            f"The frames of {steps} steps on a {op.grid[0]} x {op.grid[1]} grid take {needed / 2**20:.0f} MiB, over "
            f"the budget of {budget / 2**20:.0f} MiB: raise `budget`, or choose a layer with a smaller grid."
        )
    parts = _parts(state, spec)
    combine = _combine(spec)
    together = _together(parts, step_of, towards, combine)
    picture = np.stack([together[1 << k] for k in range(len(fronts))])
    at = np.arange(steps)[:, None, None]
    frame = np.where(step_of[:, None] == at, picture[:, None], 0).astype(picture.dtype)
    sets = (np.left_shift(1, np.arange(len(fronts)))[:, None, None, None] * (step_of[:, None] == at)).sum(0)
    gates = _gates(state, spec.channel)
    attrs = record("directions", spec, op.info) | {
        "position": spec.position, "grid": op.grid, "quantity": QUANTITIES[quantity], "aggregation": _aggregation(spec),
    }  # fmt: skip
    over = ("direction", "row", "col")
    return xr.Dataset(
        {
            "frame": (("direction", "step", "row", "col"), frame),
            "merged_frame": (("step", "row", "col"), np.take_along_axis(together, sets, 0)),
            "picture": (over, picture),
            "merged": (("row", "col"), combine(parts.sum(0)).cpu().numpy()),
            "together": (("arrived", "row", "col"), together),
            "step_of": (over, step_of),
            "cone": (over, np.stack([front.cone for front in fronts])),
            "gates": (("direction", "gate", "row", "col"), gates),
            "reads": (over, np.stack([front.reads for front in fronts])),
            "dominant": (over, np.abs(gates).argmax(1).astype(np.int8)),
            "flow": (over, gates[:, 2] - gates[:, 0]),
            "weight": (("direction",), state.weight.detach().cpu().numpy()),
            "chunk_edge": (("direction", "edge"), _edges(state, op.grid, towards)),
        },
        coords={"direction": list(state.groups), "gate": list(GATES), "step": np.arange(steps)},
        attrs=attrs,
    )


class _Front(NamedTuple):
    """Where one direction gets to, (row, col) maps: the step that reaches a position, the cone, and what reads."""

    step_of: np.ndarray
    cone: np.ndarray
    reads: np.ndarray


def _fronts(state: PropagationState, position: tuple[int, int], towards: bool, grid: tuple[int, int]) -> list[_Front]:
    """The fronts of all directions from a source, or towards a query."""
    fronts = []
    for k, direction in enumerate(state.groups):
        released = state.merge == "released"
        lines = lines_of("left_right" if released else direction, grid)
        place = released_place(k, position, grid) if released and not towards else position
        step_of, cone = _reached(lines, place, towards, state.chunk)
        if released and towards:  # what a query reads lies in the picture, which was carried into the scan's frame
            step_of, cone = (released_maps(k, maps) for maps in (step_of, cone))
        fronts.append(_Front(step_of, cone, lines.along % (state.chunk or lines.number) != 0))
    return fronts


def _reached(lines: Lines, place: tuple[int, int], towards: bool, chunk: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The steps from `place` (or to it) within its chunk, -1 elsewhere, and the cone of positions within reach."""
    steps = (lines.along - lines.along[place]) * (-1 if towards else 1)
    length = chunk or lines.number
    inside = (steps >= 0) & (lines.along // length == lines.along[place] // length)
    across = np.abs(lines.across - lines.across[place])
    return np.where(inside, steps, -1).astype(np.int16), inside & (across <= steps)


def _parts(state: PropagationState, spec: DirectionsSpec) -> torch.Tensor:
    """The column or row of every channel's matrix, direction by direction: (K, C, H, W)."""
    one = torch.zeros_like(state.value)
    one[..., spec.position[0], spec.position[1]] = 1
    mix = state.contributions if spec.quantity == "contribution" else _hidden(state)
    if not spec.towards:
        with torch.no_grad():
            return mix(one)[:, 0]
    v = torch.zeros_like(state.value).expand(len(state.groups), *state.value.shape).clone().requires_grad_()
    with torch.enable_grad():
        end = mix(v)
    (read,) = torch.autograd.grad(end, v, one.expand_as(end))
    return read[:, 0]


def _hidden(state: PropagationState) -> Callable[[torch.Tensor], torch.Tensor]:
    """The scans alone: (B, C, H, W) or (K, B, C, H, W) -> h (K, B, C, H, W)."""
    released = state.merge == "released"
    walk = ("left_right",) * len(state.groups) if released else state.groups

    def scan(v: torch.Tensor) -> torch.Tensor:
        v = to_released_frames(v) if released else v
        return propagate(v, state.gates, state.lam, directions=walk, chunk=state.chunk, backend=state.backend)

    return scan


def _combine(spec: DirectionsSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    """(C, H, W) -> (H, W)."""
    channel = spec.channel
    return REDUCTIONS[spec.reduce][1] if channel is None else lambda maps: maps[channel]


def _together(
    parts: torch.Tensor, step_of: np.ndarray, towards: bool, combine: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """For every set of directions (bits), their sum combined over channels, (2**K, H, W).

    One direction's map is whole. That of several is 0 where they do not meet, neither at one step nor after some steps
    of fronts that go out from the source or, with `towards`, come in.
    """
    count = len(parts)
    bits = np.left_shift(1, np.arange(count))[:, None, None]
    met = np.zeros((1 << count, *step_of.shape[1:]), bool)
    for step in range(int(step_of.max()) + 1):
        passed = step_of >= step if towards else (step_of >= 0) & (step_of <= step)
        for there in (step_of == step, passed):
            np.put_along_axis(met, (bits * there).sum(0)[None], True, 0)
    maps = np.zeros(met.shape, parts.cpu().numpy().dtype)
    for members in range(1, 1 << count):
        chosen = [k for k in range(count) if members >> k & 1]
        if len(chosen) == 1:
            maps[members] = combine(parts[chosen[0]]).cpu().numpy()
        elif met[members].any():
            there = torch.from_numpy(met[members]).to(parts.device)
            at = sum(parts[k][:, there] for k in chosen)
            maps[members, met[members]] = combine(torch.as_tensor(at)).cpu().numpy()
    return maps


def _gates(state: PropagationState, channel: int | None) -> np.ndarray:
    """(K, 3, H, W): the mean over channels, or one channel's; gates may be shared by all channels."""
    gates = state.gates[:, :, 0].detach()
    chosen = gates.mean(2) if channel is None else gates[:, :, min(channel, gates.shape[2] - 1)]
    return chosen.cpu().numpy()


def _edges(state: PropagationState, grid: tuple[int, int], towards: bool) -> np.ndarray:
    """The borders between chunks, in cells from the top or left edge of the map on which the front is shown.

    Carried back to the picture, the released merge's frames are scanned in the directions that give them their names.
    """
    edges = []
    for direction in state.groups:
        lines = lines_of("left_right" if state.merge == "released" and not towards else direction, grid)
        starts = np.arange(state.chunk or lines.number, lines.number, state.chunk or lines.number, dtype=float)
        edges.append(lines.number - starts if lines.backward else starts)
    table = np.full((len(edges), max(1, *map(len, edges))), np.nan)
    for row, found in zip(table, edges, strict=True):
        row[: len(found)] = found
    return table


def _channel(channel: Any, state: PropagationState) -> int | None:
    count = state.value.shape[1]
    if channel is None:
        return None
    if isinstance(channel, bool) or not isinstance(channel, int | np.integer):
        raise TypeError(f"channel must be a whole number, or None to combine all; got {channel!r}.")
    if not 0 <= channel < count:
        raise ValueError(f"channel must be from 0 to {count - 1}, or None to combine all; got {channel}.")
    return int(channel)


def _aggregation(spec: DirectionsSpec) -> str:
    return REDUCTIONS[spec.reduce][0] if spec.channel is None else f"channel {spec.channel}"
