"""What the stability laboratory computes: the conditions of a propagation with synthetic gates, and well-known ones."""

import math
from dataclasses import dataclass

import torch

from kernels.propagation import DIRECTIONS, NORMALISATIONS
from workbench.images import list_images
from workbench.names import unknown

#: The number formats in which gates and recurrence may run, by the names the page shows.
DTYPES = {"float64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: `lam` of SPN: every pixel's input weight is 1 minus the sum of the gates that it reads with.
COMPLEMENT = "complement"

#: The longest propagation and the widest line.
LONGEST, WIDEST = 2048, 512

#: Where the rule keeps the sum of three equal gates: at 1, or for the signed rules at 0.9, so that some input is left.
_SUMS = {"absolute": 0.9, "tanh": 0.9, "none": 1.0}


@dataclass(frozen=True)
class StabilitySpec:
    """Gates that are made up, and a picture that is propagated under them; plain data, everything that decides it.

    A logit is mean + noise z, z from a normal distribution; a gate is gain times what `normalisation` makes of it.

    normalisation: a name out of `kernels.propagation.NORMALISATIONS`. gain: multiplies the gates after it. noise: the
    logits' standard deviation. mean: their mean; None for 0, and for the rules that do not normalise for the value
    whose gates sum to 1 ("none") or 0.9 ("absolute", "tanh"). neighbours: 3, or 1 for the same cross index only. lam:
    the input weight, "one", a number, or "complement" for SPN's 1 - sum of the gates. cross: positions of a line.
    length: lines. chunk: lines per chunk, None for one chunk. dtype: "float64" | "fp32" | "fp16" | "bf16", in which
    gates and recurrence are computed and rounded after every operation. direction: the way of the front through the
    picture. image: the picture's name, stretched so that its lines and theirs are those of the laboratory.
    """

    normalisation: str = "sigmoid"
    gain: float = 1.0
    noise: float = 1.0
    neighbours: int = 3
    lam: float | str = 1.0
    cross: int = 64
    length: int = 64
    chunk: int | None = None
    dtype: str = "fp32"
    seed: int = 0
    mean: float | None = None
    direction: str = "left_right"
    image: str = "coffee"

    def __post_init__(self) -> None:
        for name, known in (("normalisation", NORMALISATIONS), ("dtype", DTYPES), ("direction", DIRECTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}.")
        if self.image not in list_images():
            raise ValueError(unknown("image", str(self.image), list_images()))
        if self.neighbours not in (1, 3):
            raise ValueError(f"neighbours must be 3, or 1 for the same cross index alone; got {self.neighbours!r}.")
        for name, fewest, most in (("cross", 2, WIDEST), ("length", 2, LONGEST), ("seed", 0, 2**32 - 1)):
            _check_whole(name, getattr(self, name), fewest, most)
        if self.chunk is not None:
            _check_whole("chunk", self.chunk, 2, LONGEST)
        object.__setattr__(self, "lam", _checked_lam(self.lam))
        for name, least in (("gain", 0.0), ("noise", 0.0), ("mean", -math.inf)):
            value = getattr(self, name)
            if name == "mean" and value is None:
                continue
            object.__setattr__(self, name, _number(name, value, least))

    @property
    def logit_mean(self) -> float:
        """The mean of the logits, resolved."""
        if self.mean is not None:
            return self.mean
        each = _SUMS.get(self.normalisation, 0.0) / self.neighbours
        return math.atanh(each) if self.normalisation == "tanh" else each


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}; got {value!r}.")


def _number(name: str, value: object, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        more = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name} must be a finite number{more}; got {value!r}.")
    return float(value)


def _checked_lam(lam: object) -> float | str:
    if lam in ("one", COMPLEMENT):
        return 1.0 if lam == "one" else COMPLEMENT
    if isinstance(lam, str):
        raise ValueError(f'lam must be "one", "{COMPLEMENT}" or a number; got {lam!r}.')
    return _number("lam", lam, -math.inf)


#: Conditions worth a look, by the name of their button: what they set, everything else as it is by default.
PRESETS: dict[str, dict[str, object]] = {
    "GSPN": {},
    "GSPN, local": {"chunk": 16},
    "SPN": {"normalisation": "absolute", "noise": 0.3, "lam": COMPLEMENT},
    "Softmax": {"normalisation": "softmax"},
    "One neighbour": {"neighbours": 1},
    "Gain 0.9": {"gain": 0.9},
    "Signed tanh": {"normalisation": "tanh"},
    "No normalisation, gain 1.05": {"normalisation": "none", "gain": 1.05, "noise": 0.0},
    "Half precision, overflow": {"normalisation": "none", "gain": 1.25, "noise": 0.0, "dtype": "fp16"},
    "bf16": {"dtype": "bf16"},
}
