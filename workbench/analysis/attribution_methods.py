"""The methods of attribution as Captum computes them, one function each, on a Subject.

Importing this file imports Captum and with it pyplot: `attribution.py` does so only once something is attributed.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch
from captum.attr import (
    DeepLift,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NeuronGradient,
    NoiseTunnel,
    Occlusion,
    Saliency,
)

from .attribution_model import Subject
from .attribution_result import ROUNDING
from .attribution_spec import NODES, pieces_of, windows

# It tells whoever hands Captum a shared model; the hooks are on a stand-in here.
warnings.filterwarnings("ignore", "Setting forward, backward hooks and attributes", UserWarning)

T = TypeVar("T")


@dataclass
class Explained:
    """What a method found: attribution (3, H, W), or (1, h, w) for a layer's map, float64; and what it took."""

    attribution: torch.Tensor
    baseline_score: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def run(subject: Subject, x: torch.Tensor, start: torch.Tensor | None, spec: Any) -> Explained:
    """Compute the attribution of `spec.method`.

    Args:
        subject: whose score is explained.
        x: the picture, (1, 3, H, W).
        start: the baseline of methods that have one, like x.
        spec: a complete AttributionSpec.

    Raises:
        Cancelled: the caller wants no more.
        ValueError: the method cannot run on this model after all.
    """
    return RUNS[spec.method](subject, x, start, spec)


def _once(attribution: torch.Tensor, **found: Any) -> Explained:
    return Explained(attribution.detach()[0].double(), **found)


def _asking(x: torch.Tensor) -> torch.Tensor:
    """The picture as an input of its own that asks for gradients."""
    return x.clone().requires_grad_()


def saliency(subject: Subject, x: torch.Tensor, start: Any, spec: Any) -> Explained:
    return _once(Saliency(subject).attribute(_asking(x), abs=spec.absolute))


def input_x_gradient(subject: Subject, x: torch.Tensor, start: Any, spec: Any) -> Explained:
    return _once(InputXGradient(subject).attribute(_asking(x)))


def deep_lift(subject: Subject, x: torch.Tensor, start: torch.Tensor, spec: Any) -> Explained:
    (before,) = _scores(subject, start)
    try:
        return _once(DeepLift(subject).attribute(_asking(x), start.clone()), baseline_score=before)
    except RuntimeError as error:
        if "used more than once" not in str(error):
            raise
        raise ValueError(
            "DeepLift needs a model that uses each activation module once in a pass; this one uses one again."
        ) from error


def occlusion(subject: Subject, x: torch.Tensor, start: torch.Tensor, spec: Any) -> Explained:
    (before,) = _scores(subject, start)
    shapes = {"sliding_window_shapes": (3, *spec.window), "strides": (3, *spec.stride)}
    drops = Occlusion(subject).attribute(x, baselines=start, perturbations_per_eval=spec.batch, **shapes)
    return _once(drops, baseline_score=before, numbers={"windows": windows(spec.size, spec.window, spec.stride)})


class SeededNoise(NoiseTunnel):
    """Captum's NoiseTunnel with noise of its own generator, so that the global random state stays as it was."""

    def __init__(self, method: Saliency, seed: int) -> None:
        super().__init__(method)
        # On the CPU whatever the device, and sample by sample whatever the batch: the same noise everywhere.
        self.generator = torch.Generator().manual_seed(seed)

    def _add_noise_to_input(self, input: torch.Tensor, stdev: float, nt_samples_partition: int) -> torch.Tensor:
        drawn = [torch.randn(input.shape, generator=self.generator) for _ in range(nt_samples_partition)]
        return input + stdev * torch.cat(drawn).to(input)


def noise_tunnel(subject: Subject, x: torch.Tensor, start: Any, spec: Any) -> Explained:
    deviation = spec.sigma * float(x.max() - x.min())
    found = SeededNoise(Saliency(subject), spec.seed).attribute(
        x, spec.noise, spec.samples, spec.batch, stdevs=deviation, abs=spec.absolute
    )
    return _once(found, numbers={"noise_deviation": deviation})


def layer_grad_cam(subject: Subject, x: torch.Tensor, start: Any, spec: Any) -> Explained:
    return _once(LayerGradCam(subject, subject.tap).attribute(x))


def neuron_gradient(subject: Subject, x: torch.Tensor, start: Any, spec: Any) -> Explained:
    return _once(NeuronGradient(subject, subject.tap).attribute(_asking(x), subject.pick))


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of the path from the baseline to the picture: where it lies, and what it adds to the attribution.

    low, high: in 0..1; part (1, 3, H, W); miss: what the part's sum lacks of the change of the score.
    """

    low: float
    high: float
    part: torch.Tensor
    miss: float


def integrated_gradients(subject: Subject, x: torch.Tensor, start: torch.Tensor, spec: Any) -> Explained:
    """Integrated gradients whose path is cut finer where the score changes abruptly.

    The path is cut into pieces, and each is integrated with 8 Gauss-Legendre nodes. The gradients of a piece must sum
    to the change of the score along it, which two passes tell: the pieces that miss most are halved, until all misses
    together are within `tolerance` of the change along the whole path, or `limit` gradients have been taken.
    """
    count = pieces_of(spec.steps)
    edges = [i / count for i in range(count + 1)]
    path = _Path(subject, x, start, spec.batch)
    pieces = path.pieces(list(pairwise(edges)))
    change = path.scores[1.0] - path.scores[0.0]
    allowed = max(spec.tolerance * abs(change), ROUNDING * max(map(abs, path.scores.values())))
    while True:
        room = (spec.limit - path.steps) // (2 * NODES)
        coarse = _coarse(pieces, allowed)[: max(room, 0)]
        if not coarse:
            break
        halves = [half for p in coarse for half in ((p.low, (p.low + p.high) / 2), ((p.low + p.high) / 2, p.high))]
        subject.watch.plan(len(coarse) + len(halves) * NODES)
        pieces = [p for p in pieces if p not in coarse] + path.pieces(halves)
    attribution = torch.stack([piece.part for piece in pieces]).sum(0)
    return _once(attribution, baseline_score=path.scores[0.0], numbers={"steps": path.steps, "pieces": len(pieces)})


def _coarse(pieces: list[Piece], allowed: float) -> list[Piece]:
    """The pieces to halve, the worst first: those without which at most half of what is allowed is missed."""
    missed = sum(abs(piece.miss) for piece in pieces)
    if not missed > allowed:  # also where a score is not a number
        return []
    worst = []
    for piece in sorted(pieces, key=lambda piece: -abs(piece.miss)):
        if missed <= allowed / 2:
            break
        worst.append(piece)
        missed -= abs(piece.miss)
    return worst


class _Path:
    """The straight path x0 + a (x - x0), its scores by a, and how many gradients were taken on it."""

    def __init__(self, subject: Subject, x: torch.Tensor, start: torch.Tensor, batch: int) -> None:
        self.subject, self.x, self.start, self.batch = subject, x, start, batch
        self.scores: dict[float, float] = {}
        self.steps = 0
        # Times x - x0 afterwards, in float64: the ends of a short piece differ by little more than rounding.
        self.method = IntegratedGradients(subject, multiply_by_inputs=False)

    def at(self, places: list[float]) -> torch.Tensor:
        """The pictures at these places, stacked; exactly x0 at 0 and x at 1."""
        return torch.cat([torch.lerp(self.start, self.x, place) for place in places])

    def pieces(self, spans: list[tuple[float, float]]) -> list[Piece]:
        missing = sorted({end for span in spans for end in span} - set(self.scores))
        for places in _chunks(missing, self.batch):
            self.scores |= dict(zip(places, _scores(self.subject, self.at(places)), strict=True))
        found = []
        for chunk in _chunks(spans, self.batch):
            lows, highs = (list(ends) for ends in zip(*chunk, strict=True))
            means = self.method.attribute(
                self.at(highs), self.at(lows), n_steps=NODES, method="gausslegendre", internal_batch_size=self.batch
            )
            self.steps += NODES * len(chunk)
            found += [self._piece(low, high, mean) for low, high, mean in zip(lows, highs, means, strict=True)]
        return found

    def _piece(self, low: float, high: float, mean: torch.Tensor) -> Piece:
        part = (high - low) * mean.detach().double().unsqueeze(0) * (self.x.double() - self.start.double())
        return Piece(low, high, part, self.scores[high] - self.scores[low] - float(part.sum()))


def _scores(subject: Subject, x: torch.Tensor) -> list[float]:
    with torch.no_grad():
        return [float(score) for score in subject(x)]


def _chunks(values: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


RUNS: dict[str, Callable[..., Explained]] = {
    "saliency": saliency,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "deep_lift": deep_lift,
    "occlusion": occlusion,
    "noise_tunnel": noise_tunnel,
    "layer_grad_cam": layer_grad_cam,
    "neuron_gradient": neuron_gradient,
}
