"""What `latency_baselines` times against what: operators at the shapes of gspn_tiny and swin_tiny, and whole models.

Contestants of one contest do the same on the same inputs, except for "copy", which copies as many bytes as the operator
has to move at least.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from kernels.attention import Pattern, attend, neighborhood, swin
from kernels.propagation import DIRECTIONS, mix, normalise_gates, propagate
from workbench.models import list_models, load_model
from workbench.models.gspn import LOCAL_CHUNK, Gspn
from workbench.models.registry import variant
from workbench.models.swin import Swin

from .latency_eager import eager_gates, eager_gspn, eager_mix, eager_propagate, eager_windows
from .latency_ops import HEAD, WINDOW, timed

#: Who runs against our kernels, in words.
AGAINST = {
    "eager": "plain PyTorch, written to be fast",
    "reference": "our reference backend, plain PyTorch, written to be read",
    "unfused": "our kernels one after the other: normalise_gates, propagate, and the merge in PyTorch",
    "copy": "a copy that reads and writes the least bytes of the operator",
    "transformers": "the same configuration in transformers, random weights",
}

#: Channels, side and lines per chunk of gspn_tiny's mixing steps; channels and side of swin_tiny's.
GSPN_SHAPES = ((144, 56, LOCAL_CHUNK), (288, 28, LOCAL_CHUNK), (576, 14, None), (1152, 7, None))
SWIN_SHAPES = ((96, 56), (192, 28), (384, 14), (768, 7))

OPERATORS = ("normalise_gates", "propagate", "mix", "attend")
MODELS = ("gspn_tiny", "swin_tiny")

#: How far outputs may differ, as a share of the largest number of ours.
TOLERANCE = 1e-3

Forward = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Contest:
    """Ours against others, on one shape.

    what: the operator or model; shape: in words; backward: forward and backward in one time; against: names out of
    `AGAINST`; prepare: makes the inputs and the forward run of every contestant, "ours" first.
    """

    what: str
    shape: str
    backward: bool
    against: tuple[str, ...]
    prepare: Callable[[], "Contestants"]


class Contestants(NamedTuple):
    """The forward runs by name, "ours" first, and the inputs whose gradients are taken; `same`: who gives ours."""

    runs: dict[str, Forward]
    inputs: Sequence[torch.Tensor]
    same: tuple[str, ...]

    def check(self) -> dict[str, str]:
        """What is wrong with those who should give our output and do not: name -> a reason.

        Every contestant has run once after it, and what is compiled at the first run is compiled.
        """
        with torch.no_grad():
            ours, found = self.runs["ours"](), {}
            for name in self.same:
                off = float((self.runs[name]() - ours).abs().max() / ours.abs().max())
                if not off <= TOLERANCE:
                    found[name] = f"its output is not ours: it differs by {off:.2g} of the largest number"
        return found

    def timed(self, name: str, backward: bool) -> Callable[[], object]:
        """What to time: forward without gradients, or forward and the gradients of all inputs; a copy is a copy."""
        if name == "copy":
            with torch.no_grad():
                return _copy(self.inputs, self.runs["ours"](), backward)
        return timed(self.runs[name], self.inputs, backward)


def _copy(inputs: Sequence[torch.Tensor], output: torch.Tensor, backward: bool) -> Callable[[], object]:
    """A copy of the least bytes, with the formula of latency sweeps.

    Inputs are read and the output is written; then inputs and the output's gradient are read, the others written.
    """
    read = sum(tensor.numel() for tensor in inputs)
    moved = read + output.numel() + (2 * read + output.numel() if backward else 0)
    # Half of them are read and half written.
    source = torch.ones(-(-moved // 2), dtype=output.dtype, device=output.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that has no contest."""
    models = [name for name in list_models() if _family(name) is not None]
    for name in names:
        if name not in OPERATORS and name not in models:
            known = ", ".join([*OPERATORS, *models])
            raise ValueError(f"There is nothing to measure {name!r} against; names are {known}.")


def _family(name: str) -> str | None:
    """The family of a model that there is another implementation of, else None."""
    model = variant(name).model
    return model.family if model in (Gspn, Swin) else None


def contests(names: Sequence[str], batch: int, device: torch.device) -> Iterator[Contest]:
    """The contests of operators and models by name, in this order.

    Raises:
        ValueError: a name has no contest.
    """
    check_names(names)
    for name in names:
        if name not in OPERATORS:
            yield _model(name, batch, device)
            continue
        for backward in (False, True):
            yield from _attention(batch, backward, device) if name == "attend" else _scan(name, batch, backward, device)


def _random(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(sum(shape)), device=device)


def _scan(what: str, batch: int, backward: bool, device: torch.device) -> Iterator[Contest]:
    """An operator of GSPN's mixing step at all shapes of gspn_tiny."""
    against = {"mix": ("eager", "reference", "unfused", "copy")}.get(what, ("eager", "reference", "copy"))
    prepare = {"normalise_gates": _normalise_gates, "propagate": _propagate, "mix": _mix}[what]
    for channels, side, chunk in GSPN_SHAPES:
        shape = f"{channels} x {side} x {side}"
        if what != "normalise_gates":
            shape += ", global" if chunk is None else f", chunk {chunk}"
        yield Contest(what, shape, backward, against, partial(prepare, batch, channels, side, chunk, device))


def _normalise_gates(batch: int, channels: int, side: int, chunk: int | None, device: torch.device) -> Contestants:
    logits = _random(4, 3, batch, channels, side, side, device=device)
    runs: dict[str, Forward] = {
        "ours": lambda: normalise_gates(logits),
        "eager": lambda: eager_gates(logits),
        "reference": lambda: normalise_gates(logits, backend="reference"),
    }
    return Contestants(runs, [logits], ("eager", "reference"))


def _propagate(batch: int, channels: int, side: int, chunk: int | None, device: torch.device) -> Contestants:
    x = _random(batch, channels, side, side, device=device)
    gates = normalise_gates(_random(4, 3, batch, channels, side, side, device=device))
    lam = _random(4, batch, channels, side, side, device=device)
    runs: dict[str, Forward] = {
        "ours": lambda: propagate(x, gates, lam, chunk=chunk),
        "eager": lambda: eager_propagate(x, gates, lam, chunk),
        "reference": lambda: propagate(x, gates, lam, chunk=chunk, backend="reference"),
    }
    return Contestants(runs, [x, gates, lam], ("eager", "reference"))


def _mix(batch: int, channels: int, side: int, chunk: int | None, device: torch.device) -> Contestants:
    v = _random(batch, channels, side, side, device=device)
    logits = _random(4, 3, batch, channels, side, side, device=device)
    lam, u, skip = _random(3, 4, batch, channels, side, side, device=device).unbind()
    weight = _random(len(DIRECTIONS), device=device)
    maps = (lam, u, skip, weight)

    def unfused() -> torch.Tensor:
        h = propagate(v, normalise_gates(logits), lam, chunk=chunk)
        return torch.tensordot(weight, torch.addcmul(skip * v, u, h), dims=1)

    runs: dict[str, Forward] = {
        "ours": lambda: mix(v, logits, *maps, chunk=chunk),
        "eager": lambda: eager_mix(v, logits, *maps, chunk),
        "reference": lambda: mix(v, logits, *maps, chunk=chunk, backend="reference"),
        "unfused": unfused,
    }
    return Contestants(runs, [v, logits, *maps], ("eager", "reference", "unfused"))


def _attention(batch: int, backward: bool, device: torch.device) -> Iterator[Contest]:
    """Windows, shifted windows and neighbourhoods at all shapes of swin_tiny; a map of one window is not shifted."""
    for channels, side in SWIN_SHAPES:
        shifts = (0, WINDOW // 2) if side > WINDOW else (0,)
        for pattern, shift in [*((swin(WINDOW, shift), shift) for shift in shifts), (neighborhood(WINDOW), None)]:
            against = ("reference", "copy") if shift is None else ("eager", "reference", "copy")
            kind = "neighborhood" if shift is None else "shifted windows" if shift else "windows"
            shape = f"{kind} {WINDOW}, {channels} x {side} x {side}"
            prepare = partial(_attend, pattern, shift, batch, channels, side, device)
            yield Contest("attend", shape, backward, against, prepare)


def _attend(
    pattern: Pattern, shift: int | None, batch: int, channels: int, side: int, device: torch.device
) -> Contestants:
    heads = max(1, channels // HEAD)
    q, k, v = _random(3, batch, side, side, heads, channels // heads, device=device).unbind()
    bias = _random(*pattern.bias_shape(heads), device=device)
    runs: dict[str, Forward] = {
        "ours": lambda: attend(q, k, v, pattern, bias),
        "reference": lambda: attend(q, k, v, pattern, bias, backend="reference"),
    }
    if shift is None:
        return Contestants(runs, [q, k, v, bias], ("reference",))
    runs["eager"] = lambda: eager_windows(q, k, v, bias, WINDOW, shift)
    return Contestants(runs, [q, k, v, bias], ("reference", "eager"))


def _model(name: str, batch: int, device: torch.device) -> Contest:
    """A whole model's forward pass at the size that it was designed for."""
    side = int(variant(name).defaults()["input_size"])
    against = "eager" if _family(name) == "gspn" else "transformers"
    return Contest(name, f"3 x {side} x {side}", False, (against,), partial(_whole, name, batch, side, device))


def _whole(name: str, batch: int, side: int, device: torch.device) -> Contestants:
    ours, x = load_model(name, device=device), _random(batch, 3, side, side, device=device)
    if isinstance(ours, Gspn):
        eager = eager_gspn(ours)
        return Contestants({"ours": lambda: ours(x), "eager": lambda: eager(x)}, [], ("eager",))
    assert isinstance(ours, Swin)
    theirs = swin_of_transformers(ours)
    return Contestants({"ours": lambda: ours(x), "transformers": lambda: theirs(x).logits}, [], ())


def swin_of_transformers(ours: Swin) -> torch.nn.Module:
    """transformers' Swin of the same configuration, with random weights.

    Raises:
        ModuleNotFoundError: transformers is not installed; one sentence with the remedy.
    """
    try:
        from transformers import SwinConfig, SwinForImageClassification
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "transformers is not installed, so its Swin is not measured: pip install transformers."
        ) from error
    config = ours.config
    settings: dict[str, Any] = {
        "image_size": config["input_size"],
        "patch_size": config["patch"],
        "embed_dim": config["dims"][0],
        "depths": list(config["depths"]),
        "num_heads": list(config["heads"]),
        "window_size": config["window"],
        "num_labels": config["num_classes"],
    }
    theirs: torch.nn.Module = SwinForImageClassification(SwinConfig(**settings))
    return theirs.to(ours.device).eval()
