"""The controls of one compared model, on a page that does nothing but hold them."""

from collections.abc import Sequence

import panel_material_ui as pmui
import param
import pytest

from workbench.models import list_models, load_model
from workbench.models.base import VisionModel
from workbench.models.expression import parse
from workbench.views.model_choice import ModelChoice, add_given, checked, small_models


class Page(param.Parameterized):
    """What the controls need of a page."""

    models = param.List(default=["gspn_nano", "swin_nano(seed=2)"])
    layers = param.List(default=["stage1.block2", "stage2.block1"])
    given = param.Dict(default={})
    refused = ""

    def choose(self, models: Sequence[str], layers: Sequence[str]) -> None:
        models, layers = checked(models, layers, self.given)
        self.param.update(models=models, layers=layers)

    def refuse(self, error: Exception) -> None:
        self.refused = str(error)


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def choice(page: Page) -> ModelChoice:
    return ModelChoice(page, 0)


def test_the_controls_show_the_model_its_settings_and_its_layer(page: Page) -> None:
    first, second, third = (ModelChoice(page, n) for n in range(3))
    assert (first.model.value, first.layer.value) == ("gspn_nano", "stage1.block2")
    assert {name: widget.value for name, widget in first.settings.items()} == {
        "merge": "aligned", "chunk": "none", "global_stages": "(0, 1)", "seed": 0,
    }  # fmt: skip
    assert (second.model.value, second.settings["seed"].value) == ("swin_nano", 2)
    assert [each._box.visible for each in (first, second, third)] == [True, True, False]


def test_what_is_chosen_is_written_to_the_page(page: Page, choice: ModelChoice) -> None:
    choice.settings["merge"].value = "released"
    choice.settings["chunk"].value = "4"
    choice.settings["seed"].value = 7
    choice.layer.value = "stage2.block1"
    assert page.models == ["gspn_nano(merge=released, chunk=4, seed=7)", "swin_nano(seed=2)"]
    assert page.layers == ["stage2.block1", "stage2.block1"]
    choice.settings["chunk"].value = "none"
    assert page.models[0] == "gspn_nano(merge=released, seed=7)"


def test_the_controls_follow_the_page(page: Page, choice: ModelChoice) -> None:
    page.choose(["nat_nano(kernel=5, seed=3)"], ["stage1.block1"])
    assert (choice.model.value, choice.layer.value) == ("nat_nano", "stage1.block1")
    assert (choice.settings["kernel"].value, choice.settings["seed"].value) == (5, 3)
    assert "merge" not in choice.settings
    assert choice.remove.disabled  # a page compares at least one
    assert page.models == ["nat_nano(kernel=5, seed=3)"]  # following writes nothing


@pytest.mark.parametrize("name", list_models())
def test_every_model_can_be_chosen_and_has_inputs_that_write_its_settings(page: Page, name: str) -> None:
    page.choose(["gspn_nano", "nat_nano" if name != "nat_nano" else "swin_nano"], [])
    choice = ModelChoice(page, 1)
    choice.model.value = name
    assert page.models == ["gspn_nano", name]
    assert page.layers[1] in choice.layer.options
    choice.settings["seed"].value = 5
    assert page.models[1] == f"{name}(seed=5)"
    for key, widget in choice.settings.items():
        if isinstance(widget, pmui.Select):
            widget.value = widget.options[-1]
            assert parse(page.models[1]).settings.get(key, widget.options[0]) == widget.value
    assert page.refused == ""


def test_a_wrong_value_is_refused_in_a_sentence_and_the_page_stays(page: Page, choice: ModelChoice) -> None:
    choice.settings["chunk"].value = "four"
    assert page.refused == "chunk must be a whole number of at most six digits, or none; got 'four'."
    assert page.models == ["gspn_nano", "swin_nano(seed=2)"]
    choice.settings["global_stages"].value = "0"
    assert "global_stages must be whole numbers in parentheses" in page.refused


def test_a_layer_that_another_model_does_not_have_becomes_its_last(page: Page, choice: ModelChoice) -> None:
    choice.model.value = "davit_nano"
    assert page.layers[0] == choice.layer.options[-1] == choice.layer.value


def test_a_model_can_be_removed(page: Page, choice: ModelChoice) -> None:
    choice.remove.clicks += 1
    assert (page.models, page.layers) == (["swin_nano(seed=2)"], ["stage2.block1"])
    assert (choice.model.value, choice.settings["seed"].value) == ("swin_nano", 2)


def test_a_hidden_slider_that_settles_on_a_value_changes_nothing(page: Page) -> None:
    hidden = ModelChoice(page, 2)
    hidden.layer.options = ["a", "b"]
    hidden.layer.value = "b"
    assert len(page.models) == 2


def test_a_given_model_has_layers_and_no_settings(page: Page, choice: ModelChoice) -> None:
    given: dict[str, VisionModel] = {}
    name = add_given(load_model("nat_nano", seed=4), given)
    page.param.update(given=given, models=[name], layers=["stage2.block1"])
    assert choice.model.options[0] == choice.model.value == name == "nat_nano (given)"
    assert choice.settings == {}
    assert not choice._details.visible
    choice.model.value = "gspn_nano"
    assert page.models == ["gspn_nano"]
    assert choice._details.visible


def test_given_models_have_names_of_their_own() -> None:
    given: dict[str, VisionModel] = {}
    models = [load_model("nat_nano", seed=seed) for seed in range(3)]
    assert [add_given(model, given) for model in models] == [
        "nat_nano (given)", "nat_nano (given 2)", "nat_nano (given 3)",
    ]  # fmt: skip
    assert list(given.values()) == models
    assert add_given("swin_nano", given) == "swin_nano"
    with pytest.raises(ValueError, match="models from load_model, or their names; got a int"):
        add_given(3, given)


@pytest.mark.parametrize(
    ("models", "layers", "sentence"),
    [
        ([], [], "one to 4 models, given as a list of texts; got"),
        (["nat_nano"] * 5, [], "one to 4 models"),
        (7, [], "one to 4 models"),
        ([7], [], "A model is written as"),
        (["nat_nan"], [], "There is no model named 'nat_nan'"),
        (["nat_nano"], ["stage3.block1"], "There is no layer named 'stage3.block1' in nat_nano"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(models: object, layers: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checked(models, layers, {}, strict=True)


def test_models_are_listed_the_smallest_sizes_first() -> None:
    assert sorted(small_models()) == list_models()
    assert small_models()[0].endswith("_nano")
    assert small_models()[-1].endswith("_base")
