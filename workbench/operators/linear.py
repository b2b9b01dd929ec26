"""What the operators of all families share: checks, the transpose, and rows, columns and the matrix as pictures."""

from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.models.states import State
from workbench.names import unknown

#: How the channels of a row, column or matrix are combined, as the figures print it.
REDUCTIONS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "mean": ("mean over channels", lambda maps: maps.mean(0)),
    "mean_abs": ("mean of |.| over channels", lambda maps: maps.abs().mean(0)),
    "rms": ("root mean square over channels", lambda maps: maps.square().mean(0).sqrt()),
    "max_abs": ("largest |.| over channels", lambda maps: maps.abs().amax(0)),
}


class Operator:
    """What all families share. Subclasses give the two linear maps, all groups at once.

    A group adds its own part: summed over groups, `apply(v, group)` is `apply(v)`. A direction acts on every channel, a
    head on its own channels only, and pictures of a head combine those.
    """

    exact = True

    def __init__(self, state: State, info: dict[str, Any]) -> None:
        self.state, self.info = state, info
        self.groups = state.groups
        self.value = state.value[0]
        self.grid: tuple[int, int] = (self.value.shape[-2], self.value.shape[-1])
        self._output: torch.Tensor | None = None
        self._graph: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def output(self) -> torch.Tensor:
        """(C, H, W): what the layer made of `value`."""
        if self._output is None:
            self._output = self.apply(self.value)
        return self._output

    def apply(self, v: torch.Tensor, group: str | None = None) -> torch.Tensor:
        """A v, or one group's part of it: (C, H, W) -> (C, H, W)."""
        self._check_map("v", v)
        with torch.no_grad():
            return self._apply(v.unsqueeze(0), self._index(group))[0]

    def adjoint(self, g: torch.Tensor, group: str | None = None) -> torch.Tensor:
        """A^T g, or one group's part of it: (C, H, W) -> (C, H, W)."""
        self._check_map("g", g)
        index = self._index(group)
        parts = self._adjoint_parts(g)
        return parts.sum(0) if index is None else parts[index]

    def row(
        self, position: tuple[int, int], group: str | None = None, channel: int | None = None, reduce: str = "mean"
    ) -> xr.DataArray:
        """Row `position` of A as a picture (row, col): how strongly it reads every position.

        Args:
            position: (row, col) on the grid.
            group: a name out of `groups`, or None for the merged operator.
            channel: one channel, or None to combine them by `reduce`.
            reduce: "mean" | "mean_abs" | "rms" | "max_abs".

        Raises:
            ValueError: an argument is out of range; says what is allowed.
        """
        index = self._index(group)
        merged, groups = self.rows(position, channel, reduce)
        return merged if index is None else groups[index]

    def column(
        self, position: tuple[int, int], group: str | None = None, channel: int | None = None, reduce: str = "mean"
    ) -> xr.DataArray:
        """Column `position` of A as a picture (row, col): how strongly every position hears it. Arguments as `row`."""
        index = self._index(group)
        merged, groups = self.columns(position, channel, reduce)
        return merged if index is None else groups[index]

    def rows(
        self, position: tuple[int, int], channel: int | None = None, reduce: str = "mean"
    ) -> tuple[xr.DataArray, xr.DataArray]:
        """The merged row (row, col) and every group's (group, row, col), from one pass through the kernel."""
        return self._pictures(self._row_parts, position, channel, reduce)

    def columns(
        self, position: tuple[int, int], channel: int | None = None, reduce: str = "mean"
    ) -> tuple[xr.DataArray, xr.DataArray]:
        """The merged column (row, col) and every group's (group, row, col), from one pass through the kernel."""
        return self._pictures(self._column_parts, position, channel, reduce)

    def matrix(
        self, group: str | None = None, channel: int | None = None, reduce: str = "mean", budget: int = 256 * 2**20
    ) -> xr.DataArray:
        """A itself, (N, N) with N = rows x cols: reader along the first axis, read position along the second.

        Raises:
            ValueError: the matrix would take more than `budget` bytes.
        """
        index, (rows, cols) = self._index(group), self.grid
        _check_reduce(reduce)
        self._check_channel(channel)
        count = rows * cols
        if 4 * count * count > budget:
            raise ValueError(
                f"The matrix of a {rows} x {cols} grid takes {4 * count * count / 2**20:.0f} MiB, over the budget of "
                f"{budget / 2**20:.0f} MiB: raise `budget`, or ask for rows and columns instead."
            )
        dense = np.empty((count, count), np.float32)
        for n in range(count):
            position = divmod(n, cols)
            merged, groups = self._pictures(self._column_parts, position, channel, reduce)
            dense[:, n] = (merged if index is None else groups[index]).values.ravel()
        return xr.DataArray(dense, dims=("reader", "read"), attrs={"reduce": reduce, "group": group or "merged"})

    # What the families implement

    def _apply(self, v: torch.Tensor, group: int | None) -> torch.Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        raise NotImplementedError

    def _adjoint_parts(self, g: torch.Tensor) -> torch.Tensor:
        """(C, H, W) -> (groups, C, H, W)."""
        raise NotImplementedError

    def _row_parts(self, position: tuple[int, int]) -> torch.Tensor:
        """Row `position` of each channel's matrix: (groups, C, H, W)."""
        return self._adjoint_parts(self._one_hot(position))

    def _column_parts(self, position: tuple[int, int]) -> torch.Tensor:
        """Column `position` of each channel's matrix: (groups, C, H, W)."""
        raise NotImplementedError

    def _combine(
        self, parts: torch.Tensor, channel: int | None, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The merged picture (H, W) and the groups' (groups, H, W)."""
        raise NotImplementedError

    # Shared pieces

    def _transposed(
        self, linear: Callable[[torch.Tensor], torch.Tensor], v: torch.Tensor, g: torch.Tensor
    ) -> torch.Tensor:
        """The transpose of a linear map applied to g: its derivative at any v. The forward pass is kept."""
        if self._graph is None:
            start = v.detach().clone().requires_grad_()
            with torch.enable_grad():
                self._graph = start, linear(start)
        start, end = self._graph
        (grad,) = torch.autograd.grad(end, start, g, retain_graph=True)
        return grad

    def _own(self, group: int) -> torch.Tensor:
        """1 on the channels of a head, 0 elsewhere: (C, 1, 1)."""
        width = self.value.shape[0] // len(self.groups)
        own = torch.zeros(self.value.shape[0], 1, 1, dtype=self.value.dtype, device=self.value.device)
        own[group * width : (group + 1) * width] = 1
        return own

    def _one_hot(self, position: tuple[int, int]) -> torch.Tensor:
        one = torch.zeros_like(self.value)
        one[:, position[0], position[1]] = 1
        return one

    def _pictures(
        self,
        parts: Callable[[tuple[int, int]], torch.Tensor],
        position: tuple[int, int],
        channel: int | None,
        reduce: str,
    ) -> tuple[xr.DataArray, xr.DataArray]:
        position = self.check_position(position)
        self._check_channel(channel)
        merged, groups = self._combine(parts(position), channel, _check_reduce(reduce))
        attrs = {"position": position, "channel": "all" if channel is None else channel, "reduce": reduce}
        return (
            xr.DataArray(merged.cpu().numpy(), dims=("row", "col"), attrs=attrs),
            xr.DataArray(
                groups.cpu().numpy(), dims=("group", "row", "col"), coords={"group": list(self.groups)}, attrs=attrs
            ),
        )

    def check_position(self, position: tuple[int, int]) -> tuple[int, int]:
        """`position` as two whole numbers; ValueError if it is not on the grid."""
        rows, cols = self.grid
        try:
            row, col = (_whole(p) for p in position)
        except (TypeError, ValueError):
            raise TypeError(f"position must be a (row, col) pair of whole numbers; got {position!r}.") from None
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(f"position must be inside the {rows} x {cols} grid; got (row {row}, col {col}).")
        return row, col

    def _index(self, group: str | None) -> int | None:
        if group is None:
            return None
        if group not in self.groups:
            raise ValueError(unknown("group", group, self.groups, of=self.info.get("layer")))
        return self.groups.index(group)

    def _check_map(self, name: str, v: torch.Tensor) -> None:
        if not isinstance(v, torch.Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(v).__name__}.")
        if v.dtype != self.value.dtype:
            raise TypeError(f"{name} must have the layer's dtype {self.value.dtype}; got {v.dtype}.")
        if v.shape != self.value.shape or v.device != self.value.device:
            raise ValueError(
                f"{name} must be (C, H, W) = {tuple(self.value.shape)} on {self.value.device}; "
                f"got {tuple(v.shape)} on {v.device}."
            )

    def _check_channel(self, channel: int | None) -> None:
        count = self.value.shape[0]
        if channel is None:
            return
        try:
            inside = 0 <= _whole(channel) < count
        except TypeError:
            raise TypeError(f"channel must be a whole number, or None to combine all; got {channel!r}.") from None
        if not inside:
            raise ValueError(f"channel must be from 0 to {count - 1}, or None to combine all; got {channel}.")


def _whole(number: Any) -> int:
    """A whole number of any integer type; TypeError for everything else, True and 1.0 included."""
    if isinstance(number, bool | np.bool_):
        raise TypeError("a truth value is not a position")
    return index(number)


def _check_reduce(reduce: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if reduce not in REDUCTIONS:
        raise ValueError(unknown("reduction", reduce, REDUCTIONS))
    return REDUCTIONS[reduce][1]
