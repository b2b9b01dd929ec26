"""A mixing layer frozen at an image: everything that the image decides, after which mixing is linear in the values.

A state has `groups` (directions or heads), `value` (what is mixed, as a map) and `mix` (the linear map). Pictures go
through it, and so does the forward pass of a model, save that of GSPN, which makes the gates and mixes in one fused
step (`kernels.propagation.mix`); the tests hold both to the same output.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from kernels.attention import Pattern, attend, full
from kernels.propagation import DIRECTIONS, mix, propagate

from .ancestor_states import DiffusionState, SlicesState


@dataclass(frozen=True)
class PropagationState:
    """A GSPN mixing layer frozen at an image.

    value (B, C, H, W); gates (K, 3, B, C or 1, H, W); lam, u, skip (K, B, C, H, W); weight (K,), the learned weight of
    each direction; merge "aligned" or "released"; chunk: lines per chunk or None; logits: what the gates were made of
    by the sigmoid rule, shaped as they are, where the layer itself mixes in one step from there.
    """

    value: torch.Tensor
    gates: torch.Tensor
    lam: torch.Tensor
    u: torch.Tensor
    skip: torch.Tensor
    weight: torch.Tensor
    merge: str
    chunk: int | None
    backend: str = "auto"
    groups: tuple[str, ...] = DIRECTIONS
    logits: torch.Tensor | None = None

    def contributions(self, v: torch.Tensor) -> torch.Tensor:
        """What each direction adds to the output: m_k times `modulated`, (K, B, C, H, W)."""
        return self.weight.view(-1, 1, 1, 1, 1) * self.modulated(v)

    def modulated(self, v: torch.Tensor) -> torch.Tensor:
        """Each direction's pass, not yet weighted: (B, C, H, W) or a v for each, (K, B, C, H, W) -> (K, B, C, H, W).

        aligned:  U_k P_k^-1 scan(P_k v) + D_k v, everything in image coordinates.
        released: U_k scan(P_k v) + D_k P_k v, where nothing is carried back to image coordinates.
        """
        directions = self.groups
        if self.merge == "released":
            v, directions = to_released_frames(v), ("left_right",) * len(self.groups)
        h = propagate(v, self.gates, self.lam, directions=directions, chunk=self.chunk, backend=self.backend)
        return torch.addcmul(self.skip * v, self.u, h)

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The merged linear map, the sum of the contributions: (B, C, H, W) -> (B, C, H, W)."""
        # Weighting and summing in one step reads the K maps once.
        return torch.tensordot(self.weight, self.modulated(v), dims=1)

    def mixed(self) -> torch.Tensor:
        """The output as the layer itself makes it: `mix(value)`, in one fused step from the logits if it has them."""
        if self.logits is None:
            return self.mix(self.value)
        maps = self.logits, self.lam, self.u, self.skip, self.weight
        return mix(self.value, *maps, directions=self.groups, chunk=self.chunk, backend=self.backend)

    @property
    def flops(self) -> float:
        """Operations: 12 for each direction, channel and position, 7 of which are the scan's; and the gates' own 8."""
        return 12.0 * self.lam.numel() + (0 if self.logits is None else 8.0 * self.logits.numel() / 3)

    @property
    def least_values(self) -> float:
        """The least numbers read and written: v, three gates, lambda, u and D, and the output."""
        return float(sum(t.numel() for t in (self.value, self.gates, self.lam, self.u, self.skip, self.value)))


def to_released_frames(v: torch.Tensor) -> torch.Tensor:
    """[v, v^T, flip_W(v), flip_W(v^T)]: (B, C, N, N), or one for each, (4, B, C, N, N) -> (4, B, C, N, N).

    Raises:
        ValueError: the map is not square.
    """
    if v.shape[-1] != v.shape[-2]:
        raise ValueError(
            f"merge='released' transposes the map and needs a square one; got {tuple(v.shape[-2:])}: "
            "use a square image or merge='aligned'."
        )
    a, b, c, d = v if v.ndim == 5 else (v, v, v, v)
    return torch.stack([a, b.transpose(-1, -2), c.flip(-1), d.transpose(-1, -2).flip(-1)])


class HeadsState:
    """What the states of attention layers share: a group for each head, with `width` channels of the value its own."""

    heads: int
    width: int
    backend: str

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.heads))

    @property
    def value(self) -> torch.Tensor:
        """What is mixed, (B, heads * d, H, W)."""
        raise NotImplementedError

    @property
    def reading(self) -> str:
        """Which keys a query reads, in words."""
        raise NotImplementedError

    @property
    def flops(self) -> float:
        """Operations of the mixing step: two multiply-adds per channel for every key that a query reads."""
        raise NotImplementedError

    @property
    def least_values(self) -> float:
        """The least numbers read and written: queries, keys, values, bias, and the output."""
        raise NotImplementedError

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The merged linear map, every head on its own channels: (B, heads * d, H, W) -> the same shape."""
        raise NotImplementedError

    def row(self, position: tuple[int, int]) -> torch.Tensor:
        """The softmax row of one query, recomputed from q and k: (heads, H, W), 0 where the query does not read."""
        raise NotImplementedError

    def column(self, position: tuple[int, int]) -> torch.Tensor:
        """How much every query reads of one position: (heads, H, W)."""
        one = torch.zeros_like(self.value)
        one[:, :, position[0], position[1]] = 1
        return self.mix(one)[0].unflatten(0, (self.heads, self.width))[:, 0]


@dataclass(frozen=True)
class AttentionState(HeadsState):
    """A layer whose queries read keys on their own grid, frozen at an image.

    q, k, v (B, H, W, heads, d); pattern: which keys a query reads; bias (heads, 2 kh - 1, 2 kw - 1) or None, read at
    `relative`, see `kernels.attention.attend`. unpadded: the grid before the layer added tokens of padding, or None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    pattern: Pattern
    bias: torch.Tensor | None
    scale: float
    backend: str = "auto"
    relative: str = "query-key"
    unpadded: tuple[int, int] | None = None

    @property
    def heads(self) -> int:  # type: ignore[override]
        return self.q.shape[3]

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.q.shape[4]

    @property
    def value(self) -> torch.Tensor:
        return to_map(self.v)

    @property
    def reading(self) -> str:
        return self.pattern.name

    @property
    def flops(self) -> float:
        batch, height, width, heads, channels = self.q.shape
        groups = self.pattern.groups
        pairs = sum(float(group.count((height, width)).sum()) for group in groups) / len(groups)
        return 4.0 * batch * pairs * heads * channels

    @property
    def least_values(self) -> float:
        return 4.0 * self.q.numel() + (0 if self.bias is None else self.bias.numel())

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        return to_map(self.mix_tokens(to_tokens(v, self.heads)))

    def mix_tokens(self, v: torch.Tensor) -> torch.Tensor:
        """The same in the kernel's layout: (B, H, W, heads, d) -> (B, H, W, heads, d)."""
        return attend(
            self.q, self.k, v, self.pattern, self.bias, self.scale, backend=self.backend, relative=self.relative
        )

    def row(self, position: tuple[int, int]) -> torch.Tensor:
        groups = self.pattern.groups
        count = self.heads // len(groups)
        own = [slice(n * count, (n + 1) * count) for n in range(len(groups))]
        return torch.cat([self._row(position, group, mine) for group, mine in zip(groups, own, strict=True)])

    def _row(self, position: tuple[int, int], pattern: Pattern, own: slice) -> torch.Tensor:
        """The row of the heads that share a pattern."""
        height, width = self.q.shape[1:3]
        rows, cols = torch.tensor(pattern.keys(position, (height, width)), device=self.q.device).unbind(1)
        query, keys = self.q[0, position[0], position[1], own], self.k[0, rows, cols, own]
        logits = torch.einsum("hd,nhd->hn", query * self.scale, keys)
        if self.bias is not None:
            logits = logits + self._bias(position, pattern, rows, cols)[own]
        maps = logits.new_zeros(logits.shape[0], height, width)
        maps[:, rows, cols] = logits.softmax(1)
        return maps

    def _bias(
        self, position: tuple[int, int], pattern: Pattern, rows: torch.Tensor, cols: torch.Tensor
    ) -> torch.Tensor:
        """The bias of one query's keys: (heads, keys)."""
        assert self.bias is not None
        sign = 1 if self.relative == "query-key" else -1
        down = sign * (position[0] - rows) // pattern.rows.step + self.bias.shape[1] // 2
        right = sign * (position[1] - cols) // pattern.cols.step + self.bias.shape[2] // 2
        return self.bias[:, down, right]


@dataclass(frozen=True)
class PooledState(HeadsState):
    """A layer whose queries read the whole map, pooled to one key for every cell, frozen at an image.

    q (B, H, W, heads, d); k, v (B, KH, KW, heads, d), one for every cell of `cell` positions. As a map over positions,
    a key spreads its weight evenly over the positions of its cell: y = S P v, with P the mean over cells and S the
    softmax. full: the values whose means v is, (B, H, W, heads, d); None where v was made otherwise, and every position
    then stands for its cell's value.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cell: tuple[int, int]
    scale: float
    backend: str = "auto"
    full: torch.Tensor | None = None
    unpadded: tuple[int, int] | None = None

    @property
    def heads(self) -> int:  # type: ignore[override]
        return self.q.shape[3]

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.q.shape[4]

    @cached_property
    def value(self) -> torch.Tensor:
        return to_map(self.full) if self.full is not None else self._spread(to_map(self.v))

    @property
    def reading(self) -> str:
        return f"all keys, pooled over {self.cell[0]}x{self.cell[1]} positions"

    @property
    def flops(self) -> float:
        return 4.0 * self.q.numel() * self.k.shape[1] * self.k.shape[2]

    @property
    def least_values(self) -> float:
        return 2.0 * self.q.numel() + 2.0 * self.k.numel()

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        return to_map(self.mix_tokens(to_tokens(pool(v, self.cell), self.heads)))

    def mix_tokens(self, v: torch.Tensor) -> torch.Tensor:
        """What the queries make of pooled values: (B, KH, KW, heads, d) -> (B, H, W, heads, d)."""
        return attend(self.q, self.k, v, full(), None, self.scale, backend=self.backend)

    def row(self, position: tuple[int, int]) -> torch.Tensor:
        logits = torch.einsum("hd,rchd->hrc", self.q[0, position[0], position[1]] * self.scale, self.k[0])
        weights = logits.flatten(1).softmax(1).view_as(logits)
        members = self._spread(pool_counts(self.q.shape[1:3], self.cell, weights))
        return (self._spread(weights.unsqueeze(0)) / members)[0]

    def _spread(self, cells: torch.Tensor) -> torch.Tensor:
        """Every position gets its cell's entry: (B, C, KH, KW) -> (B, C, H, W)."""
        tall = cells.repeat_interleave(self.cell[0], -2).repeat_interleave(self.cell[1], -1)
        return tall[..., : self.q.shape[1], : self.q.shape[2]]


@dataclass(frozen=True)
class JoinedState(HeadsState):
    """Heads of several kinds in one layer, in order; each kind is a state with its own channels of the value."""

    parts: tuple[AttentionState | PooledState, ...]
    unpadded: tuple[int, int] | None = None

    @property
    def backend(self) -> str:  # type: ignore[override]
        return self.parts[0].backend

    @property
    def heads(self) -> int:  # type: ignore[override]
        return sum(part.heads for part in self.parts)

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.parts[0].width

    @cached_property
    def value(self) -> torch.Tensor:
        return torch.cat([part.value for part in self.parts], 1)

    @property
    def reading(self) -> str:
        return " | ".join(part.reading for part in self.parts)

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def least_values(self) -> float:
        return sum(part.least_values for part in self.parts)

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        shares = v.split([part.heads * part.width for part in self.parts], 1)
        return torch.cat([part.mix(share) for part, share in zip(self.parts, shares, strict=True)], 1)

    def row(self, position: tuple[int, int]) -> torch.Tensor:
        return torch.cat([part.row(position) for part in self.parts])


@dataclass(frozen=True)
class ChannelState:
    """A layer whose channels read each other, frozen at an image: y[p] = A v[p] at every position p, head by head.

    value (B, heads * d, H, W); matrix (B, heads, d, d): A, output channel by input channel, every row sums to 1. It
    runs as products of PyTorch, whatever backend the model was asked to use.
    """

    value: torch.Tensor
    matrix: torch.Tensor
    backend: str = "torch"

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"head {i}" for i in range(self.matrix.shape[1]))

    @property
    def reading(self) -> str:
        return f"each channel reads the {self.matrix.shape[2]} channels of its head"

    @property
    def flops(self) -> float:
        """Operations of the mixing step, a multiply-add for each position and pair of channels, given A."""
        return 2.0 * self.value.numel() * self.matrix.shape[2]

    @property
    def least_values(self) -> float:
        return 2.0 * self.value.numel() + self.matrix.numel()

    def mix(self, v: torch.Tensor) -> torch.Tensor:
        """The merged linear map, every head on its own channels: (B, heads * d, H, W) -> the same shape."""
        return _on_channels(self.matrix, v)

    def mix_back(self, g: torch.Tensor) -> torch.Tensor:
        """The transpose of `mix`."""
        return _on_channels(self.matrix.transpose(-1, -2), g)


def _on_channels(matrix: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Each head's matrix (B, heads, d, d) applied to its channels of v (B, heads * d, H, W), at every position."""
    by_head = v.unflatten(1, matrix.shape[1:3]).flatten(3)
    return (matrix @ by_head).view(v.shape)


def to_map(tokens: torch.Tensor) -> torch.Tensor:
    """(B, H, W, heads, d) -> (B, heads * d, H, W)."""
    return tokens.flatten(3).permute(0, 3, 1, 2)


def to_tokens(v: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads * d, H, W) -> (B, H, W, heads, d)."""
    return v.permute(0, 2, 3, 1).unflatten(3, (heads, -1))


def pool(v: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
    """The mean over cells, of those at the border over the positions they have: (B, C, H, W) -> (B, C, KH, KW)."""
    return F.avg_pool2d(v, cell, ceil_mode=True, count_include_pad=False)


def pool_counts(grid: torch.Size | tuple[int, int], cell: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """How many positions each cell has: (1, 1, KH, KW)."""
    ones = torch.ones(1, 1, *grid, dtype=like.dtype, device=like.device)
    return F.avg_pool2d(ones, cell, ceil_mode=True, count_include_pad=False, divisor_override=1)


AnyAttention = AttentionState | PooledState | JoinedState
State = PropagationState | AnyAttention | ChannelState | SlicesState | DiffusionState
