"""SPN, SCNN and CSPN as layers: each is its paper's formula, and reads the pixels that it can depend on."""

import pytest
import torch
import torch.nn.functional as F

from kernels.backends import BackendUnavailable
from kernels.isotropic import NEIGHBOURS, normalise_affinity
from kernels.propagation import DIRECTIONS, propagate
from workbench.analysis.latency import mixing_cost
from workbench.analysis.theoretical import theoretical_field
from workbench.images import load_image
from workbench.models import load_model
from workbench.models.ancestors import IsotropicDiffusion, SignedPropagation, SlicePasses
from workbench.models.checkpoint import save
from workbench.operators import operator

NAMES = ("spn_nano", "scnn_nano", "cspn_nano")

LAYERS = {
    "spn": lambda: SignedPropagation(5, 4, 3, None),
    "spn, chunks": lambda: SignedPropagation(5, 4, 3, 3),
    "scnn": lambda: SlicePasses(5, 4, 5),
    "cspn": lambda: IsotropicDiffusion(5, 4, 3, 6),
}


@pytest.fixture
def layer(randomise):
    """A mixing layer in float64 with random weights in every parameter."""

    def make(name):
        op = LAYERS[name]().double()
        randomise(op, seed=len(name))
        return op.requires_grad_(False)

    return make


def drawn(name, **config):
    """A small model in float64, none of whose parameters is zero."""
    model = load_model(name, dims=(8, 16), num_classes=3, device="cpu", **config).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_projects_and_convolves_mixes_normalises_and_projects_back(name, layer, agree):
    op, x = layer(name), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    state = op.freeze(x)
    agree(state.value, F.conv2d(conv1x1(x, op.in_proj.weight), op.conv2d.weight, padding=3, groups=4), 60)
    mean, variance = mixed(state).mean(1, keepdim=True), mixed(state).var(1, keepdim=True, unbiased=False)
    normed = (mixed(state) - mean) / (variance + op.out_norm.eps).sqrt()
    normed = normed * op.out_norm.weight[:, None, None] + op.out_norm.bias[:, None, None]
    agree(op(x), conv1x1(normed, op.out_proj.weight), 400)


def conv1x1(x, weight):
    return torch.einsum("oc,bchw->bohw", weight, x)


def mixed(state):
    return state.mix(state.value)


@pytest.mark.parametrize("name", ["spn", "spn, chunks"])
def test_spns_gates_are_stable_and_its_rows_sum_to_1(name, layer, agree):
    op, x = layer(name), 3 * torch.randn(1, 5, 7, 6, dtype=torch.float64)
    state = op.freeze(x)
    assert state.gates.abs().sum(1).max() <= 1 + 1e-12
    assert state.gates.min() < 0 < state.gates.max()
    ones = torch.ones_like(state.value)
    agree(state.modulated(ones), torch.ones(4, *ones.shape, dtype=torch.float64), 20)
    h = propagate(state.value, state.gates, state.lam, chunk=op.chunk, backend="reference")
    agree(mixed(state), sum(op.m_conv.weight.flatten()[k] * h[k] for k in range(4)), 20)
    agree(state.contributions(state.value).sum(0), mixed(state), 20)
    general = state.skip * state.value + state.u * h  # GSPN's formula, of which SPN is the case u = 1, D = 0
    assert torch.equal(general, h)


def test_spns_gates_are_predicted_direction_by_direction_from_few_channels(layer, agree):
    op, x = layer("spn"), torch.randn(1, 5, 4, 3, dtype=torch.float64)
    state = op.freeze(x)
    logits = F.conv2d(F.conv2d(state.value, op.state_down.weight), op.signed_conv_up.weight)
    logits = logits.view(1, 4, 3, 4, 4, 3)  # image, direction, gate, channel, row, col
    k, position = DIRECTIONS.index("top_bottom"), (2, 1)
    chosen = logits[0, k, :, :, position[0], position[1]]
    agree(state.gates[k, :, 0, :, position[0], position[1]], chosen / chosen.abs().sum(0).clamp(min=1), 60)


def test_scnns_layer_is_its_derivative_at_the_image_applied_to_the_value(layer, agree):
    op, x = layer("scnn"), torch.randn(1, 5, 6, 7, dtype=torch.float64)
    state = op.freeze(x)
    lines = state.value
    for direction, conv in op.passes.items():  # down, up, right, left
        axis = 2 if direction in ("top_bottom", "bottom_top") else 3
        order = list(range(lines.shape[axis]))
        if direction in ("bottom_top", "right_left"):
            order.reverse()
        done = [lines.select(axis, order[0])]
        for t in order[1:]:
            done.append(lines.select(axis, t) + F.conv1d(done[-1], conv.weight, padding=2).relu())
        if direction in ("bottom_top", "right_left"):
            done.reverse()
        lines = torch.stack(done, axis)
    agree(mixed(state), lines, 200)
    agree(state.contributions(state.value).sum(0), lines, 200)


def test_cspns_layer_takes_from_eight_neighbours_and_the_first_value(layer, agree):
    op, x = layer("cspn"), torch.randn(1, 5, 5, 4, dtype=torch.float64)
    state = op.freeze(x)
    logits = F.conv2d(F.conv2d(state.value, op.state_down.weight), op.affinity_conv_up.weight).view(1, 8, 4, 5, 4)
    agree(state.logits, logits, 60)
    kappa, h = normalise_affinity(logits), state.value
    for _ in range(6):
        padded = F.pad(h, (1, 1, 1, 1))
        near = [padded[:, :, 1 + r : 6 + r, 1 + c : 5 + c] for r, c in NEIGHBOURS]
        h = (1 - kappa.sum(1)) * state.value + sum(kappa[:, j] * near[j] for j in range(8))
    agree(mixed(state), h, 100)
    agree(state.mix(torch.ones_like(h)), torch.ones_like(h), 60)


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("spn_nano", {}, (29, 40)),
        ("spn_nano", {"chunk": 3}, (40, 29)),
        ("cspn_nano", {"steps": 2, "depths": (1, 1)}, (37, 50)),
        ("cspn_nano", {"steps": 5, "stem_strides": (2, 2), "depths": (1, 1)}, (50, 33)),
    ],
)
def test_the_field_is_the_set_of_pixels_that_have_a_gradient(name, config, size):
    model = drawn(name, **config)
    x = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    for layer, (rows, cols) in zip(model.blocks(), model.grids(*size), strict=True):
        unit = (rows - 1, int(torch.randint(cols, ())))
        features = model.features(x, layer)[0, :, unit[0], unit[1]]
        (gradient,) = torch.autograd.grad(features @ torch.randn(len(features), dtype=torch.float64), x)
        found = theoretical_field(model, layer, unit, size)
        assert torch.equal(torch.from_numpy(found.field.copy()), (gradient[0] != 0).any(0))
        assert found.global_by == ()


def test_scnn_can_depend_on_what_its_kernels_reach_when_every_relu_lets_through(monkeypatch):
    """For one image a ReLU may cut a path; the theoretical field is what some image can have."""
    model, size = drawn("scnn_nano", kernel=3, depths=(1, 1)), (21, 26)
    x = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)

    def gradient(layer, unit):
        features = model.features(x, layer)[0, :, unit[0], unit[1]]
        (found,) = torch.autograd.grad(features @ torch.randn(len(features), dtype=torch.float64), x)
        return (found[0] != 0).any(0)

    cases = [(layer, (rows - 1, 2)) for layer, (rows, _) in zip(model.blocks(), model.grids(*size), strict=True)]
    fields = [torch.from_numpy(theoretical_field(model, *case, size).field.copy()) for case in cases]
    for case, field in zip(cases, fields, strict=True):
        assert not (gradient(*case) & ~field).any()
    monkeypatch.setattr("workbench.models.ancestors.activity", lambda v, w, **_: torch.ones(4, *v.shape).bool())
    for case, field in zip(cases, fields, strict=True):
        assert torch.equal(gradient(*case), field)


@pytest.mark.parametrize("name", NAMES)
def test_operators_name_what_ran_and_what_is_read(name):
    model, image, layer = load_model(name, device="cpu"), load_image("coffee", 64), "stage1.block1"
    op = operator(model, image, layer)
    expected = {
        "spn_nano": {"kind": "propagation", "merge": "aligned", "chunk": None},
        "scnn_nano": {"kind": "convolution", "pattern": "slices of 9 positions, 4 passes in turn"},
        "cspn_nano": {"kind": "diffusion", "pattern": "24 steps to the 8 neighbours"},
    }[name]
    assert expected.items() <= op.info.items()
    assert op.info["backend"] == "cpu"
    assert op.exact == ("linearised" not in op.info) == (name != "scnn_nano")
    model.set_backend("reference")
    assert operator(model, image, layer).info["backend"] == "reference"


@pytest.mark.parametrize("name", ["scnn_nano", "cspn_nano"])
def test_layers_without_triton_say_so(name):
    model = load_model(name, device="cpu", backend="triton")
    with pytest.raises(BackendUnavailable, match="has no Triton kernels: use backend='reference'"):
        model(torch.zeros(1, 3, 64, 64))


def test_the_cost_of_mixing_is_that_of_its_formula():
    image = load_image("coffee", 64)
    costs = {
        name: mixing_cost(operator(load_model(name, device="cpu"), image, "stage1.block1").state) for name in NAMES
    }
    pixels = 32 * 32
    assert costs["spn_nano"] == (4 * 60 * pixels * (2 + 4 * 4), 9 * 4 * 60 * pixels)
    assert costs["scnn_nano"] == (4 * (2 * 8 * pixels + 4 * 8 * 8 * 9), 4 * 8 * pixels * (2 * 8 * 9 + 1))
    assert costs["cspn_nano"] == (4 * 60 * pixels * 10, 60 * pixels * (25 + 16 * 24))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("spn_nano", {"dims": (6, 10), "d_state": 3, "ratio": 2.0, "chunk": 4}),
        ("scnn_nano", {"dims": (6, 10), "inner": 5, "kernel": 3}),
        ("cspn_nano", {"dims": (6, 10), "d_state": 3, "steps": 7}),
    ],
)
def test_a_file_that_we_write_brings_its_settings_along(name, config, tmp_path):
    original = load_model(name, seed=4, device="cpu", **config)
    save(original, tmp_path / "ours.safetensors")
    model = load_model(name, weights=tmp_path / "ours.safetensors", device="cpu")
    assert model.config == original.config
    x = torch.randn(1, 3, 32, 40)
    assert torch.equal(model(x), original(x))


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("scnn_nano", {"kernel": 4}, "kernel must be odd, so that a line is read symmetrically; got 4"),
        ("spn_nano", {"ratio": 0}, "ratio must be a number that gives every stage a channel to mix; got 0"),
        ("cspn_nano", {"ratio": float("inf")}, "ratio must be a number that gives every stage a channel to mix"),
        ("cspn_nano", {"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ("spn_nano", {"dims": None}, "dims must be a list of whole numbers; got None"),
    ],
)
def test_settings_that_make_no_model_are_refused(name, config, words):
    with pytest.raises(ValueError, match=words):
        load_model(name, **config)
