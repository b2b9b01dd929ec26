"""One sentence for a name that is not known: what was given, what it may have meant, and what there is."""

from collections.abc import Iterable
from difflib import get_close_matches

#: How many known names a message lists, how many near matches it offers, and how much it repeats of what was given.
LISTED, OFFERED, REPEATED = 8, 3, 60


def unknown(kind: str, given: str, known: Iterable[str], of: str | None = None) -> str:
    """Return the sentence for a name that is not among the known ones.

    Args:
        kind: what was looked for, such as "model" or "layer".
        given: the name that was asked for.
        known: the names that exist, in the order in which they should be listed.
        of: what they belong to, such as the model of a layer; None leaves it out.

    Returns:
        For example "There is no image named 'cofee'; did you mean coffee? Known: astronaut, brick, coffee."
    """
    names = list(known)
    start = f"There is no {kind} named {_shortened(given)!r}" + (f" in {of}" if of else "")
    if not names:
        return f"{start}; none is known."
    near = _near(given, names)
    return f"{start}; did you mean {_either(near)}? {_listed(names)}" if near else f"{start}. {_listed(names)}"


def _shortened(name: str) -> str:
    return name if len(name) <= REPEATED else name[: REPEATED - 3] + "..."


def _near(given: str, names: list[str]) -> list[str]:
    """The known names that `given` may have meant, the nearest first; upper and lower case count as equal."""
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(given[:REPEATED].lower(), by_lower, n=OFFERED)
    return [by_lower[name] for name in close]


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return f"Known: {', '.join(names[:LISTED])}" + (f" and {more} more." if more > 0 else ".")
