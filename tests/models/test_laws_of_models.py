"""Laws that every registered model keeps."""

import pytest
import torch

from workbench.models import list_models

pytestmark = pytest.mark.parametrize("name", list_models())

SIZE = (64, 96)


@pytest.fixture
def model(name, small):
    return small(name, seed=3)


@pytest.fixture
def image():
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(11))


def test_an_image_gives_one_logit_for_each_class(model):
    logits = model(torch.randn(3, 3, *SIZE))
    assert logits.shape == (3, 5)
    assert logits.isfinite().all()
    assert not logits.requires_grad


def test_images_of_a_batch_do_not_see_each_other(model):
    x = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    model.double()  # in float32, batches of two sizes round differently, and 27 blocks pass that on
    torch.testing.assert_close(model(x), torch.cat([model(x[:1]), model(x[1:])]), rtol=0, atol=1e-10)


def test_the_grids_and_strides_are_those_of_the_features(model, image):
    layers = model.layers(SIZE)
    assert len(layers) == len(model.blocks())
    for layer in dict((layer.grid, layer) for layer in layers).values():  # the last layer of each stage
        features = model.features(image, layer.name)
        assert tuple(features.shape[2:]) == layer.grid
        assert features.shape[:2] == (1, channels_of(model, layer.name))
        assert layer.stride == (SIZE[0] / layer.grid[0], SIZE[1] / layer.grid[1])


def channels_of(model, layer):
    """The channels of a block, by its stage."""
    return model.config["dims"][natural(layer)[0] - 1]


def test_layers_are_named_by_stage_and_block_in_the_order_of_the_forward_pass(model, image):
    names = [layer.name for layer in model.layers(SIZE)]
    assert names[0] == "stage1.block1"
    assert names == list(model.mixer_inputs(image)) == sorted(names, key=natural)
    assert {layer.kind for layer in model.layers(SIZE)} <= {"propagation", "attention"}


def natural(layer):
    return [int(part) for part in layer.replace("stage", "").replace("block", "").split(".")]


def test_features_have_gradients_to_the_image_and_to_nothing_else(model, image):
    last = model.layers(SIZE)[-1].name
    features = model.features(image.requires_grad_(), last)
    (gradient,) = torch.autograd.grad(features[0, :, 0, 0].sum(), image)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_is_what_ran(model, image):
    received = model.mixer_inputs(image)
    for layer in model.layers(SIZE):
        _, mixer = model.block(layer.name)
        state = mixer.freeze(received[layer.name])
        assert state.groups == layer.groups == mixer.chosen_groups()
        assert tuple(state.value.shape[2:]) == layer.grid
        assert state.mix(state.value).shape == state.value.shape


def test_the_backends_agree(model, image):
    chosen = model(image)
    assert model.backend == "auto"
    model.set_backend("reference")
    assert model.backend == "reference"
    exact = model.double()(image.double())
    torch.testing.assert_close(chosen.double(), exact, rtol=0, atol=1e-4)


def test_an_unknown_layer_is_answered_with_the_near_matches(model, image):
    with pytest.raises(ValueError, match=rf"no layer named 'stage1.blok1' in {model.name}; did you mean stage1.block1"):
        model.features(image, "stage1.blok1")


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (0, 3, 64, 64)])
def test_what_is_no_batch_of_images_is_refused(model, shape):
    with pytest.raises(ValueError, match=rf"{model.name} takes images as \(B, 3, rows, cols\); got"):
        model(torch.zeros(shape))
