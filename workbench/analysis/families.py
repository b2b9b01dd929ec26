"""The published patterns by name: "swin(window=7, shift=3)" stands for the patterns of a model's blocks, in turn.

A family is a cycle: the first block of a model has its first pattern, the next block the next one, and so on again.
A pattern is written as text with named whole numbers and words, so that it fits into a link, a Spec and a table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels import attention
from kernels.attention import Pattern, axial, block, cross, disc, full, grid, neighborhood, power, stripe, swin
from workbench.names import unknown

Value = int | str | bool
Grid = tuple[int, int]

#: How a pattern is usually computed: in blocks of queries with a common window, or in tiles of tokens with a mask.
BLOCKS, TILES = "blocks", "tiles"


@dataclass(frozen=True)
class Family:
    """label: for people. defaults: its arguments. cycle: (grid, **arguments) -> the patterns of a model's blocks.

    usual: how it is usually computed, in words, and `BLOCKS` or `TILES`.
    """

    label: str
    defaults: dict[str, Value]
    cycle: Callable[..., tuple[Pattern, ...]]
    usual: tuple[str, str]


#: Arguments that are words, and the words that they may be.
WORDS: dict[str, tuple[str, ...]] = {"border": ("crop", "clamp"), "direction": ("vertical", "horizontal", "in turn")}

#: The implementation that serves any mask: FlexAttention computes whole tiles and masks what is not read.
FLEX = ("FlexAttention, raster tiles of 64 tokens", TILES)
WINDOWS = ("cut into windows", BLOCKS)


def _swin(size: Grid, window: int, shift: int) -> tuple[Pattern, ...]:
    """Windows no larger than the map, and shifted only on a larger one, as in the models."""
    swin(window, shift)  # refuses what is wrong on every map
    if not shift or min(size) <= window:
        return (swin(min(window, *size)),)
    return swin(window), swin(window, shift)


def _stripes(size: Grid, width: int, direction: str) -> tuple[Pattern, ...]:
    both = stripe(width, "vertical"), stripe(width, "horizontal")
    return both if direction == "in turn" else (both[direction == "horizontal"],)


def _halo(size: Grid, block: int, halo: int, border: Any) -> tuple[Pattern, ...]:
    return (attention.halo(block, halo, border),)


FAMILIES = {
    "swin": Family(
        "Swin: windows, then shifted windows",
        {"window": 7, "shift": 3},
        _swin,
        ("rolled, cut into windows, masked", BLOCKS),
    ),
    "nat": Family(
        "NAT: the nearest keys", {"kernel": 7}, lambda size, kernel: (neighborhood(kernel),), FLEX
    ),
    "dinat": Family(
        "DiNAT: near keys, then dilated",
        {"kernel": 7, "dilation": 8},
        lambda size, kernel, dilation: (neighborhood(kernel), neighborhood(kernel, dilation=dilation)),
        FLEX,
    ),
    "gna": Family(
        "GNA: generalised neighbourhood",
        {"kernel": 7, "stride": 4, "dilation": 1, "causal": False},
        lambda size, kernel, stride, dilation, causal: (neighborhood(kernel, stride, dilation, causal),),
        FLEX,
    ),
    "halo": Family(
        "HaloNet: blocks with a halo",
        {"block": 8, "halo": 3, "border": "crop"},
        _halo,
        ("cut into blocks with a halo", BLOCKS),
    ),
    "maxvit": Family(
        "MaxViT: block, then grid",
        {"window": 7},
        lambda size, window: (block(window), grid(window, size)),
        WINDOWS,
    ),
    "cswin": Family(
        "CSWin: cross of stripes", {"width": 1}, lambda size, width: (cross(width),), ("cut into stripes", BLOCKS)
    ),
    "stripes": Family(
        "Stripes", {"width": 7, "direction": "vertical"}, _stripes, ("cut into stripes", BLOCKS)
    ),
    "axial": Family(
        "Axial: own column, then own row", {}, lambda size: (axial(0), axial(1)), ("one line at a time", BLOCKS)
    ),
    "disc": Family("CLEAR: a disc", {"radius": 8}, lambda size, radius: (disc(radius),), FLEX),
    "power": Family(
        "PowerAttention in raster order",
        {"block": 64, "window": 5, "sink": 1},
        lambda size, block, window, sink: (power(block, window, sink),),
        FLEX,
    ),
    "full": Family("Full attention", {}, lambda size: (full(),), ("dense", BLOCKS)),
}  # fmt: skip


def spell(family: str, arguments: dict[str, Value]) -> str:
    """The text of a pattern, with every argument in the family's order."""
    given = FAMILIES[family].defaults | arguments
    parts = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()]
    return f"{family}({', '.join(parts)})"


def parse(text: str) -> tuple[str, dict[str, Value]]:
    """The family and all arguments of a pattern's text; arguments that are left out have their defaults.

    Raises:
        ValueError: not of the form name(argument=value, ...), or a name, argument or value that does not exist.
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"A pattern is written as name(argument=value, ...), such as swin(window=7); got {text!r}.")
    family, inside = found.group(1), found.group(2) or ""
    if family not in FAMILIES:
        raise ValueError(unknown("pattern", family, FAMILIES))
    defaults = FAMILIES[family].defaults
    arguments = dict(defaults)
    for part in filter(None, (p.strip() for p in inside.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals:
            raise ValueError(
                f"A pattern is written as name(argument=value, ...), such as swin(window=7); got {text!r}."
            )
        if name not in defaults:
            raise ValueError(unknown("argument", name, defaults, of=family))
        arguments[name] = _value(name, value, defaults[name])
    return family, arguments


def _value(name: str, text: str, default: Value) -> Value:
    """An argument's value, of the kind of its default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false; got {text!r}.")
        return text.lower() == "true"
    if isinstance(default, str):
        if text not in WORDS[name]:
            raise ValueError(f"{name} must be one of {', '.join(WORDS[name])}; got {text!r}.")
        return text
    if not re.fullmatch(r"-?\d{1,6}", text):
        raise ValueError(f"{name} must be a whole number of at most six digits; got {text!r}.")
    return int(text)


def cycle(text: str, size: Grid) -> tuple[Pattern, ...]:
    """The patterns of a model's blocks, in turn, on a grid of (rows, cols).

    Raises:
        ValueError: the text cannot be read, an argument is out of range, or a pattern is not defined on the grid.
    """
    family, arguments = parse(text)
    patterns = FAMILIES[family].cycle(size, **arguments)
    for pattern in patterns:
        pattern.check(size)
    return patterns
