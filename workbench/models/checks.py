"""The sentences that models answer wrong settings with."""

from collections.abc import Iterable, Sequence
from typing import Any

from workbench.names import unknown


def check_choice(name: str, given: Any, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `given` is one of the allowed names."""
    names = list(allowed)
    if given not in names:
        raise ValueError(unknown(name, str(given), names))


def check_whole(**values: Any) -> None:
    """Raise ValueError unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")


def check_stages(**lists: Sequence[int]) -> None:
    """Raise ValueError unless the lists are equally long, not empty, and of whole numbers of at least 1."""
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} must be a list of whole numbers; got {values!r}.")
        check_whole(**{f"{name}[{i}]": value for i, value in enumerate(values)})
    if len({len(values) for values in lists.values()}) > 1:
        given = ", ".join(f"{name} {tuple(values)}" for name, values in lists.items())
        raise ValueError(f"{' and '.join(lists)} must name the same number of stages; got {given}.")


def check_heads(dims: Sequence[int], heads: Sequence[int]) -> None:
    """Raise ValueError unless the heads of each stage divide its channels."""
    if any(channels % count for channels, count in zip(dims, heads, strict=True)):
        raise ValueError(f"heads must divide the channels of each stage; got dims {dims} and heads {heads}.")
