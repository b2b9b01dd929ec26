"""Theoretical receptive fields are the pixels that have a gradient, and the published sizes of known networks."""

import numpy as np
import pytest
import torch

from workbench.analysis.theoretical import (
    Convolution,
    FieldSize,
    TheoreticalField,
    receptive_field_size,
    theoretical_field,
)
from workbench.models import list_models, load_model
from workbench.models.davit import ChannelAttention
from workbench.models.maxvit import SqueezeExcitation
from workbench.models.parts import GlobalResponseNorm
from workbench.models.registry import variant

#: Models, settings, and pixels (rows, cols): borders that cut windows, cells and chunks, and maps that are not square.
CASES = [
    ("axial_nano", {}, (28, 40)),
    ("cswin_nano", {}, (32, 44)),
    ("cswin_nano", {"split": (3, 4)}, (40, 28)),
    ("davit_nano", {"window": 4}, (28, 36)),
    ("davit_nano", {"window": 4, "padding": "keys"}, (28, 36)),
    ("dinat_nano", {}, (56, 64)),
    ("dinat_nano", {"padding": "keys", "kernel": 5}, (20, 44)),
    ("disc_nano", {"radius": 3}, (28, 40)),
    ("gna_nano", {}, (28, 40)),
    ("gna_nano", {"kernel": 6, "stride": 4}, (40, 28)),
    ("gspn_nano", {}, (29, 40)),
    ("gspn_nano", {"chunk": 1}, (33, 46)),
    ("gspn_nano", {"chunk": 3}, (40, 29)),
    ("gspn_nano", {"merge": "released"}, (36, 36)),
    ("gspn_nano", {"merge": "released", "chunk": 3}, (35, 35)),
    ("gspn_nano", {"stem_strides": (2, 2), "depths": (1, 1), "chunk": 2}, (37, 50)),
    ("gspn2_nano", {"chunk": 3}, (29, 40)),
    ("gspn2_nano", {"c_proxy": 1, "global_stages": (1,)}, (40, 33)),
    ("halonet_nano", {"block": (4, 6), "halo": (1, 2)}, (28, 40)),
    ("halonet_nano", {"block": 4, "halo": 1, "border": "clamp"}, (28, 40)),
    ("hilo_nano", {"cell": 3}, (28, 40)),
    ("maxvit_nano", {"window": 3, "stem_stride": 2}, (48, 24)),
    ("maxvit_nano", {"window": 4, "weights_family": "torchvision"}, (32, 48)),
    ("nat_nano", {"kernel": 5}, (28, 40)),
    ("nat_nano", {"padding": "keys", "kernel": 5}, (12, 44)),
    ("power_nano", {"block": 5, "local": 1, "sink": 0}, (28, 40)),
    ("power_nano", {"block": 16}, (28, 40)),
    ("swin_nano", {"window": 5}, (28, 44)),
    ("swin_nano", {"window": 5, "padding": "keys"}, (28, 44)),
    ("twins_nano", {"block": (3, 5), "sr_ratios": (3, 2)}, (28, 40)),
]

GLOBAL = [case for case in CASES if case[0].split("_")[0] in ("gspn", "gspn2", "davit", "maxvit")]


def drawn(name, **config):
    """A small model in float64, none of whose parameters is zero."""
    usual = variant(name).defaults()
    if "heads" in usual:
        config = {"heads": (2, 4), **config}
    model = load_model(name, dims=(8, 16), num_classes=3, device="cpu", **config).double()
    for parameter_name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 and len(parameter) > 1 else 4
        parameter.normal_(std=fan_in**-0.5)
        if parameter.ndim == 1 and parameter_name.endswith("weight"):
            parameter.add_(1)
    return model


def layers_and_units(model, size):
    """Every layer with two of its units: one at the border and one anywhere."""
    for layer, (rows, cols) in zip(model.blocks(), model.grids(*size), strict=True):
        anywhere = tuple(int(torch.randint(n, ())) for n in (rows, cols))
        yield layer, ((rows - 1, int(torch.randint(cols, ()))), anywhere)


def pixels_with_a_gradient(model, layer, units, size):
    """For each unit: the pixels on which a random projection of its channels depends, (H, W) bool.

    What does not depend has a gradient of exactly 0, so no tolerance is needed; in float64 the smallest gradient of a
    pixel that counts is far from underflow (about 1e-50 of the largest, through DaViT's saturated channel attention).
    """
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    features = model.features(image, layer)[0]
    for row, col in units:
        projected = features[:, row, col] @ torch.randn(len(features), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(projected, image, retain_graph=True)
        yield (gradient[0] != 0).any(0).numpy()


@pytest.mark.parametrize(("name", "config", "size"), CASES)
def test_the_field_is_the_set_of_pixels_that_have_a_gradient(name, config, size):
    # With weights and pixels drawn at random no softmax, gate or norm is constant: equality holds for every family.
    # It would not for special weights, of which one that is zero is the simplest: then the set is smaller.
    model = drawn(name, **config)
    for layer, units in layers_and_units(model, size):
        for unit, depends in zip(units, pixels_with_a_gradient(model, layer, units, size), strict=True):
            found = theoretical_field(model, layer, unit, size)
            np.testing.assert_array_equal(found.field, depends, f"{layer} {unit}")
            assert not (found.mixing & ~found.field).any()
            assert found.global_by or np.array_equal(found.mixing, found.field)


@pytest.mark.parametrize(("name", "config", "size"), GLOBAL)
def test_mixing_is_the_set_when_the_weights_switch_every_statistic_off(name, config, size):
    model = drawn(name, **config)
    for module in model.modules():
        if isinstance(module, GlobalResponseNorm):
            module.gamma.zero_()
        elif isinstance(module, SqueezeExcitation):
            module.fc2.weight.zero_()
        elif isinstance(module, ChannelAttention):
            channels = module.proj.in_features
            module.qkv.weight[channels : 2 * channels] = 0  # keys of zero: every channel reads all channels alike
            module.qkv.bias[channels : 2 * channels] = 0
    for layer, units in layers_and_units(model, size):
        for unit, depends in zip(units, pixels_with_a_gradient(model, layer, units, size), strict=True):
            np.testing.assert_array_equal(
                theoretical_field(model, layer, unit, size).mixing, depends, f"{layer} {unit}"
            )


@pytest.mark.parametrize("name", list_models())
def test_every_registered_model_is_known_and_a_unit_depends_on_the_pixels_under_it(name):
    model = variant(name).build({})  # the dependence needs no weights
    size = model.input_size, model.input_size
    layer, (rows, cols) = list(model.blocks())[-1], model.grids(*size)[-1]
    found = theoretical_field(model, layer, (rows - 1, 0), model.input_size)
    assert found.field.shape == found.mixing.shape == size
    below, left = size[0] - size[0] // rows, size[1] // cols
    assert found.mixing[below:, :left].all()
    assert not found.field.flags.writeable


def rectangle(size, rows, cols):
    """(H, W) bool: True in the slices."""
    mask = np.zeros(size, bool)
    mask[rows, cols] = True
    return mask


def test_known_fields_of_first_blocks():
    def field(name, layer, unit, **config):
        return theoretical_field(variant(name).build(config), layer, unit, (64, 64)).field

    def expected(rows, cols):
        return rectangle((64, 64), rows, cols)

    # Swin: windows of 8 positions of 2 pixels; shifted by 4 they join four windows, except in the corner.
    np.testing.assert_array_equal(field("swin_nano", "stage1.block1", (9, 3)), expected(slice(16, 32), slice(16)))
    np.testing.assert_array_equal(field("swin_nano", "stage1.block2", (9, 13)), expected(slice(32), slice(16, 48)))
    np.testing.assert_array_equal(field("swin_nano", "stage1.block2", (0, 0)), expected(slice(16), slice(16)))
    # NAT: 7 positions around the query, moved inside at the border; its tokens are a convolution of 3 with stride 2.
    np.testing.assert_array_equal(field("nat_nano", "stage1.block1", (16, 0)), expected(slice(25, 40), slice(14)))
    # The first query of PowerAttention reads itself alone.
    np.testing.assert_array_equal(field("power_nano", "stage1.block2", (0, 0)), expected(slice(2), slice(2)))


def test_a_chunk_of_one_line_leaves_the_convolutions():
    model = variant("gspn_nano").build({"chunk": 1})
    found = theoretical_field(model, "stage1.block1", (15, 20), (64, 64))
    # The stem: 3 with stride 2, 3; the mixer: 7. In pixels 3 + 2 x 2 + 6 x 2 around the unit's first pixel.
    np.testing.assert_array_equal(found.mixing, rectangle((64, 64), slice(21, 40), slice(31, 50)))
    assert found.field.all()


def test_the_released_merge_reads_mirrored_and_transposed_places():
    aligned, released = (variant("gspn_nano").build({"chunk": 1, "merge": merge}) for merge in ("aligned", "released"))
    own = {unit: theoretical_field(aligned, "stage1.block1", unit, 64).mixing for unit in PLACES}
    found = theoretical_field(released, "stage1.block1", PLACES[0], 64).mixing
    np.testing.assert_array_equal(found, np.logical_or.reduce(list(own.values())))


#: A unit on the map of 32 x 32 positions, and the places that its four directions read.
PLACES = ((5, 12), (12, 5), (5, 19), (19, 5))


@pytest.mark.parametrize(
    ("name", "layer", "global_by"),
    [
        ("gspn_nano", "stage1.block1", ["stage1.block1: global response norm"]),
        (
            "gspn_nano",
            "stage2.block1",
            [f"{block}: global response norm" for block in ("stage1.block1", "stage1.block2", "stage2.block1")],
        ),
        ("davit_nano", "stage1.block1.spatial", []),
        ("davit_nano", "stage1.block1.channel", ["stage1.block1.channel: channel attention"]),
        ("davit_nano", "stage2.block1.spatial", ["stage1.block1.channel: channel attention"]),
        ("maxvit_nano", "stage1.block1.window", ["stage1.block1: squeeze-excitation"]),
        ("maxvit_nano", "stage2.block1.grid", [f"stage{i}.block1: squeeze-excitation" for i in (1, 2)]),
        ("swin_nano", "stage2.block2", []),
        ("hilo_nano", "stage2.block2", []),
    ],
)
def test_statistics_on_the_way_to_the_unit_are_named_with_their_layer(name, layer, global_by):
    found = theoretical_field(variant(name).build({}), layer, (0, 0), 64)
    assert isinstance(found, TheoreticalField)
    assert found.global_by == tuple(global_by)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("stage1.block1", (32, 0), 64), "position must be a (row, col) on the 32 rows and 32 columns of stage"),
        (("stage1.block1", (0, -1), 64), "position must be a (row, col) on the 32 rows and 32 columns of stage"),
        (("stage1.block1", 3, 64), "position must be a (row, col); got 3."),
        (("stage1.block1", (0.5, 0), 64), "position must be a (row, col); got (0.5, 0)."),
        (("stage1.blok1", (0, 0), 64), "There is no layer named 'stage1.blok1' in swin_nano; did you mean stage1."),
        (("stage1.block1", (0, 0), 63), "swin_nano takes images whose sides are multiples of 4 pixels; got 63 x 63."),
        (("stage1.block1", (0, 0), "64"), "size must be a whole number or a (rows, cols) pair of them; got '64'."),
        (("stage1.block1", (0, 0), None), "size must be a whole number or a (rows, cols) pair of them; got None."),
    ],
)
def test_what_does_not_exist_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as raised:
        theoretical_field(variant("swin_nano").build({}), *arguments)
    assert str(raised.value).startswith(sentence)


def test_a_module_that_is_no_model_of_the_registry_is_refused():
    with pytest.raises(
        TypeError, match=r"^model must be a model of the registry, as load_model returns; got Conv2d\.$"
    ):
        theoretical_field(torch.nn.Conv2d(3, 3, 3), "stage1.block1", (0, 0), 64)


# The networks of google-research/receptive_field, as TF-Slim defines them. Padding is what lies before the map: a
# pooling of 3 with stride 2 over an even map has its "same" padding behind it.
ALEXNET_V2 = [
    Convolution(11, 4, name="conv1"),
    Convolution(3, 2, name="pool1"),
    Convolution(5, 1, 2, name="conv2"),
    Convolution(3, 2, name="pool2"),
    *[Convolution(3, 1, 1, name=f"conv{n}") for n in (3, 4, 5)],
    Convolution(3, 2, name="pool5"),
]
VGG_16 = [
    layer
    for stage, convolutions in enumerate((2, 2, 3, 3, 3), 1)
    for layer in [Convolution(3, 1, 1, name=f"conv{stage}")] * convolutions + [Convolution(2, 2, name=f"pool{stage}")]
]


def resnet_v1(*units):
    """The longest path: a block strides in the 3 x 3 convolution of its last unit, the last block nowhere."""
    layers = [Convolution(7, 2, 3, name="conv1"), Convolution(3, 2, name="pool1")]
    for block, count in enumerate(units, 1):
        strides = [1] * (count - 1) + [2 if block < len(units) else 1]
        for stride in strides:
            layers += [Convolution(1), Convolution(3, stride, 1, name=f"block{block}"), Convolution(1)]
    return layers


@pytest.mark.parametrize(
    ("layers", "published"),
    [
        (ALEXNET_V2, (195, 32, 64)),
        (VGG_16, (212, 32, 90)),
        (resnet_v1(3, 4, 6, 3), (483, 32, 239)),
        (resnet_v1(3, 4, 23, 3), (1027, 32, 511)),
        (resnet_v1(3, 8, 36, 3), (1507, 32, 751)),
        ([], (1, 1, 0)),
    ],
)
def test_sizes_of_known_networks_are_the_published_ones(layers, published):
    assert receptive_field_size(layers) == FieldSize(*published)


def test_the_centre_follows_the_published_formula():
    size = receptive_field_size(resnet_v1(3, 4, 6, 3))
    assert [size.centre(feature) for feature in (0, 1, 7)] == [2.0, 34.0, 226.0]  # -239 + 32 f + 241
    assert FieldSize(2, 2, 0).centre(3) == 6.5


def test_a_layer_that_cannot_be_is_refused():
    for wrong in ({"kernel": 0}, {"kernel": 3, "stride": 0}, {"kernel": 3, "padding": -1}, {"kernel": 3.0}):
        name, value = list(wrong.items())[-1]
        with pytest.raises(ValueError, match=rf"^{name} must be a whole number of at least [01]; got {value}\.$"):
            Convolution(**wrong)
