"""The operator of channel attention: the same small matrices at every position, and no matrix over positions."""

from typing import Any, NoReturn

import torch
import xarray as xr

from workbench.models.states import ChannelState
from workbench.names import unknown

from .linear import REDUCTIONS, Operator

#: Why attention over channels has no row, column or matrix over positions.
NO_POSITIONS = (
    "{layer} is channel attention, which has no N x N matrix over positions: it applies the same d x d matrix of each "
    "head at every position, and all positions contribute to that matrix; ask for channel_matrix(group) instead."
)


class ChannelOperator(Operator):
    """A channel-attention layer: one group per head, y[p] = A v[p] with the head's A at every position p.

    `value` holds the queries, which A mixes; `apply` and `adjoint` are as for every operator. What other operators show
    over positions (row, column, rows, columns, matrix) does not exist here, and `channel_matrix` stands in for it.
    """

    state: ChannelState

    def channel_matrix(self, group: str | None = None, reduce: str = "mean") -> xr.DataArray:
        """A of one head, or all heads combined: (channel_out, channel_in), both d, counted within a head.

        Every row of a head's matrix, and of their mean, sums to 1, and no entry is negative.

        Args:
            group: a head out of `groups`, or None for all.
            reduce: how all heads are combined: "mean" | "mean_abs" | "rms" | "max_abs".

        Raises:
            ValueError: there is no such group or reduction.
        """
        index = self._index(group)
        if reduce not in REDUCTIONS:
            raise ValueError(unknown("reduction", reduce, REDUCTIONS))
        matrices = self.state.matrix[0]
        matrix = REDUCTIONS[reduce][1](matrices) if index is None else matrices[index]
        attrs = {"group": group or "merged", "reduce": reduce}
        return xr.DataArray(matrix.cpu().numpy(), dims=("channel_out", "channel_in"), attrs=attrs)

    def row(
        self, position: Any, group: str | None = None, channel: int | None = None, reduce: str = "mean"
    ) -> NoReturn:
        """Raises ValueError: there is none, and says why."""
        self._refuse()

    def column(
        self, position: Any, group: str | None = None, channel: int | None = None, reduce: str = "mean"
    ) -> NoReturn:
        """Raises ValueError: there is none, and says why."""
        self._refuse()

    def rows(self, position: Any, channel: int | None = None, reduce: str = "mean") -> NoReturn:
        """Raises ValueError: there are none, and says why."""
        self._refuse()

    def columns(self, position: Any, channel: int | None = None, reduce: str = "mean") -> NoReturn:
        """Raises ValueError: there are none, and says why."""
        self._refuse()

    def matrix(
        self, group: str | None = None, channel: int | None = None, reduce: str = "mean", budget: int = 0
    ) -> NoReturn:
        """Raises ValueError: there is none, and says why."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(NO_POSITIONS.format(layer=self.info["layer"]))

    def _apply(self, v: torch.Tensor, group: int | None) -> torch.Tensor:
        mixed = self.state.mix(v)
        return mixed if group is None else mixed * self._own(group)

    def _adjoint_parts(self, g: torch.Tensor) -> torch.Tensor:
        back = self.state.mix_back(g.unsqueeze(0))[0]
        return torch.stack([back * self._own(i) for i in range(len(self.groups))])
