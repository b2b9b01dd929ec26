"""A model with its settings as text: `gspn_nano(merge=released, chunk=4, seed=3)` fits into a link, a table and a list.

The settings are those of the registered variant, and the seed of its random weights. A setting that is left out has the
variant's own value, so a bare name is the model as it is registered.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

from workbench.names import unknown

from .base import VisionModel
from .registry import Variant, load_model, variant

Value = int | float | str | bool | None | tuple[int, ...]

#: What an expression may ask for: blocks, and parameters in float32, which are 1 GB. A link must not fill the memory.
MOST_BLOCKS, MOST_PARAMETERS = 256, 250_000_000

SEED = "seed"

#: A whole number, and how much of a wrong text a message repeats.
WHOLE, SHOWN = r"-?\d{1,6}", 80

EXAMPLE = "such as gspn_nano(merge=released, seed=3)"


class Expression(NamedTuple):
    """A registered name, the settings that differ from the variant's own, and the seed of the random weights."""

    name: str
    settings: Mapping[str, Value]
    seed: int = 0


def parse(text: str) -> Expression:
    """Read an expression: name, or name(setting=value, ...).

    A value is a whole number, a number with a fraction, true, false, none, a word, or whole numbers in parentheses:
    dilations=(4, 2). Settings with the variant's own value are left out of the result.

    Raises:
        ValueError: the text cannot be read, or a name, setting or value does not exist; says which.
    """
    expression = _read(text)
    described(spell(expression))  # refuses values that the model does not take
    return expression


def spell(expression: Expression) -> str:
    """The shortest text of an expression: settings in the variant's order, the seed where it is not 0."""
    known = variant(expression.name).defaults()
    parts = [f"{name}={spelt(expression.settings[name])}" for name in known if name in expression.settings]
    parts += [f"{SEED}={expression.seed}"] if expression.seed else []
    return f"{expression.name}({', '.join(parts)})" if parts else expression.name


def spelt(value: Value) -> str:
    """A value as `parse` reads it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))}{',' if len(value) == 1 else ''})"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def settings_of(name: str) -> dict[str, Value]:
    """Every setting of a registered model with its variant's value, and the seed."""
    return variant(name).defaults() | {SEED: 0}


@lru_cache(maxsize=64)
def described(text: str) -> VisionModel:
    """The model of an expression without weights: its layers, grids and sizes, but nothing to run. Read-only.

    Raises:
        ValueError: as `parse`, or a model that is larger than an expression may ask for.
    """
    name, settings, seed = _read(text)
    chosen = variant(name)
    if seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0; got {seed}.")
    _check_depths(chosen, settings)
    try:
        model = chosen.build(dict(settings))
    except (RuntimeError, OverflowError) as error:  # torch has no tensor of such a shape
        raise ValueError(f"{text[:SHOWN]} describes no model that can be built: {error}.") from error
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"{text[:SHOWN]} has {count / 1e6:.0f} million parameters, and at most {MOST_PARAMETERS // 10**6} million "
            "are built from a text: load it with load_model."
        )
    return model


def load(text: str, backend: str = "auto") -> VisionModel:
    """The model of an expression with random weights from its seed, on the device that `load_model` chooses.

    Raises:
        ValueError: as `parse`.
    """
    name, settings, seed = parse(text)
    return load_model(name, seed=seed, backend=backend, **cast(dict[str, Any], settings))


def python_of(text: str) -> str:
    """The call of `load_model` that loads the model of an expression."""
    name, settings, seed = parse(text)
    given = {SEED: seed, **settings}
    return f"wb.load_model({name!r}, {', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _read(text: str) -> Expression:
    """As `parse`, without building anything."""
    found = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(_form(text))
    chosen = variant(found[1])
    known = settings_of(chosen.name)
    given: dict[str, Value] = {}
    for part in filter(None, map(str.strip, _parts(found[2] or ""))):
        name, equals, value = map(str.strip, part.partition("="))
        if not equals:
            raise ValueError(_form(text))
        if name not in known:
            raise ValueError(unknown("setting", name, known, of=chosen.name))
        if name in given:
            raise ValueError(f"{name} is given twice in {text[:SHOWN]!r}.")
        given[name] = _value(name, value, known[name])
    seed = given.pop(SEED, 0)
    assert isinstance(seed, int)  # its default is a whole number
    return Expression(chosen.name, {name: value for name, value in given.items() if value != known[name]}, seed)


def _form(text: Any) -> str:
    return f"A model is written as name(setting=value, ...), {EXAMPLE}; got {str(text)[:SHOWN]!r}."


def _parts(inside: str) -> list[str]:
    """What stands between the commas that are outside of parentheses."""
    return re.split(r",(?![^()]*\))", inside)


def _value(name: str, text: str, default: Value) -> Value:
    """A setting's value, of a kind that fits its default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false; got {text[:SHOWN]!r}.")
        return text.lower() == "true"
    if isinstance(default, str):
        return text  # the model knows its words
    listed = default is None or isinstance(default, tuple)
    if listed and text.lower() == "none":
        return None
    if listed and re.fullmatch(rf"\(\s*({WHOLE}\s*(,\s*{WHOLE}\s*)*,?)?\s*\)", text):
        return tuple(int(number) for number in re.findall(WHOLE, text))
    if isinstance(default, float) and re.fullmatch(rf"{WHOLE}(\.\d{{1,9}})?", text):
        return float(text)
    if not isinstance(default, tuple | float) and re.fullmatch(WHOLE, text):
        return int(text)
    raise ValueError(f"{name} must be {_kind(default)}; got {text[:SHOWN]!r}.")


def _kind(default: Value) -> str:
    if isinstance(default, tuple):
        return f"whole numbers in parentheses, such as {spelt(default)}"
    if isinstance(default, float):
        return "a number of at most six digits"
    return "a whole number of at most six digits" + (", or none" if default is None else "")


def _check_depths(variant: Variant, settings: Mapping[str, Value]) -> None:
    depths = settings.get("depths", variant.defaults().get("depths"))
    if isinstance(depths, tuple) and sum(map(abs, cast(tuple[int, ...], depths))) > MOST_BLOCKS:
        raise ValueError(f"depths of a model that is written as text add up to at most {MOST_BLOCKS}; got {depths}.")
