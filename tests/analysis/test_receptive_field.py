"""Effective receptive fields: maps known on paper, laws that every map keeps, and requests that are refused."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from kernels.propagation import DIRECTIONS, normalise_gates, propagate
from workbench.analysis.receptive_field import (
    CHANNELS,
    GRADIENTS,
    THRESHOLDS,
    ReceptiveFieldSpec,
    raw_map,
    receptive_field,
    resolve,
    stream,
)
from workbench.images import load_image
from workbench.models import load_model
from workbench.models.base import Layer

SIZE = (27, 38)


@pytest.fixture
def images():
    """Pictures whose pixels are all positive, so that positive weights give positive activations."""
    return torch.rand(3, 3, *SIZE) + 0.1


class Net(nn.Module):
    """Convolutions and curved activations, 4 pixels to a cell along each side, and `scale` times the output."""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, (5, 7), 2, (2, 3)), nn.GELU(), nn.Conv2d(6, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 5, 3, 1, 1)
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.body(x)


class Scan(nn.Module):
    """The four directions of a line propagation with fixed gates, added up."""

    def __init__(self, size):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        logits = torch.randn(4, 3, 1, 1, *size, generator=generator, dtype=torch.float64)
        self.register_buffer("gates", normalise_gates(logits, backend="reference"))

    def forward(self, x):
        gates = self.gates.expand(-1, -1, len(x), -1, -1, -1)
        return propagate(x, gates, directions=DIRECTIONS, backend="reference").sum(0)


def uniform(kernel, count):
    """`count` convolutions whose weights are all equal."""
    layers = [nn.Conv2d(3 if n == 0 else 2, 2, kernel, padding=kernel // 2, bias=False) for n in range(count)]
    for layer in layers:
        nn.init.constant_(layer.weight, 0.1)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("kernel", "count"), [(3, 1), (3, 4), (5, 2), (7, 3)])
def test_a_stack_of_uniform_convolutions_has_the_analytic_kernel(images, kernel, count):
    result = receptive_field(uniform(kernel, count), images, unit=(13, 18), dtype="float64")
    line = np.ones(1)
    for _ in range(count):
        line = np.convolve(line, np.ones(kernel) / kernel)
    expected, reach = np.zeros(SIZE), len(line) // 2
    expected[13 - reach : 14 + reach, 18 - reach : 19 + reach] = np.outer(line, line)
    assert result["map"].values == pytest.approx(expected, abs=1e-15)
    variance = count * (kernel**2 - 1) / 12
    assert float(result["sigma_major"]) == pytest.approx(math.sqrt(variance))
    assert float(result["anisotropy"]) == pytest.approx(0, abs=1e-7)
    assert result["unit_centre"].values.tolist() == [13, 18]
    assert result["centre_of_mass"].values == pytest.approx([13, 18])


def test_a_scan_with_fixed_gates_has_the_row_of_its_dense_matrix():
    size, unit = (9, 12), (3, 7)
    scan = Scan(size)
    one_hot = torch.eye(9 * 12, dtype=torch.float64).view(-1, 1, *size)
    columns = torch.stack([scan(column[None])[0, 0].flatten() for column in one_hot])  # columns[q, p] = A[p, q]
    row = columns[:, unit[0] * 12 + unit[1]].reshape(size).numpy()
    found = receptive_field(scan, torch.rand(2, 3, *size) + 0.1, unit=unit, dtype="float64")
    assert found["map"].values == pytest.approx(row / row.sum(), abs=1e-15)
    assert found.attrs["gradient_mass"] == pytest.approx(3 * row.sum())  # three colours, each with the same row
    assert raw_map(found).values == pytest.approx(3 * row)


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_scale_of_the_output_changes_no_number(images, scale, gradient):
    plain, scaled = (receptive_field(Net(c), images, unit=(2, 6), gradient=gradient) for c in (1.0, scale))
    for name in plain.data_vars:
        # A pixel whose weights nearly cancel is rounded anew at every scale: the map is compared at its maximum.
        # Degrees are relative to a right angle.
        atol = 1e-6 * {"map": float(plain["map"].max()), "orientation": 90}.get(name, 0)
        np.testing.assert_allclose(scaled[name].values, plain[name].values, rtol=1e-6, atol=atol, err_msg=str(name))
    power = 2 if gradient == "square" else 1
    assert scaled.attrs["gradient_mass"] == pytest.approx(plain.attrs["gradient_mass"] * scale**power, rel=1e-5)


def test_shifting_the_picture_and_the_unit_shifts_the_map(images):
    large = torch.nn.functional.pad(torch.rand(2, 3, 24, 28), (20, 20, 20, 20))
    moved = large.roll((8, -4), (2, 3))
    here, there = (
        receptive_field(Net(), x, unit=unit, dtype="float64") for x, unit in ((large, (8, 9)), (moved, (10, 8)))
    )
    assert np.roll(here["map"].values, (8, -4), (0, 1)) == pytest.approx(there["map"].values, abs=1e-15)
    assert there["centre_of_mass"].values - here["centre_of_mass"].values == pytest.approx([8, -4])


def test_the_centre_unit_of_an_even_grid_has_its_own_centre():
    patches = nn.Conv2d(3, 2, 32, 32, bias=False)
    nn.init.constant_(patches.weight, 1)
    result = receptive_field(patches, torch.ones(1, 3, 1024, 1024))
    assert result.attrs["spec"]["unit"] == ((16, 16),)
    assert result["unit_centre"].values.tolist() == [527.5, 527.5]
    assert result["centre_of_mass"].values == pytest.approx([527.5, 527.5])
    assert float(result["share_square"].sel(side=32)) == pytest.approx(1)
    assert float(result["share_square"].sel(side=16)) == pytest.approx(1 / 4)
    assert float(result["r"].sel(threshold=0.99)) == pytest.approx(0.99 * (32 / 1024) ** 2, rel=1e-3)


@pytest.mark.parametrize("channels", [*CHANNELS, "channel 3"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_channels_and_colours_are_reduced_as_their_names_say(images, channels, gradient):
    net, found = Net().double(), []
    for image in images.double():
        x = image[None].requires_grad_()
        unit = net(x)[0, :, 2, 5]
        value = {
            "relu_sum": unit[unit > 0].sum(), "sum": unit.sum(), "mean": unit.sum() / 5, "abs_sum": unit.abs().sum(),
            "channel 3": unit[3],
        }[channels]  # fmt: skip
        (g,) = torch.autograd.grad(value, x)
        g = g[0].numpy()
        found.append(
            {
                "relu": np.maximum(g, 0).sum(0), "abs": abs(g).sum(0), "square": (g**2).sum(0),
                "relu_of_sum": np.maximum(g.sum(0), 0),
            }[gradient]
        )  # fmt: skip
    mean = np.mean(found, 0)
    result = receptive_field(Net(), images, unit=(2, 5), channels=channels, gradient=gradient, dtype="float64")
    assert result["map"].values == pytest.approx(mean / mean.sum(), abs=1e-15)
    assert result.attrs["gradient_mass"] == pytest.approx(mean.sum())
    assert result["map"].values.sum() == pytest.approx(1)


def test_several_units_are_those_that_are_computed_alone(images):
    several = receptive_field(Net(), images, unit="2x3", batch=2)
    cells = [(1, 1), (1, 5), (1, 8), (5, 1), (5, 5), (5, 8)]
    assert [*zip(several["unit_row"].values.tolist(), several["unit_col"].values.tolist(), strict=True)] == cells
    assert int(several["count"]) == 3
    for n, cell in enumerate(cells):
        alone = receptive_field(Net(), images, unit=cell, batch=2)
        assert several.attrs["gradient_mass"][n] == alone.attrs["gradient_mass"]
        for name in set(alone.data_vars):
            ours = several[name] if name in ("count", "nonfinite") else several[name].isel(unit=n)
            if name == "share_square":
                assert np.isnan(ours.values[alone.sizes["side"] :]).all()
                ours = ours.isel(side=slice(alone.sizes["side"]))
            assert np.array_equal(ours.values, alone[name].values, equal_nan=True), name
    assert raw_map(several).isel(unit=2).sum() == pytest.approx(several.attrs["gradient_mass"][2])


def test_a_result_tells_all_that_it_was_computed_from(images):
    net = Net()
    result = receptive_field(net, images, "body.3", (3, 4), channels="channel 2", thresholds=(0.5,), batch=2)
    spec = resolve(net, "body.3", (3, 4), SIZE, channels="channel 2", thresholds=[0.5], batch=2)
    assert ReceptiveFieldSpec(**result.attrs["spec"]) == spec
    assert (spec.layer, spec.unit, spec.unit_name) == ("body.3", ((3, 4),), "(3, 4)")
    assert (spec.size, spec.grid, spec.dtype) == (SIZE, (7, 10), "float32")
    assert "bicubic" in spec.resize
    a = result.attrs
    assert (a["analysis"], a["model"], a["backend"], a["device"]) == ("receptive field", "Net", "torch", "cpu")
    assert (a["images"], a["complete"], a["bad"], a["note"]) == (3, True, [], "")
    assert len(a["images_sha256"]) == len(a["weights_sha256"]) == 64
    assert json.loads(json.dumps(a)) is not None
    assert "theoretical" not in result
    with pytest.raises(FrozenInstanceError):
        spec.layer = "body"


def test_equal_requests_have_equal_bits_and_hashes_and_others_do_not(images):
    first, again = (receptive_field(Net(), images) for _ in range(2))
    xr.testing.assert_identical(first, again)
    other = [
        receptive_field(Net(), images.flip(0)), receptive_field(Net(), images, "body.2"),
        receptive_field(Net(), images, channels="mean"), receptive_field(Net(), images, batch=1),
    ]  # fmt: skip
    heavier, sharper = Net(), Net()
    heavier.body[4].bias.data += 1
    sharper.body[1] = nn.ReLU()  # without a weight of its own
    hashes = [each.attrs["hash"] for each in (first, *other, *(receptive_field(n, images) for n in (heavier, sharper)))]
    assert len(set(hashes)) == len(hashes)


def test_the_registry_has_theory_and_its_own_names():
    model = load_model("davit_nano", seed=1, device="cpu")
    image = load_image("coffee", 64)
    result = receptive_field(model, image)
    a = result.attrs
    assert (a["model"], a["weights"], a["seed"], a["backend"]) == ("davit_nano", "random", 1, "cpu")
    assert (a["weights_sha256"], a["config"]["dims"]) == (model.weights_sha256, (48, 96))
    assert a["spec"]["layer"] == "stage2.block1.channel"
    assert any("channel" in name for name in a["global_by"])
    assert result["theoretical"].values.all()
    assert float(result["mass_outside"]) == 0
    early = receptive_field(model, image, "stage1.block1.spatial", "2x2")
    assert early.attrs["global_by"] == ()
    assert not early["theoretical"].values.all()
    assert (early["theoretical"] == early["theoretical_mixing"]).all()
    assert early["mass_outside"].values.tolist() == [0, 0, 0, 0]
    assert early["theoretical"].dims == ("unit", "row", "col")


def test_units_are_named_cells_of_the_grid():
    def cells(unit):
        spec = resolve(nn.Conv2d(3, 1, 4, 4), unit=unit, size=(24, 40))  # a grid of 6 x 10
        return spec.unit_name, spec.unit

    assert cells("centre") == ("centre", ((3, 5),))
    assert cells((0, 9)) == cells([0, 9]) == cells("(0, 9)") == cells(np.array([0, 9])) == ("(0, 9)", ((0, 9),))
    assert cells("1x1") == ("1x1", ((3, 5),))
    assert cells("2x5")[1] == tuple((row, col) for row in (1, 4) for col in (1, 3, 5, 7, 9))
    assert len(set(cells("6x10")[1])) == 60


REFUSED = [
    ({"unit": "middle"}, r"unit is 'centre', a cell \(row, col\), or a grid .* got 'middle'"),
    ({"unit": (1.5, 2)}, "unit is 'centre'"),
    ({"unit": (7, 2)}, r"cell of the layer's 7 rows and 10 columns; got \(7, 2\)"),
    ({"unit": (0, -1)}, "cell of the layer's 7 rows"),
    ({"unit": "8x2"}, "at most the layer's 7 x 10 cells"),
    ({"unit": "0x2"}, "at least 1 unit"),
    ({"unit": "7x10"}, "at most 64 in all"),
    ({"layer": "body.9"}, r"no layer named 'body.9' in Net; did you mean body"),
    ({"layer": "body.0.weight"}, "no layer named"),
    ({"size": 0}, "size is a whole number of pixels"),
    ({"size": (3, "a")}, "size is a whole number of pixels"),
    ({"size": (99999, 99999)}, "size is of at most 50 megapixels; got 99999 x 99999 pixels"),
    ({"channels": "relu"}, "no channels named 'relu'; did you mean relu_sum"),
    ({"channels": "channel x"}, "no channels named 'channel x'"),
    ({"channels": 3}, "no channels named '3'"),
    ({"gradient": "signed"}, "no gradient named 'signed'"),
    ({"dtype": "bfloat16"}, "no dtype named 'bfloat16'; did you mean"),
    ({"batch": 0}, "batch is a whole number of images"),
    ({"batch": True}, "batch is a whole number of images"),
    ({"thresholds": (0.5, 1.0)}, "thresholds are shares of the mass between 0 and 1"),
    ({"thresholds": ()}, "thresholds are shares"),
    ({"treshold": 0.5}, "no option named 'treshold'; did you mean thresholds"),
]


@pytest.mark.parametrize(("wrong", "sentence"), REFUSED)
def test_a_wrong_request_is_answered_with_one_sentence(wrong, sentence):
    request = {"size": SIZE} | wrong
    with pytest.raises(ValueError, match=sentence) as refusal:
        resolve(Net(), **request)
    assert "\n" not in str(refusal.value)


def test_what_is_no_model_or_gives_no_map_is_refused(images):
    with pytest.raises(ValueError, match=r"needs a torch\.nn\.Module, or methods layers"):
        resolve(lambda x: x)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(7))
    with pytest.raises(ValueError, match=r"a map \(B, C, h, w\); the output of Sequential gives \(1, 7\)"):
        receptive_field(flat, images)
    assert receptive_field(flat, images, "0").attrs["spec"]["layer"] == "0"
    idle = nn.Sequential(nn.Conv2d(3, 4, 3))
    idle.spare = nn.Conv2d(4, 4, 1)
    idle.forward = idle[0].forward
    with pytest.raises(ValueError, match="layer 'spare' does not run in the forward pass of Sequential"):
        receptive_field(idle, images, "spare")
    with pytest.raises(ValueError, match=r"channels 0 to 4; got 'channel 5'"):
        receptive_field(Net(), images, channels="channel 5")
    with pytest.raises(ValueError, match="swin_nano takes images whose sides are multiples of 4"):
        resolve(load_model("swin_nano", device="cpu"), size=65)
    with pytest.raises(ValueError, match=r"size is a whole number of pixels, .* got 0"):
        receptive_field(Net(), images, size=0)
    with pytest.raises(ValueError, match=r"Conv2d does not run on a picture \(1, 3, 27, 38\): .*[Kk]ernel size"):
        receptive_field(nn.Conv2d(3, 4, 30), images)
    with pytest.raises(ValueError, match=r"swin_nano takes images as \(B, 3, rows, cols\); got \(1, 1, 64, 64\)"):
        receptive_field(load_model("swin_nano", device="cpu"), torch.zeros(1, 1, 64, 64))


def test_a_spec_of_another_model_is_noticed(images):
    spec = resolve(Net(), size=SIZE)
    with pytest.raises(ValueError, match="has 7 x 10 cells for images of 27 x 38 pixels; the spec says 7 x 9"):
        next(stream(Net(), images, replace(spec, grid=(7, 9))))


def test_batches_are_small_and_part_of_the_spec():
    net = nn.Conv2d(3, 1, 1)
    batches = {size: resolve(net, size=size).batch for size in (8, 64, 128, 224, 512)}
    assert batches == {8: 8, 64: 4, 128: 1, 224: 1, 512: 1}
    assert resolve(net).size == (224, 224)
    net.input_size = (3, 32, 32)  # whatever that means there
    assert resolve(net).size == (224, 224)
    assert resolve(net).thresholds == THRESHOLDS


class Duck:
    """Not a module, but with the methods of a model of the registry."""

    input_size = 40
    device = "cpu"

    def layers(self, size):
        rows, cols = size
        return (Layer("only", "attention", (rows // 4, cols // 4), (4, 4), ("head 0",)),)

    def features(self, x, layer):
        return torch.nn.functional.avg_pool2d(x.square(), 4)


class Wrapped(nn.Module):
    """A model of the registry and `scale` times its features."""

    def __init__(self, model, scale):
        super().__init__()
        self.model, self.scale = model, scale

    def layers(self, size):
        return self.model.layers(size)

    def features(self, x, layer):
        return self.scale * self.model.features(x, layer)


@pytest.mark.parametrize(("name", "size"), [("gspn_nano", (33, 40)), ("swin_nano", (36, 40))])
def test_a_wrapped_model_has_the_field_of_the_model_on_the_grid_of_its_features(name, size):
    model = load_model(name, device="cpu", **({"padding": "keys"} if name == "swin_nano" else {}))
    image = load_image("coffee", size)
    plain, scaled = receptive_field(model, image), receptive_field(Wrapped(model, 1e6), image)
    assert scaled.attrs["spec"]["grid"] == plain.attrs["spec"]["grid"] == (9, 10)
    assert scaled["map"].values == pytest.approx(plain["map"].values, abs=1e-5 * float(plain["map"].max()))
    assert scaled.attrs["gradient_mass"] == pytest.approx(1e6 * plain.attrs["gradient_mass"], rel=1e-5)


def test_a_model_of_the_registry_with_a_module_of_its_own_has_a_field_without_theory():
    model, image = load_model("swin_nano", device="cpu"), load_image("brick", 32)
    known = receptive_field(model, image)
    block = model.stages[1].blocks[0]
    block.mlp = nn.Sequential(block.mlp, nn.Dropout())  # nobody has said which positions a dropout reads
    result = receptive_field(model, image)
    assert np.array_equal(result["map"], known["map"])
    assert "theoretical" in known
    assert "theoretical" not in result


def test_anything_with_layers_and_features_has_a_field():
    result = receptive_field(Duck(), ["coffee", "brick"])
    assert result.attrs["spec"]["layer"] == "only"
    assert result["map"].shape == (40, 40)
    assert float(result["share_square"].sel(side=4)) == pytest.approx(1)
    with pytest.raises(ValueError, match="no layer named 'other' in Duck"):
        resolve(Duck(), "other")
