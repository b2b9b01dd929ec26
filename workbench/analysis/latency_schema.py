"""Checks a JSON document against data/latency/schema.json, with the keywords of JSON Schema 2020-12 that it uses."""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[2] / "data" / "latency" / "schema.json"

#: How much of a wrong value a sentence repeats.
REPEATED = 40


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The schema of latency files."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def problem(document: Any, rule: dict[str, Any] | None = None) -> str:
    """The first thing that is wrong with a document, such as "results[3].n must be at least 1; got 0"; or nothing.

    rule: another schema than that of latency files, without references.
    """
    return next(_problems(document, rule or schema(), ""), "")


def _problems(value: Any, rule: dict[str, Any], place: str) -> Iterator[str]:
    """Everything wrong with the value at a place, by the keywords of a rule; keywords that only describe are passed."""
    if "$ref" in rule:
        yield from _problems(value, schema()["$defs"][rule["$ref"].rpartition("/")[2]], place)
    if "anyOf" in rule:
        yield from _alternatives(value, rule["anyOf"], place)
    for keyword, (applies, holds, words) in KEYWORDS.items():
        if keyword in rule and applies(value) and not holds(value, rule[keyword]):
            yield f"{place or 'the document'} must {words} {_shown(rule[keyword])}; got {_shown(value)}"
            return  # of the wrong type or value: what is inside it tells no more
    if isinstance(value, dict):
        yield from _members(value, rule, place)
    if isinstance(value, list):
        if rule.get("uniqueItems") and any(value.index(item) != i for i, item in enumerate(value)):
            yield f"{place} must hold nothing twice"
        for i, item in enumerate(value):
            yield from _problems(item, rule.get("items", {}), f"{place}[{i}]")


def _alternatives(value: Any, rules: list[dict[str, Any]], place: str) -> Iterator[str]:
    """Nothing if one of the rules holds; else what is wrong by the one that is the nearest."""
    found = [list(_problems(value, rule, place)) for rule in rules]
    yield from min(found, key=len)[:1]


def _members(value: dict[str, Any], rule: dict[str, Any], place: str) -> Iterator[str]:
    known = rule.get("properties", {})
    for name in rule.get("required", ()):
        if name not in value:
            yield f"{place or 'the document'} lacks {name!r}"
    for name, member in value.items():
        inner = known.get(name, rule.get("additionalProperties", {}))
        if inner is False:
            yield f"{place or 'the document'} must not have {_shown(name)}"
        else:
            yield from _problems(member, inner, f"{place}.{name}".lstrip("."))


def _is(value: Any, name: str) -> bool:
    """Whether a value is of a JSON type; true and false are no numbers, and 1.0 is a whole number."""
    number = isinstance(value, int) and not isinstance(value, bool)
    number = number or (isinstance(value, float) and math.isfinite(value))
    return {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": number,
        "integer": number and value == int(value),
    }[name]


def _typed(value: Any, names: str | list[str]) -> bool:
    return any(_is(value, name) for name in ([names] if isinstance(names, str) else names))


def _number(value: Any) -> bool:
    return _is(value, "number")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value) and value:
        return " or ".join(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= REPEATED else f"{text[: REPEATED - 3]}..."


#: What each keyword applies to, when it holds, and how a sentence says it.
KEYWORDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Any], bool], str]] = {
    "type": (lambda value: True, _typed, "be of type"),
    "const": (lambda value: True, lambda value, one: type(value) is type(one) and value == one, "be"),
    "enum": (_text, lambda value, some: value in some, "be"),
    "minimum": (_number, lambda value, least: value >= least, "be at least"),
    "exclusiveMinimum": (_number, lambda value, bound: value > bound, "be above"),
    "minLength": (_text, lambda value, least: len(value) >= least, "have a length of at least"),
    "pattern": (_text, lambda value, pattern: re.search(pattern, value) is not None, "match"),
    "minItems": (
        lambda value: isinstance(value, list), lambda value, least: len(value) >= least, "have a length of at least"
    ),
}  # fmt: skip
