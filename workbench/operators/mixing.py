"""The operators that mix positions: scans along directions, and attention by heads."""

from collections.abc import Callable

import torch

from workbench.models.states import AnyAttention, DiffusionState, PropagationState

from .linear import Operator


class PropagationOperator(Operator):
    """A GSPN or SPN layer: one group per direction, y = sum_k m_k (U_k P_k^-1 scan(P_k v) + D_k v)."""

    state: PropagationState | DiffusionState

    def _apply(self, v: torch.Tensor, group: int | None) -> torch.Tensor:
        return self.state.mix(v) if group is None else self.state.contributions(v)[group]

    def _adjoint_parts(self, g: torch.Tensor) -> torch.Tensor:
        count = len(self.groups)
        apart = self.value.expand(count, 1, *self.value.shape)
        return self._transposed(self.state.contributions, apart, g.expand_as(apart))[:, 0]

    def _column_parts(self, position: tuple[int, int]) -> torch.Tensor:
        with torch.no_grad():
            return self.state.contributions(self._one_hot(position).unsqueeze(0))[:, 0]

    def _combine(
        self, parts: torch.Tensor, channel: int | None, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        merged = parts.sum(0)
        if channel is not None:
            return merged[channel], parts[:, channel]
        return reduce(merged), torch.stack([reduce(part) for part in parts])


class DiffusionOperator(PropagationOperator):
    """A CSPN layer: one group, which reads all directions alike."""

    state: DiffusionState


class AttentionOperator(Operator):
    """An attention layer: one group per head, which mixes its own channels by its softmax weights."""

    state: AnyAttention

    def _apply(self, v: torch.Tensor, group: int | None) -> torch.Tensor:
        mixed = self.state.mix(v)
        return mixed if group is None else mixed * self._own(group)

    def _adjoint_parts(self, g: torch.Tensor) -> torch.Tensor:
        grad = self._transposed(self.state.mix, self.value.unsqueeze(0), g.unsqueeze(0))[0]
        return torch.stack([grad * self._own(i) for i in range(len(self.groups))])

    def _row_parts(self, position: tuple[int, int]) -> torch.Tensor:
        """One softmax row per head, (heads, H, W), recomputed from q and k; every channel of a head shares it."""
        return self.state.row(position)

    def _column_parts(self, position: tuple[int, int]) -> torch.Tensor:
        with torch.no_grad():
            return self.state.column(position)

    def _combine(
        self, parts: torch.Tensor, channel: int | None, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Heads have equally many channels, all with the same weights, so combining channels is combining heads.

        One channel belongs to one head; the others do nothing to it.
        """
        if channel is None:
            return reduce(parts), parts
        owner = channel // self.state.width
        alone = torch.zeros_like(parts)
        alone[owner] = parts[owner]
        return parts[owner], alone
