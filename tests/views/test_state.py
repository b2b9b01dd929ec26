"""What the pages share: a cache that forgets the oldest, models by name, the backend until the kernels are warm."""

import pytest
import torch

from workbench.models import load_model
from workbench.views import state
from workbench.views.state import Kernels, Recent


class Made:
    """Makes a new object for a key and counts how often it was asked to."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def get(self, recent: Recent, key: str) -> object:
        def make() -> object:
            self.keys.append(key)
            return object()

        return recent.get(key, make)


def test_what_was_used_recently_is_not_made_again() -> None:
    recent, made = Recent(2), Made()
    assert made.get(recent, "a") is made.get(recent, "a")
    assert made.keys == ["a"]


def test_the_least_recently_used_result_is_forgotten_first() -> None:
    recent, made = Recent(2), Made()
    for key in ("a", "b", "a", "c", "a", "b"):
        made.get(recent, key)
    assert made.keys == ["a", "b", "c", "b"]


def test_a_result_that_could_not_be_made_is_not_remembered() -> None:
    recent, made = Recent(1), Made()

    def fail() -> object:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        recent.get("a", fail)
    made.get(recent, "a")
    assert made.keys == ["a"]


def test_a_given_model_goes_by_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_given", {})
    model = load_model("gspn_nano", seed=11)
    name = state.offer(model)
    assert name != "gspn_nano"
    assert name in state.model_names()
    assert state.shared_model(name) is model
    assert state.shared_model("gspn_nano") is not model


def test_a_second_given_model_of_a_name_does_not_replace_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_given", {})
    first, second = (load_model("gspn_nano", seed=seed) for seed in (11, 12))
    names = [state.offer(first), state.offer(second), state.offer(first)]
    assert names == ["gspn_nano (given)", "gspn_nano (given 2)", "gspn_nano (given)"]
    assert [state.shared_model(name) for name in names] == [first, second, first]


def test_the_sessions_of_a_process_share_one_model() -> None:
    assert state.shared_model("swin_nano") is state.shared_model("swin_nano")


def test_the_sessions_of_a_process_share_one_picture_of_each_size() -> None:
    small = state.shared_image("coffee", 64)
    assert small is state.shared_image("coffee", 64)
    assert small.rgb.shape == (64, 64, 3)
    assert state.shared_image("coffee", 96).rgb.shape == (96, 96, 3)


def test_an_operator_is_remembered_by_its_image_and_layer() -> None:
    model = state.shared_model("swin_nano")
    coffee, dot = state.shared_image("coffee", 64), state.shared_image("dot", 64)
    first = state.operator_at(model, coffee, "stage1.block1")
    assert state.operator_at(model, coffee, "stage1.block1") is first
    assert state.operator_at(model, coffee, "stage1.block2") is not first
    other = state.operator_at(model, dot, "stage1.block1")
    assert other is not first
    assert not torch.equal(other.value, first.value)


def test_layers_run_on_the_reference_until_the_kernels_are_compiled() -> None:
    kernels = Kernels()
    assert kernels.backend == "reference"
    kernels.ready.set()
    assert kernels.backend == "auto"


def test_an_operator_follows_the_backend_that_the_kernels_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels()
    monkeypatch.setattr(state, "KERNELS", kernels)
    model, image = state.shared_model("gspn_nano"), state.shared_image("coffee", 64)
    cold = state.operator_at(model, image, "stage1.block1")
    kernels.ready.set()
    warm = state.operator_at(model, image, "stage1.block1")
    assert cold.info["backend"] == "reference" != warm.info["backend"]
    torch.testing.assert_close(warm.output, cold.output)


def test_the_kernels_are_compiled_once_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, warmed = Kernels(), []
    monkeypatch.setattr(kernels, "work", lambda: warmed.append(1))
    for _ in range(3):
        kernels.start()
    assert kernels.ready.wait(60)
    assert warmed == [1]


def test_models_that_differ_in_a_setting_without_weights_have_operators_of_their_own() -> None:
    image = state.shared_image("coffee", 64)
    plain, padded = load_model("gna_nano", device="cpu"), load_model("gna_nano", device="cpu", stride=7)
    assert plain.weights_sha256 == padded.weights_sha256
    one, other = (state.operator_at(model, image, "stage1.block1") for model in (plain, padded))
    assert one.info["pattern"] != other.info["pattern"]
