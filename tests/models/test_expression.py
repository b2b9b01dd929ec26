"""Models as text: what is parsed is spelt the same, what is loaded is what was asked for, nothing fills the memory."""

import time

import pytest
import torch

from workbench.models import list_models, load_model
from workbench.models.expression import Expression, described, load, parse, python_of, settings_of, spell
from workbench.models.registry import variant


@pytest.mark.parametrize("name", list_models())
def test_every_registered_name_is_an_expression_and_describes_its_layers(name: str) -> None:
    assert parse(name) == Expression(name, {}, 0)
    assert spell(parse(name)) == name
    every = ", ".join(f"{key}={_text(value)}" for key, value in settings_of(name).items())
    assert spell(parse(f"{name}({every})")) == name  # the variant's own values say nothing
    shapes, side = described(name), described(name).input_size
    assert next(shapes.parameters()).is_meta
    assert [layer.grid for layer in shapes.layers(side)] == [
        layer.grid for layer in variant(name).build({}).layers(side)
    ]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        (" gspn_nano ( chunk = 4 , merge=released,seed = 3 )", "gspn_nano(merge=released, chunk=4, seed=3)"),
        ("gspn_nano(seed=0, chunk=none, merge=aligned)", "gspn_nano"),
        ("gspn_nano(global_stages=(1,), ratio=2)", "gspn_nano(global_stages=(1,), ratio=2.0)"),
        ("gspn_nano(global_stages=())", "gspn_nano(global_stages=())"),
        ("dinat_nano(dilations=(2, 1), seed=12)", "dinat_nano(dilations=(2, 1), seed=12)"),
        ("dinat_nano(dilations=none)", "dinat_nano(dilations=none)"),
        ("swin_nano(padding=keys, window=5)", "swin_nano(window=5, padding=keys)"),
    ],
)
def test_an_expression_is_spelt_in_the_variants_order_without_what_is_its_own(text: str, spelt: str) -> None:
    assert spell(parse(text)) == spelt
    assert spell(parse(spelt)) == spelt


def test_the_model_of_an_expression_has_its_settings_and_its_seeds_weights() -> None:
    model = load("gspn_nano(merge=released, chunk=4, seed=3)", backend="reference")
    exact = load_model("gspn_nano", seed=3, merge="released", chunk=4)
    assert (model.config, model.seed, model.backend) == (exact.config, 3, "reference")
    assert model.weights_sha256 == exact.weights_sha256 != load("gspn_nano(merge=released, chunk=4)").weights_sha256


def test_python_that_loads_the_model_of_an_expression_loads_the_same() -> None:
    import workbench as wb

    text = "dinat_nano(dilations=(2, 1), padding=keys, seed=5)"
    model = eval(python_of(text), {"wb": wb})
    assert model.config["dilations"] == (2, 1)
    assert model.weights_sha256 == load(text).weights_sha256


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gspn_nan", "There is no model named 'gspn_nan'; did you mean gspn_nano"),
        ("gspn_nano(merg=released)", "There is no setting named 'merg' in gspn_nano; did you mean merge?"),
        ("gspn_nano(merge=sideways)", "There is no merge named 'sideways'. Known: aligned, released."),
        ("gspn_nano(chunk=0)", "chunk must be a whole number of at least 1; got 0."),
        ("gspn_nano(chunk=1.5)", "chunk must be a whole number of at most six digits, or none; got '1.5'."),
        ("gspn_nano(seed=-1)", "seed must be a whole number of at least 0; got -1."),
        ("gspn_nano(seed=1234567)", "seed must be a whole number of at most six digits; got '1234567'."),
        ("gspn_nano(seed=1, seed=2)", "seed is given twice"),
        ("gspn_nano(ratio=fast)", "ratio must be a number of at most six digits; got 'fast'."),
        ("gspn_nano(dims=40)", "dims must be whole numbers in parentheses, such as (40, 80); got '40'."),
        ("cswin_nano(split=none)", "split"),
        ("gspn_nano(chunk)", "A model is written as name(setting=value, ...)"),
        ("gspn_nano((", "A model is written as name(setting=value, ...)"),
        ("gspn_nano) (", "A model is written as name(setting=value, ...)"),
        ("", "A model is written as name(setting=value, ...)"),
        ("x" * 4000, "There is no model named"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        parse(text)
    assert sentence in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("value", [None, 3, ["gspn_nano"], b"gspn_nano"])
def test_something_else_than_text_is_refused_in_words(value: object) -> None:
    with pytest.raises(ValueError, match="A model is written as"):
        parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "swin_nano(window=999999)",
        "swin_nano(patch=999999)",
        "gspn_nano(d_state=999999)",
        "gspn_nano(ratio=999999)",
        "gspn_nano(dims=(9999, 9999))",
        "gspn_nano(depths=(999999, 999999))",
        "gspn_nano(depths=(-999999, 999999))",
        "maxvit_tiny(num_classes=999999)",
    ],
)
def test_a_text_cannot_ask_for_a_model_that_fills_the_memory(text: str) -> None:
    before, start = torch.get_default_device(), time.perf_counter()
    with pytest.raises(ValueError, match=r"million parameters|describes no model|depths"):
        parse(text)
    assert torch.get_default_device() == before
    assert time.perf_counter() - start < 10  # nothing of that size was built


@pytest.mark.parametrize("name", list_models("*_nano"))
def test_any_value_of_any_setting_is_read_or_refused_in_words(name: str) -> None:
    for setting in settings_of(name):
        for value in ("999999", "-1", "0", "none", "true", "word", "1.5", "(2, 4)", "()", "(,)", "", "(((", "a=b"):
            again = _read(f"{name}({setting}={value})")
            assert "\n" not in again
            assert again.startswith(name) == (_read(again) == again)


def _read(text: str) -> str:
    """The shortest text of an expression, or the sentence that refuses it."""
    try:
        return spell(parse(text))
    except ValueError as error:
        return f"refused: {error}"
