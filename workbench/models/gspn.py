"""GSPN: a hierarchical image classifier whose blocks mix positions by line propagation in four directions.

Paper: Parallel Sequence Modeling via Generalized Spatial Propagation Network, arXiv 2501.12381 (CVPR 2025).
Source: written from the paper's formulas and the published names and shapes of its tensors; no upstream code was used.
The upstream code and weights carry a non-commercial licence: they are not part of this project, and a user who has the
weights loads the file with `load_model(name, weights="path")`.
Licence of this file: Apache-2.0.

gspn_tiny, gspn_small and gspn_base have the released configurations. gspn_nano is our own small variant for 64 x 64
images; it has no counterpart upstream.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from kernels.propagation import DIRECTIONS, mix, normalise_gates

from .base import Mixer, VisionModel
from .checks import check_choice, check_stages, check_whole
from .parts import GlobalResponseNorm, LayerNorm2d, Linear2d, Mlp, Stage
from .registry import register
from .states import PropagationState

MERGES = ("aligned", "released")

#: Lines per chunk in the blocks that do not scan the whole map.
LOCAL_CHUNK = 2


class Scanning(Mixer):
    """A mixer that scans in four directions with gates, lambda, u and D predicted from a map p of few channels.

    kind "propagation". merge "aligned" or "released"; chunk: lines per chunk, None for one chunk over the whole map.
    """

    kind = "propagation"

    def __init__(self, merge: str, chunk: int | None) -> None:
        super().__init__()
        self.merge, self.chunk = merge, chunk

    def hold_maps(self, d_state: int, channels: int, gates: int) -> None:
        """Keep the 1 x 1 maps from p, of d_state channels, to those of the scan, and the weights of the directions."""
        self.w_conv_up = nn.Conv2d(d_state, 12 * gates, 1, bias=False)
        self.l_conv_up = nn.Conv2d(d_state, 4 * channels, 1, bias=False)
        self.u_conv_up = nn.Conv2d(d_state, 4 * channels, 1, bias=False)
        self.d_conv = nn.Conv2d(d_state, 4 * channels, 1, bias=False)
        self.m_conv = nn.Conv2d(4, 1, 1, bias=False)

    def predicted(self, p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The maps of the scan from p, (B, d_state, H, W): gate logits, lambda, u, D; and the directions' weights."""
        # Stored gate by gate and used direction by direction: reordering the small weight spares copying the large map.
        gate_weight = self.w_conv_up.weight.flatten(1).unflatten(0, (3, 4, -1)).transpose(0, 1)
        maps = (predict(by_direction(conv), p) for conv in (self.l_conv_up, self.u_conv_up, self.d_conv))
        return predict(gate_weight, p), *maps, self.m_conv.weight.flatten()

    def frozen(self, value: torch.Tensor, p: torch.Tensor) -> PropagationState:
        """The state for what is mixed, (B, channels, H, W), and p, (B, d_state, H, W)."""
        logits, lam, u, skip, weight = self.predicted(p)
        aligned = self.merge == "aligned"
        # The released merge carries only v into each direction's frame, so all its maps are in the frame of the scan.
        frames = DIRECTIONS if aligned else (DIRECTIONS[0],) * 4
        return PropagationState(
            value=value,
            gates=normalise_gates(logits, frames, backend=self.backend),
            lam=lam,
            u=u,
            skip=skip,
            weight=weight,
            merge=self.merge,
            chunk=self.chunk,
            backend=self.backend,
            logits=logits if aligned else None,
        )

    def mixed(self, value: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        """What `frozen` mixes of the value, without its gates ever being written where the merge allows it."""
        if self.merge == "released":
            return self.frozen(value, p).mix(value)
        return mix(value, *self.predicted(p), chunk=self.chunk, backend=self.backend)

    def chosen_groups(self) -> tuple[str, ...]:
        return DIRECTIONS


class Propagation(Scanning):
    """Line propagation in four directions, merged with one learned scalar per direction.

    What is mixed is v = dwconv(in_proj(x)). From p = x_conv_down(v), of r channels, 1 x 1 maps predict three gate
    logits, lambda, u and D for every direction, channel and pixel; then

        y = sum over k of m_k (u_k h_k + D_k v),    h_k = the scan of lambda_k v with the normalised gates of k

    and the layer returns out_proj(grn(out_norm(y))). `PropagationState.modulated` says what the two merges do.

    Args:
        channels: channels of x, (B, channels, H, W).
        inner: channels of v, (B, inner, H, W).
        d_state: r.
        merge: "aligned" or "released".
        chunk: lines per chunk, None for one chunk over the whole map.

    Source: GSPN (arXiv 2501.12381), section 3. The term D v is in the released tensors, not in the paper's equations.
    """

    def __init__(self, channels: int, inner: int, d_state: int, merge: str, chunk: int | None) -> None:
        super().__init__(merge, chunk)
        self.in_proj = Linear2d(channels, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 7, padding=3, groups=inner, bias=False)
        self.x_conv_down = nn.Conv2d(inner, d_state, 1, bias=False)
        self.hold_maps(d_state, inner, inner)
        self.grn = GlobalResponseNorm(inner)
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = Linear2d(inner, channels, bias=False)

    def freeze(self, x: torch.Tensor) -> PropagationState:
        """Everything that the image decides, for x (B, channels, H, W)."""
        return self.frozen(*self.mixing_inputs(x))

    def mixing_inputs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is mixed, v, and p, from which the maps of the scan are predicted."""
        value = self.conv2d(self.in_proj(x)).contiguous()
        return value, self.x_conv_down(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.grn(self.out_norm(self.mixed(*self.mixing_inputs(x)))))


def by_direction(conv: nn.Conv2d) -> torch.Tensor:
    """The weight of a 1 x 1 convolution to 4 D channels as (4, D, r)."""
    return conv.weight.flatten(1).unflatten(0, (4, -1))


def predict(weight: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution that puts the groups of its weight first: (..., D, r), (B, r, H, W) -> (..., B, D, H, W)."""
    return (weight.unsqueeze(-3) @ p.flatten(2)).unflatten(-1, p.shape[2:])


class Block(nn.Module):
    """x + op(norm(x)), then x + mlp(norm2(x)), on (B, C, H, W)."""

    def __init__(self, channels: int, inner: int, d_state: int, merge: str, chunk: int | None) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.op = Propagation(channels, inner, d_state, merge, chunk)
        self.norm2 = LayerNorm2d(channels)
        self.mlp = Mlp(channels, Linear2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.op(self.norm(x))
        return x + self.mlp(self.norm2(x))


def stem(channels: int, strides: Sequence[int]) -> nn.Sequential:
    """Two 3 x 3 convolutions with layer norms; the numbers are those of the released tensor names."""
    half = channels // 2
    return nn.Sequential(
        OrderedDict(
            {
                "0": nn.Conv2d(3, half, 3, strides[0], 1),
                "2": LayerNorm2d(half),
                "4": nn.GELU(),
                "5": nn.Conv2d(half, channels, 3, strides[1], 1),
                "7": LayerNorm2d(channels),
            }
        )
    )


def to_next_stage(channels: int, following: int) -> nn.Sequential:
    """A 3 x 3 convolution with stride 2 and a layer norm, named as in the released tensors."""
    return nn.Sequential(
        OrderedDict({"1": nn.Conv2d(channels, following, 3, 2, 1), "3": LayerNorm2d(following)}),
    )


def is_global(stage: int, block: int, global_stages: Sequence[int]) -> bool:
    """Whether a block (from 0) scans the whole map: in a global stage the first seven do, then every seventh."""
    return stage in global_stages and (block < 7 or (block + 1) % 7 == 0)


class ScanHierarchy(VisionModel):
    """A convolution stem, stages of scanning blocks with a strided convolution between them, and a linear head.

    Args:
        block: makes a block, whose mixer is its `op`, from its channels and the lines per chunk of its scans.
        dims, depths, global_stages, num_classes, chunk, stem_strides, input_size: as in `Gspn`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        block: Callable[[int, int | None], nn.Module],
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        global_stages: Sequence[int],
        num_classes: int,
        chunk: int | None,
        stem_strides: Sequence[int],
        input_size: int,
    ) -> None:
        super().__init__()
        check_stages(dims=dims, depths=depths)
        check_stages(stem_strides=stem_strides)
        check_whole(num_classes=num_classes, input_size=input_size)
        if len(stem_strides) != 2:
            raise ValueError(f"stem_strides must be two, one for each stem convolution; got {stem_strides}.")
        if chunk is not None:
            check_whole(chunk=chunk)
        self.input_size, self.stem_strides = input_size, tuple(stem_strides)
        self.patch_embed = stem(dims[0], stem_strides)
        stages = []
        for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            chunks = [chunk or (None if is_global(i, j, global_stages) else LOCAL_CHUNK) for j in range(depth)]
            blocks = [block(channels, lines) for lines in chunks]
            last = i + 1 == len(dims)
            stages.append(Stage(blocks, nn.Identity() if last else to_next_stage(channels, dims[i + 1])))
        self.hold_stages(stages)
        self.classifier = nn.Sequential(
            OrderedDict(
                norm=LayerNorm2d(dims[-1]),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(dims[-1], num_classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, 3, H, W) -> (B, num_classes)."""
        self.check_input(x)
        x = self.patch_embed(x)
        for stage in self.stages:
            x = stage(x)
        return self.classifier(x)

    def blocks(self) -> dict[str, tuple[nn.Module, Mixer]]:
        return {name: (block, block.op) for name, block in self.named_blocks()}

    def stage_grid(self, stage: int, rows: int, cols: int) -> tuple[int, int]:
        for stride in (*self.stem_strides, *[2] * stage):
            rows, cols = -(-rows // stride), -(-cols // stride)
        return rows, cols

    def check_size(self, rows: int, cols: int) -> None:
        """Raise ValueError unless the last grid has a position."""
        smallest = self.stem_strides[0] * self.stem_strides[1] * 2 ** (len(self.stages) - 1)
        if min(rows, cols) < smallest:
            raise ValueError(
                f"{self.name} takes images of at least {smallest} x {smallest} pixels; got {rows} x {cols}."
            )


@register("gspn_tiny", dims=(96, 192, 384, 768), depths=(2, 2, 7, 2), d_state=8, global_stages=(2, 3))
@register("gspn_small", dims=(108, 216, 432, 864), depths=(5, 5, 10, 2), d_state=16, global_stages=(3,))
@register("gspn_base", dims=(120, 240, 480, 960), depths=(4, 4, 15, 4), d_state=8, global_stages=(2, 3))
@register(
    "gspn_nano",
    dims=(40, 80),
    depths=(2, 2),
    d_state=8,
    global_stages=(0, 1),
    stem_strides=(2, 1),
    num_classes=10,
    input_size=64,
)
class Gspn(ScanHierarchy):
    """A GSPN classifier: a convolution stem, stages of blocks with a strided convolution between them, a linear head.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        d_state: r, the channels from which gates, lambda, u and D are predicted.
        global_stages: the stages, counted from 0, that scan the whole map; the others scan chunks of 2 lines.
        num_classes: outputs of the head.
        merge: "aligned", every map in image coordinates (the paper's method), or "released", the merge that upstream
            files were made with, where only the input is carried into a direction's frame and nothing is carried back.
        chunk: lines per chunk in every block, None for the rule of `global_stages`.
        ratio: channels of the scan over channels of the stage.
        stem_strides: strides of the stem's two convolutions.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: GSPN (arXiv 2501.12381), section 4, and the released configurations.
    """

    family = "gspn"
    name = "gspn"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        d_state: int,
        global_stages: Sequence[int],
        num_classes: int = 1000,
        merge: str = "aligned",
        chunk: int | None = None,
        ratio: float = 1.5,
        stem_strides: Sequence[int] = (2, 2),
        input_size: int = 224,
    ) -> None:
        check_choice("merge", merge, MERGES)
        check_whole(d_state=d_state)
        if not isinstance(global_stages, list | tuple) or not isinstance(ratio, int | float) or ratio <= 0:
            raise ValueError(
                f"global_stages must be a list and ratio a positive number; got {global_stages!r} and {ratio!r}."
            )

        def block(channels: int, lines: int | None) -> Block:
            # A ratio that was read off a file is a quotient of two widths and may come out a hair too small.
            return Block(channels, int(ratio * channels + 1e-6), d_state, merge, lines)

        super().__init__(
            block,
            dims=dims,
            depths=depths,
            global_stages=global_stages,
            num_classes=num_classes,
            chunk=chunk,
            stem_strides=stem_strides,
            input_size=input_size,
        )
        self.merge = merge

    def check_size(self, rows: int, cols: int) -> None:
        """Raise ValueError unless the last grid has a position, and every grid is square if the merge needs that."""
        super().check_size(rows, cols)
        if self.merge == "released" and len(set(self.stage_grid(0, rows, cols))) > 1:
            raise ValueError(
                f"merge='released' transposes maps without carrying them back and needs square images; {self.name} got "
                f"{rows} x {cols}: use a square image or merge='aligned'."
            )
