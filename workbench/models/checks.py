"""The sentences that models answer wrong names and settings with."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

#: How many known names an error lists before it says only how many more there are.
LISTED = 12


def unknown(kind: str, given: object, known: Iterable[str], of: str | None = None) -> str:
    """One sentence for a name that does not exist: what was given, the near matches, and what there is.

    Args:
        kind: what the name should have named, such as "model" or "layer".
        given: the name as it was given.
        known: the names that exist.
        of: what they belong to, such as a model's name.
    """
    names = list(known)
    folded = {name.casefold(): name for name in names}
    near = [repr(folded[n]) for n in difflib.get_close_matches(str(given).casefold(), folded, n=3)]
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    listed = ", ".join(names[:LISTED]) or "none"
    return f"There is no {kind} {given!r}{f' in {of}' if of else ''}{hint}; there is {listed}{more}."


def check_choice(name: str, given: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `given` is one of the allowed names."""
    names = list(allowed)
    if given not in names:
        raise ValueError(unknown(name, given, names))


def check_whole(**values: Any) -> None:
    """Raise ValueError unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")


def check_stages(**lists: Sequence[int]) -> None:
    """Raise ValueError unless all lists have one whole number of at least 1 for each stage."""
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} must be a list with one whole number for each stage; got {values!r}.")
        check_whole(**{f"{name}[{i}]": value for i, value in enumerate(values)})
    if len({len(values) for values in lists.values()}) > 1:
        given = ", ".join(f"{name} {tuple(values)}" for name, values in lists.items())
        raise ValueError(f"{' and '.join(lists)} must have the same number of stages; got {given}.")
