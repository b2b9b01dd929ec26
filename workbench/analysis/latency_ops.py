"""What a latency sweep times at each size: an operator between positions on random maps, or a whole model.

An operator's inputs are given (queries, keys and values; or v, the gates' logits, lambda, u and D): the layer that
makes them is not timed. Attention has heads of 32 channels and no bias.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from kernels.attention import Pattern, attend, axial, neighborhood, swin
from kernels.propagation import DIRECTIONS, mix
from workbench.models import load_model
from workbench.models.base import VisionModel
from workbench.models.gspn import LOCAL_CHUNK

from .latency import model_cost

Run = Callable[..., torch.Tensor]

#: Channels of an attention head.
HEAD = 32

#: Side of the windows and neighbourhoods.
WINDOW = 7

#: Operations that turn three logits into gates: three sigmoids, two additions, three divisions.
NORMALISING = 8

#: Bytes held at the peak over the bytes of inputs and output: what is in between is about as large again, and a
#: gradient for each.
HELD_FORWARD, HELD_BACKWARD = 2, 4


class Shape(NamedTuple):
    """A map: images, channels, and the rows and columns of a square."""

    batch: int
    channels: int
    side: int

    @property
    def positions(self) -> int:
        return self.side * self.side

    @property
    def values(self) -> int:
        return self.batch * self.channels * self.positions


@dataclass(frozen=True)
class Operator:
    """An operator between positions.

    about: one sentence; inputs: the shapes of its tensors; run: from those tensors to the output, which has a number
    for each of the map's; flops: the operations of a forward run.
    """

    about: str
    inputs: Callable[[Shape], list[tuple[int, ...]]]
    run: Run
    flops: Callable[[Shape], float]


class Cost(NamedTuple):
    """Least bytes moved and operations of a run, and an estimate of the bytes that it holds at its peak."""

    bytes: float
    flops: float
    held: float


def _propagation_inputs(shape: Shape) -> list[tuple[int, ...]]:
    b, c, side = shape
    each = (len(DIRECTIONS), b, c, side, side)
    return [(b, c, side, side), (len(DIRECTIONS), 3, b, c, side, side), each, each, each, (len(DIRECTIONS),)]


def _propagation(chunk: int | None, about: str) -> Operator:
    def run(v: torch.Tensor, logits: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        return mix(v, logits, *maps, chunk=chunk)

    return Operator(about, _propagation_inputs, run, lambda s: (12.0 + NORMALISING) * len(DIRECTIONS) * s.values)


def _heads(shape: Shape) -> tuple[int, int]:
    """(heads, channels of each)."""
    return max(1, shape.channels // HEAD), min(HEAD, shape.channels)


def _tokens(shape: Shape) -> list[tuple[int, ...]]:
    return [(shape.batch, shape.side, shape.side, *_heads(shape))] * 3


def _flat(shape: Shape) -> list[tuple[int, ...]]:
    heads, width = _heads(shape)
    return [(shape.batch, heads, shape.positions, width)] * 3


def _attention(about: str, *patterns: Pattern) -> Operator:
    """Attention over patterns, one after the other, each mixing what the last one left."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        for pattern in patterns:
            v = attend(q, k, v, pattern)
        return v

    def flops(shape: Shape) -> float:
        pairs = sum(int(pattern.count((shape.side, shape.side)).sum()) for pattern in patterns)
        return 4.0 * shape.batch * shape.channels * pairs

    return Operator(about, _tokens, run, flops)


def _linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) . sum of phi(k)), phi = elu + 1; source: arXiv 2006.16236, equations 5 to 7."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    total = k.sum(-2, keepdim=True).transpose(-1, -2)
    return q @ (k.transpose(-1, -2) @ v) / (q @ total)


def _depthwise(kernel: int) -> Operator:
    def run(v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(v, weight, padding=kernel // 2, groups=v.shape[1])

    return Operator(
        f"A convolution of each channel with its own {kernel} x {kernel} kernel, by PyTorch.",
        lambda s: [(s.batch, s.channels, s.side, s.side), (s.channels, 1, kernel, kernel)],
        run,
        lambda s: 2.0 * kernel * kernel * s.values,
    )


#: The operators by name, in the order in which they are listed.
OPERATORS = {
    "gspn global": _propagation(
        None, "Line propagation over the whole map in four directions, from the gates' logits to the merged output."
    ),
    "gspn local": _propagation(LOCAL_CHUNK, "Line propagation in chunks of 2 lines, otherwise as gspn global."),
    "full attention": Operator(
        "Softmax attention of every position to every other: PyTorch's scaled_dot_product_attention.",
        _flat,
        F.scaled_dot_product_attention,
        lambda s: 4.0 * s.values * s.positions,
    ),
    "window attention": _attention("Softmax attention within windows of 7 x 7, Swin's.", swin(WINDOW)),
    "neighborhood attention": _attention("Softmax attention to the nearest 7 x 7, NAT's.", neighborhood(WINDOW)),
    "axial attention": _attention("Softmax attention along columns, then along rows.", axial(0), axial(1)),
    "linear attention": Operator(
        "Attention without softmax, phi(q) (phi(k)^T v) with phi = elu + 1, by PyTorch.",
        _flat,
        _linear,
        # two products with d x d matrices, the normaliser and its division, two additions
        lambda s: s.values * (4.0 * _heads(s)[1] + 6.0),
    ),
    "depthwise 7x7": _depthwise(7),
    "depthwise 31x31": _depthwise(31),
}


@dataclass(frozen=True)
class OnMaps:
    """An operator on random maps of `channels`; the size is the side of the map."""

    operator: Operator
    batch: int
    channels: int
    dtype: torch.dtype
    backward: bool
    device: torch.device

    def guess(self, side: int, smaller: tuple[int, Cost] | None) -> Cost | None:
        """The cost, which needs no tensors."""
        return self._cost(Shape(self.batch, self.channels, side))

    def prepare(self, side: int) -> tuple[Callable[[], Any], Cost]:
        """What to time at a size, on inputs that are drawn anew from one seed, and its cost.

        Raises:
            ValueError: the operator is not defined on a map of this size.
        """
        shape = Shape(self.batch, self.channels, side)
        generator = torch.Generator(self.device).manual_seed(0)
        inputs = [
            torch.randn(size, generator=generator, device=self.device).to(self.dtype)
            for size in self.operator.inputs(shape)
        ]
        run = self.operator.run
        return timed(lambda: run(*inputs), inputs, self.backward), self._cost(shape)

    def _cost(self, shape: Shape) -> Cost:
        item = self.dtype.itemsize
        read = sum(torch.Size(size).numel() for size in self.operator.inputs(shape))
        moved = float(read + shape.values) * item
        flops = self.operator.flops(shape)
        if not self.backward:
            return Cost(moved, flops, HELD_FORWARD * moved)
        return Cost(moved + (2.0 * read + shape.values) * item, 3 * flops, HELD_BACKWARD * moved)


@dataclass(frozen=True)
class WholeModel:
    """A registered model's whole forward pass, with random weights; the size is the side of the image in pixels."""

    name: str
    batch: int
    dtype: torch.dtype
    backward: bool
    device: torch.device

    def guess(self, side: int, smaller: tuple[int, Cost] | None) -> Cost | None:
        """The cost if it grew with the pixels from that of a smaller size, which it does at least; or None."""
        if smaller is None:
            return None
        ratio = (side / smaller[0]) ** 2
        return Cost(*(ratio * part for part in smaller[1]))

    def prepare(self, side: int) -> tuple[Callable[[], Any], Cost]:
        """What to time at a size, and its cost; the operations are counted in a run.

        Raises:
            ValueError: the model takes no images of this size.
        """
        model = self.model
        model.check_size(side, side)
        generator = torch.Generator(self.device).manual_seed(0)
        x = torch.randn((self.batch, 3, side, side), generator=generator, device=self.device).to(self.dtype)
        with torch.no_grad():
            inputs = model.mixer_inputs(x)
            moved, flops = model_cost(model, x, inputs)
            layers = [x.element_size() * _held(model, layer, tokens) for layer, tokens in inputs.items()]
        parameters = list(model.parameters())
        run = timed(lambda: model(x), parameters, self.backward)
        if not self.backward:
            return run, Cost(moved, flops, moved + HELD_FORWARD * max(layers))
        # Once more the weights, the image and the logits' gradient are read, and the weights' gradients are written;
        # every layer keeps what it made until its gradients are taken.
        weights = float(sum(p.numel() for p in parameters)) * x.element_size()
        return run, Cost(2 * moved + weights, 3 * flops, 2 * moved + HELD_BACKWARD * sum(layers))

    @cached_property
    def model(self) -> VisionModel:
        return load_model(self.name, device=self.device).to(self.dtype)


def _held(model: VisionModel, layer: str, x: torch.Tensor) -> float:
    """The least values of a layer's mixing step."""
    return model.block(layer)[1].freeze(x).least_values


def timed(forward: Callable[[], torch.Tensor], inputs: Sequence[torch.Tensor], backward: bool) -> Callable[[], Any]:
    """A forward run without gradients; or one with the gradients of all inputs for a fixed gradient of the output."""
    if not backward:

        def run() -> torch.Tensor:
            with torch.no_grad():
                return forward()

        return run
    for tensor in inputs:
        tensor.requires_grad_(True)
    ones: dict[str, torch.Tensor] = {}

    def both() -> Any:
        output = forward()
        if "grad" not in ones:
            ones["grad"] = torch.ones_like(output)
        return torch.autograd.grad(output, inputs, ones["grad"], allow_unused=True)

    return both
