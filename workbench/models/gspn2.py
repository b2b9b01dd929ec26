"""GSPN-2: GSPN with scans in a proxy of few channels that share their gates, and with local perception units.

Paper: GSPN-2: Efficient Parallel Sequence Modeling, arXiv 2512.07884 (NeurIPS 2025).
Source: written from the paper's text; at the time of writing neither code nor weights have been released.
Licence of this file: Apache-2.0.

The paper gives: the recurrence of GSPN; a 1 x 1 projection from C channels to C_proxy = 2, a scan whose gates all
channels share while lambda stays per channel, and a 1 x 1 projection back; a local perception unit (CMT, arXiv
2107.06263) at the start of each block and of its feed-forward part; for the tiny model 24 M parameters and 4.2 G
multiply-adds, in the appendix 3.6 G.

It leaves open, and this file chooses:
- u and D act on the proxy, with one value per direction, channel of the proxy and pixel, so that what lies between the
  two projections is GSPN's layer; each direction has one learned weight.
- Gates, lambda, u and D are predicted by way of 8 channels, as in GSPN-T, from the normalised map of all C channels:
  the two of the proxy would tell them little.
- GSPN's inner width of 1.5 C and its 7 x 7 convolution are gone; the proxy and the perception unit take their place.
- GSPN's layer norm and global response norm follow the projection back. They keep what the scan sums over many lines
  from growing with the map. Over the two channels of the proxy a layer norm would leave no more than a sign, and what
  is projected back spans two dimensions only; so the layer's input, of all C channels, is added before them.
- Stem, downsampling, widths, head and the chunks of the blocks are those of GSPN-T. Its depths, (2, 2, 7, 2), would
  come to 22,953,212 parameters and 3.59 G multiply-adds, the appendix's figure; one more block in each of the first
  three stages makes gspn2_tiny's 24,532,616 parameters and 4.30 G.

These are counted, at 224 x 224: 4,302,208,304 multiply-adds of convolutions and linear layers, and 7 of a scan for
each channel, direction and position; by the same count GSPN-T has 5.30 G, as published. The paper trains with MESA,
which is no part of a model.

gspn2_nano is our own small variant for 64 x 64 images, with the blocks and grids and about the parameters
of gspn_nano.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .checks import check_stages, check_whole
from .gspn import ScanHierarchy, Scanning
from .parts import GlobalResponseNorm, LayerNorm2d, Linear2d, Mlp
from .registry import register
from .states import PropagationState


class LocalPerception(nn.Module):
    """The local perception unit: x + a depthwise 3 x 3 convolution of x, on (B, C, H, W).

    Source: CMT (arXiv 2107.06263), section 3.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class ProxyPropagation(Scanning):
    """Line propagation in four directions of a proxy map of few channels.

    What is mixed is v = proxy_down(x). From p = state_down(x), of r channels, 1 x 1 maps predict three gate logits for
    every direction and pixel, and lambda, u and D for every direction, channel of v and pixel; then

        y = sum over k of m_k (u_k h_k + D_k v),    h_k = the scan of lambda_k v with the normalised gates of k

    and the layer returns grn(out_norm(x + proxy_up(y))). Every map is in image coordinates.

    Args:
        channels: channels of x, (B, channels, H, W).
        c_proxy: channels of v, (B, c_proxy, H, W).
        d_state: r.
        chunk: lines per chunk, None for one chunk over the whole map.
        shared_gates: False gives every channel of v gates of its own.

    Source: GSPN-2 (arXiv 2512.07884), compact channel propagation; the module's docstring says what it leaves open.
    """

    def __init__(self, channels: int, c_proxy: int, d_state: int, chunk: int | None, shared_gates: bool) -> None:
        super().__init__("aligned", chunk)
        self.proxy_down = Linear2d(channels, c_proxy, bias=False)
        self.state_down = Linear2d(channels, d_state, bias=False)
        self.hold_maps(d_state, c_proxy, 1 if shared_gates else c_proxy)
        self.proxy_up = Linear2d(c_proxy, channels, bias=False)
        self.grn = GlobalResponseNorm(channels)
        self.out_norm = LayerNorm2d(channels)

    def freeze(self, x: torch.Tensor) -> PropagationState:
        """Everything that the image decides, for x (B, channels, H, W)."""
        return self.frozen(*self.mixing_inputs(x))

    def mixing_inputs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is mixed, v, and p, from which the maps of the scan are predicted."""
        return self.proxy_down(x).contiguous(), self.state_down(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grn(self.out_norm(x + self.proxy_up(self.mixed(*self.mixing_inputs(x)))))


class Block(nn.Module):
    """x = lpu(x); x + op(norm(x)); then x = lpu2(x); x + mlp(norm2(x)), on (B, C, H, W)."""

    def __init__(self, channels: int, c_proxy: int, d_state: int, chunk: int | None, shared_gates: bool) -> None:
        super().__init__()
        self.lpu = LocalPerception(channels)
        self.norm = LayerNorm2d(channels)
        self.op = ProxyPropagation(channels, c_proxy, d_state, chunk, shared_gates)
        self.lpu2 = LocalPerception(channels)
        self.norm2 = LayerNorm2d(channels)
        self.mlp = Mlp(channels, Linear2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lpu(x)
        x = self.lpu2(x + self.op(self.norm(x)))
        return x + self.mlp(self.norm2(x))


@register("gspn2_tiny", dims=(96, 192, 384, 768), depths=(3, 3, 8, 2), global_stages=(2, 3))
@register(
    "gspn2_nano",
    dims=(54, 108),
    depths=(2, 2),
    global_stages=(0, 1),
    stem_strides=(2, 1),
    num_classes=10,
    input_size=64,
)
class Gspn2(ScanHierarchy):
    """A GSPN-2 classifier: a convolution stem, stages of blocks with a strided convolution between them, a linear head.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        global_stages: the stages, counted from 0, that scan the whole map; the others scan chunks of 2 lines.
        c_proxy: channels of the scan in every stage, no more than the stage has.
        shared_gates: whether the channels of a scan share their gates.
        d_state: the channels from which gates, lambda, u and D are predicted.
        num_classes: outputs of the head.
        chunk: lines per chunk in every block, None for the rule of `global_stages`.
        stem_strides: strides of the stem's two convolutions.
        input_size: side in pixels of the images that it was designed for.

    Raises:
        ValueError: a setting is out of range.

    Source: GSPN-2 (arXiv 2512.07884); the module's docstring says what it leaves open and what was chosen.
    """

    family = "gspn2"
    name = "gspn2"

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        global_stages: Sequence[int],
        c_proxy: int = 2,
        shared_gates: bool = True,
        d_state: int = 8,
        num_classes: int = 1000,
        chunk: int | None = None,
        stem_strides: Sequence[int] = (2, 2),
        input_size: int = 224,
    ) -> None:
        check_whole(c_proxy=c_proxy, d_state=d_state)
        if not isinstance(global_stages, list | tuple):
            raise ValueError(f"global_stages must be a list of stages, counted from 0; got {global_stages!r}.")
        if not isinstance(shared_gates, bool):
            raise ValueError(f"shared_gates must be True or False; got {shared_gates!r}.")
        check_stages(dims=dims)
        if c_proxy > min(dims):
            raise ValueError(
                f"c_proxy must be at most the channels of each stage; got {c_proxy} and dims {tuple(dims)}."
            )

        def block(channels: int, lines: int | None) -> Block:
            return Block(channels, c_proxy, d_state, lines, shared_gates)

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
