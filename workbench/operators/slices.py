"""The operator of an SCNN layer: its derivative at the image, in which channels mix."""

from collections.abc import Callable

import torch

from workbench.models.states import SlicesState

from .linear import Operator


class SlicesOperator(Operator):
    """An SCNN layer, linearised at the image: y = J v, with J v = y at the layer's own value. See `SlicesState`.

    The groups add up to J: "identity", and what the pass of each direction adds to what the passes before it left.

    Channels mix, so a position's row or column of J is a C x C matrix for every other position. `channel` c shows how
    channel c goes into itself; without a channel, `reduce` combines all C x C pairs. So rows, columns and the matrix
    agree here as they do where channels stay apart.
    """

    state: SlicesState
    exact = False

    def _apply(self, v: torch.Tensor, group: int | None) -> torch.Tensor:
        return self.state.mix(v) if group is None else self.state.contributions(v)[group]

    def _adjoint_parts(self, g: torch.Tensor) -> torch.Tensor:
        return self.state.back(g.unsqueeze(0))[:, 0]

    def _row_parts(self, position: tuple[int, int]) -> torch.Tensor:
        """Every pair (out, in) of channels, of which `position` is the reader: (groups, C * C, H, W)."""
        return self.state.back(self._one_hots(position)).flatten(1, 2)

    def _column_parts(self, position: tuple[int, int]) -> torch.Tensor:
        """Every pair (out, in) of channels, of which `position` is read: (groups, C * C, H, W)."""
        with torch.no_grad():
            return self.state.contributions(self._one_hots(position)).transpose(1, 2).flatten(1, 2)

    def _one_hots(self, position: tuple[int, int]) -> torch.Tensor:
        """A batch of maps, each with a 1 in one channel: (C, C, H, W)."""
        channels = self.value.shape[0]
        ones = self.value.new_zeros(channels, *self.value.shape)
        ones[range(channels), range(channels), position[0], position[1]] = 1
        return ones

    def _combine(
        self, parts: torch.Tensor, channel: int | None, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        merged = parts.sum(0)
        if channel is not None:
            pair = channel * (self.value.shape[0] + 1)
            return merged[pair], parts[:, pair]
        return reduce(merged), torch.stack([reduce(part) for part in parts])
