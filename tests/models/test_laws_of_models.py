"""Laws that every registered model keeps, at a size that is not square."""

import re

import pytest
import torch

from workbench.models import list_models
from workbench.models.gspn import Scanning

pytestmark = pytest.mark.parametrize("name", list_models())


@pytest.fixture
def model(name, small):
    return small(name, seed=3)


@pytest.fixture
def size(model, oblong):
    return oblong(model)


@pytest.fixture
def image(size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(11))


def test_images_of_a_batch_give_logits_and_do_not_see_each_other(model, size):
    x = torch.randn(2, 3, *size)
    logits = model(x)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    assert not logits.requires_grad
    # Batches of two sizes round differently, and 27 blocks pass that on.
    torch.testing.assert_close(logits, torch.cat([model(x[:1]), model(x[1:])]), rtol=0, atol=1e-4)


def test_the_grids_and_strides_are_those_of_the_features(model, image, size):
    layers = model.layers(size)
    assert len(layers) == len(model.blocks())
    for layer in dict((layer.grid, layer) for layer in layers).values():  # the last layer of each stage
        features = model.features(image, layer.name)
        assert tuple(features.shape[2:]) == layer.grid
        assert features.shape[:2] == (1, channels_of(model, layer.name))
        assert layer.stride == (size[0] / layer.grid[0], size[1] / layer.grid[1])


def channels_of(model, layer):
    """The channels of a block, by its stage."""
    return model.config["dims"][place(layer)[0] - 1]


def test_layers_are_named_by_stage_and_block_in_the_order_of_the_forward_pass(model, image, size):
    layers = model.layers(size)
    names = [layer.name for layer in layers]
    assert place(names[0]) == (1, 1)
    assert len(set(names)) == len(names)
    assert names == list(model.mixer_inputs(image)) == sorted(names, key=place)
    assert {layer.kind for layer in layers} <= {"propagation", "attention", "channel", "convolution", "diffusion"}


def place(layer):
    """("stage2.block1.grid") -> (2, 1)."""
    stage, block = re.fullmatch(r"stage(\d+)\.block(\d+)(?:\.[a-z]+)?", layer).groups()
    return int(stage), int(block)


def test_features_have_gradients_to_the_image_and_to_nothing_else(model, image, size):
    last = model.layers(size)[-1].name
    features = model.features(image.requires_grad_(), last)
    (gradient,) = torch.autograd.grad(features[0, :, 0, 0].sum(), image)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_is_what_ran(model, image, size, monkeypatch):
    ran = {}
    for name, (_, mixer) in model.blocks().items():
        # A scanning layer mixes without freezing, in one fused step; the others freeze, and mix what is frozen.
        step = "mixed" if isinstance(mixer, Scanning) else "freeze"
        original = getattr(mixer, step)

        def run(*args, original=original, name=name):
            assert name not in ran
            ran[name] = original(*args)
            return ran[name]

        monkeypatch.setattr(mixer, step, run)
    received = model.mixer_inputs(image)
    monkeypatch.undo()
    for layer in model.layers(size):
        _, mixer = model.block(layer.name)
        state = mixer.freeze(received[layer.name])
        assert state.groups == layer.groups == mixer.chosen_groups()
        assert tuple(state.value.shape[2:]) == layer.grid
        mixed = state.mix(state.value)
        assert mixed.shape == state.value.shape
        if isinstance(mixer, Scanning):
            scale = mixed.abs().max().item()
            torch.testing.assert_close(ran[layer.name], mixed, rtol=0, atol=1e-5 * scale)
            torch.testing.assert_close(state.mixed(), mixed, rtol=0, atol=1e-5 * scale)
        else:
            assert torch.equal(state.value, ran[layer.name].value)
            assert torch.equal(mixed, ran[layer.name].mix(state.value))


def test_the_backends_agree(model, image):
    chosen = model(image)
    assert model.backend == "auto"
    model.set_backend("reference")
    assert model.backend == "reference"
    exact = model.double()(image.double())
    torch.testing.assert_close(chosen.double(), exact, rtol=0, atol=1e-4)


def test_an_unknown_layer_is_answered_with_the_near_matches(model, image, size):
    first = model.layers(size)[0].name
    wrong = first.replace("block", "blok")
    with pytest.raises(ValueError, match=rf"no layer named '{wrong}' in {model.name}; did you mean {first}"):
        model.features(image, wrong)


def test_what_is_no_batch_of_images_is_refused(model, size):
    for shape in ((3, *size), (1, 4, *size), (0, 3, *size)):
        with pytest.raises(ValueError, match=rf"{model.name} takes images as \(B, 3, rows, cols\); got"):
            model(torch.zeros(shape))


def test_an_image_that_does_not_fit_is_refused(model, size):
    (rows, cols), any_side = size, model.size_multiple == 1
    for wrong in [(0, cols)] if any_side else [(0, cols), (rows, cols + 1)]:
        with pytest.raises(ValueError, match=rf"{model.name} takes images .* pixels.*; got {wrong[0]} x {wrong[1]}"):
            model.layers(wrong)
