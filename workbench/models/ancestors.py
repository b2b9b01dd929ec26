"""GSPN's ancestors, SPN, SCNN and CSPN, as mixing layers of small classifiers, to be compared with GSPN.

Papers: SPN, Learning Affinity via Spatial Propagation Networks (NeurIPS 2017); SCNN, Spatial as Deep (AAAI 2018); CSPN,
Depth Estimation via Affinity Learned with Convolutional Spatial Propagation Network (ECCV 2018).
Source: written from the papers' formulas; no upstream code was used. Licence of this file: Apache-2.0.

The papers refine segmentations, lanes and depth maps; none publishes a classifier. spn_nano, scnn_nano and cspn_nano
are our own, for 64 x 64 images, and have no counterpart upstream: the stem, stages, feed-forward parts and head of
gspn_nano around the ancestor's way of mixing. As in GSPN, what is mixed is v = dwconv(in_proj(x)), what steers it is
predicted from v by way of few channels, and a layer norm and out_proj follow; GSPN's lambda, u, D and global response
norm are left out, for the ancestors have nothing of the kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from kernels.propagation import DIRECTIONS, complement, normalise_gates, propagate
from kernels.slice_convolution import ORDER, activity

from .ancestor_states import IDENTITY, DiffusionState, SlicesState
from .base import Mixer
from .checks import check_stages, check_whole
from .gspn import ScanHierarchy, predict
from .parts import LayerNorm2d, Linear2d, Mlp
from .registry import register
from .states import PropagationState


@dataclass(frozen=True)
class SignedState(PropagationState):
    """An SPN mixing layer frozen at an image: GSPN's with u = 1 and D = 0, of which nothing is computed or stored."""

    def modulated(self, v: torch.Tensor) -> torch.Tensor:
        """Each direction's pass, not yet weighted: (B, C, H, W) or a v for each, (K, B, C, H, W) -> (K, B, C, H, W)."""
        return propagate(v, self.gates, self.lam, directions=self.groups, chunk=self.chunk, backend=self.backend)

    @property
    def flops(self) -> float:
        """Operations: 7 of the scan and 2 of the merge for each direction, channel and position."""
        return 9.0 * self.lam.numel()

    @property
    def least_values(self) -> float:
        """The least numbers read and written: v, three gates, lambda, and the output."""
        return float(2 * self.value.numel() + self.gates.numel() + self.lam.numel())


class Ancestor(Mixer):
    """What the three have in common: v = dwconv(in_proj(x)), and out_proj(out_norm(y)) of what was mixed.

    Args:
        channels: channels of x, (B, channels, H, W).
        inner: channels of v, (B, inner, H, W).
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.in_proj = Linear2d(channels, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 7, padding=3, groups=inner, bias=False)
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = Linear2d(inner, channels, bias=False)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """What is mixed: (B, channels, H, W) -> (B, inner, H, W)."""
        return self.conv2d(self.in_proj(x)).contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.freeze(x)
        return self.out_proj(self.out_norm(state.mix(state.value)))


class SignedPropagation(Ancestor):
    """SPN: line propagation with signed gates that keep it stable, in four directions, merged by learned weights.

        h[t, n] = (1 - sum_j g_j[t, n]) v[t, n] + sum_j g_j[t, n] h[t-1, n+j-1],    |g_0| + |g_1| + |g_2| <= 1

    and y = sum over k of m_k h_k, one learned weight for each direction. The published code takes the element-wise
    maximum over directions instead; it is not linear, and would hide which direction a picture comes from, so the
    linear merge of GSPN is used here.

    Args:
        channels, inner: as in `Ancestor`.
        d_state: channels of the map p = state_down(v) that predicts the gate logits of every direction and channel.
        chunk: lines per chunk, None for one chunk over the whole map (SPN's).

    Source: SPN (NeurIPS 2017), equation 1 and the three-way connection of section 3.
    """

    kind = "propagation"

    def __init__(self, channels: int, inner: int, d_state: int, chunk: int | None) -> None:
        super().__init__(channels, inner)
        self.chunk = chunk
        self.state_down = nn.Conv2d(inner, d_state, 1, bias=False)
        self.signed_conv_up = nn.Conv2d(d_state, 12 * inner, 1, bias=False)
        self.m_conv = nn.Conv2d(4, 1, 1, bias=False)

    def freeze(self, x: torch.Tensor) -> SignedState:
        """Everything that the image decides, for x (B, channels, H, W)."""
        value = self.value(x)
        weight = self.signed_conv_up.weight.flatten(1).unflatten(0, (4, 3, -1))
        gates = normalise_gates(predict(weight, self.state_down(value)), rule="absolute", backend=self.backend)
        number = torch.ones((), dtype=value.dtype, device=value.device)
        return SignedState(
            value=value,
            gates=gates,
            lam=complement(gates, chunk=self.chunk),
            u=number.expand(4, *value.shape),
            skip=(0 * number).expand(4, *value.shape),
            weight=self.m_conv.weight.flatten(),
            merge="aligned",
            chunk=self.chunk,
            backend=self.backend,
        )

    def chosen_groups(self) -> tuple[str, ...]:
        return DIRECTIONS


class SlicePasses(Ancestor):
    """SCNN: each line is convolved over all channels, and what is positive is added to the next; four passes in turn.

    `kernels.slice_convolution` has the formula and the order. The ReLU makes the layer non-linear; its state is the
    derivative at the image. A forward pass runs the passes twice: to find where each ReLU is active, and to mix.

    Args:
        channels, inner: as in `Ancestor`.
        kernel: positions of a line that are read, odd.

    Source: SCNN (AAAI 2018), section 3.
    """

    kind = "convolution"

    def __init__(self, channels: int, inner: int, kernel: int) -> None:
        super().__init__(channels, inner)
        self.kernel = kernel
        self.passes = nn.ModuleDict({d: nn.Conv1d(inner, inner, kernel, bias=False) for d in ORDER})

    def freeze(self, x: torch.Tensor) -> SlicesState:
        """Everything that the image decides, for x (B, channels, H, W)."""
        value = self.value(x)
        weight = torch.stack([cast(nn.Conv1d, conv).weight for conv in self.passes.values()])
        active = activity(value, weight, directions=ORDER, backend=self.backend)
        return SlicesState(value, weight, active, ORDER, self.backend)

    def chosen_groups(self) -> tuple[str, ...]:
        return (IDENTITY, *ORDER)


class IsotropicDiffusion(Ancestor):
    """CSPN: every position takes from its eight neighbours and its own first value, all at once, `steps` times.

    `kernels.isotropic` has the formula. The logits of the eight weights are predicted for every channel and pixel.

    Args:
        channels, inner: as in `Ancestor`.
        d_state: channels of the map state_down(v) that predicts the logits.
        steps: how often.

    Source: CSPN (ECCV 2018), section 3.
    """

    kind = "diffusion"

    def __init__(self, channels: int, inner: int, d_state: int, steps: int) -> None:
        super().__init__(channels, inner)
        self.steps = steps
        self.state_down = nn.Conv2d(inner, d_state, 1, bias=False)
        self.affinity_conv_up = nn.Conv2d(d_state, 8 * inner, 1, bias=False)

    def freeze(self, x: torch.Tensor) -> DiffusionState:
        """Everything that the image decides, for x (B, channels, H, W)."""
        value = self.value(x)
        weight = self.affinity_conv_up.weight.flatten(1).unflatten(0, (8, -1))
        logits = predict(weight, self.state_down(value)).transpose(0, 1)
        return DiffusionState(value, logits, self.steps, self.backend)

    def chosen_groups(self) -> tuple[str, ...]:
        return ("isotropic",)


class Block(nn.Module):
    """x + op(norm(x)), then x + mlp(norm2(x)), on (B, C, H, W)."""

    def __init__(self, channels: int, op: Ancestor) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.op = op
        self.norm2 = LayerNorm2d(channels)
        self.mlp = Mlp(channels, Linear2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.op(self.norm(x))
        return x + self.mlp(self.norm2(x))


NANO = {"dims": (40, 80), "depths": (2, 2), "stem_strides": (2, 1), "num_classes": 10, "input_size": 64}


@register("spn_nano", **NANO)
class Spn(ScanHierarchy):
    """A classifier whose layers mix as SPN: a convolution stem, stages of blocks, a linear head. It is our own.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        d_state: channels from which gates are predicted.
        ratio: channels of the scan over channels of the stage.
        chunk: lines per chunk in every block, None for scans of the whole map.
        num_classes: outputs of the head.
        stem_strides: strides of the stem's two convolutions.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: SPN (NeurIPS 2017) for the mixing; the module's docstring says what else was chosen.
    """

    family = "spn"
    name = "spn"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        d_state: int = 8,
        ratio: float = 1.5,
        chunk: int | None = None,
        num_classes: int = 1000,
        stem_strides: Sequence[int] = (2, 2),
        input_size: int = 224,
    ) -> None:
        check_whole(d_state=d_state)
        _check_ratio(ratio, dims)

        def block(channels: int, lines: int | None) -> Block:
            return Block(channels, SignedPropagation(channels, _inner(ratio, channels), d_state, lines))

        super().__init__(
            block,
            dims=dims,
            depths=depths,
            global_stages=_all(dims),
            num_classes=num_classes,
            chunk=chunk,
            stem_strides=stem_strides,
            input_size=input_size,
        )


@register("scnn_nano", **NANO)
class Scnn(ScanHierarchy):
    """A classifier whose layers mix as SCNN: a convolution stem, stages of blocks, a linear head. It is our own.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        inner: channels of the passes in every stage; SCNN has 128 and one layer.
        kernel: positions of a line that are read, odd; SCNN's is 9.
        num_classes: outputs of the head.
        stem_strides: strides of the stem's two convolutions.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: SCNN (AAAI 2018) for the mixing; the module's docstring says what else was chosen.
    """

    family = "scnn"
    name = "scnn"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        inner: int = 8,
        kernel: int = 9,
        num_classes: int = 1000,
        stem_strides: Sequence[int] = (2, 2),
        input_size: int = 224,
    ) -> None:
        check_whole(inner=inner, kernel=kernel)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a line is read symmetrically; got {kernel}.")
        super().__init__(
            lambda channels, lines: Block(channels, SlicePasses(channels, inner, kernel)),
            dims=dims,
            depths=depths,
            global_stages=_all(dims),
            num_classes=num_classes,
            chunk=None,
            stem_strides=stem_strides,
            input_size=input_size,
        )


@register("cspn_nano", **NANO)
class Cspn(ScanHierarchy):
    """A classifier whose layers mix as CSPN: a convolution stem, stages of blocks, a linear head. It is our own.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        d_state: channels from which the weights of the neighbours are predicted.
        ratio: channels of the diffusion over channels of the stage.
        steps: how often a position takes from its neighbours; CSPN's number is 24.
        num_classes: outputs of the head.
        stem_strides: strides of the stem's two convolutions.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: CSPN (ECCV 2018) for the mixing; the module's docstring says what else was chosen.
    """

    family = "cspn"
    name = "cspn"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        d_state: int = 8,
        ratio: float = 1.5,
        steps: int = 24,
        num_classes: int = 1000,
        stem_strides: Sequence[int] = (2, 2),
        input_size: int = 224,
    ) -> None:
        check_whole(d_state=d_state, steps=steps)
        _check_ratio(ratio, dims)
        super().__init__(
            lambda channels, lines: Block(
                channels, IsotropicDiffusion(channels, _inner(ratio, channels), d_state, steps)
            ),
            dims=dims,
            depths=depths,
            global_stages=_all(dims),
            num_classes=num_classes,
            chunk=None,
            stem_strides=stem_strides,
            input_size=input_size,
        )


def _all(dims: Sequence[int]) -> range:
    """Every stage, for scans of the whole map; ValueError unless dims is a list of whole numbers."""
    check_stages(dims=dims)
    return range(len(dims))


def _check_ratio(ratio: float, dims: Sequence[int]) -> None:
    check_stages(dims=dims)
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool) and math.isfinite(ratio)
    if not number or _inner(ratio, min(dims)) < 1:
        raise ValueError(f"ratio must be a number that gives every stage a channel to mix; got {ratio!r}.")


def _inner(ratio: float, channels: int) -> int:
    """The channels of a mixing layer; a ratio that was read off a file may come out a hair too small."""
    return int(ratio * channels + 1e-6)
