"""GSPN-2: its size as the paper states it, its layer as the formula, and gates that the channels of a proxy share."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from workbench.models import load_model
from workbench.models.checkpoint import save
from workbench.models.expression import parse, spell
from workbench.models.gspn2 import Block, LocalPerception, ProxyPropagation
from workbench.models.registry import variant


@pytest.fixture
def layer(randomise):
    """A mixing layer in float64 with random weights in every parameter."""

    def make(channels=5, c_proxy=2, d_state=3, chunk=None, shared_gates=True):
        op = ProxyPropagation(channels, c_proxy, d_state, chunk, shared_gates).double()
        randomise(op, seed=channels + c_proxy)
        return op.requires_grad_(False)

    return make


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# Sizes


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("gspn2_tiny", {}, 24_532_616),
        ("gspn2_tiny", {"depths": (2, 2, 7, 2)}, 22_953_212),
        ("gspn2_tiny", {"shared_gates": False}, 24_532_616 + 16 * 12 * 8),
        ("gspn2_nano", {}, 317_240),
    ],
)
def test_the_parameters_count_as_documented(name, config, count):
    assert sum(p.numel() for p in variant(name).build(config).parameters()) == count


def multiply_adds(model):
    """Those of convolutions and products, as torch counts them, and seven of scan and merge, which it does not see."""
    size = model.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, size, size))
    channels = [mixer.l_conv_up.out_channels for _, mixer in model.blocks().values()]  # of all directions
    scans = sum(count * rows * cols for count, (rows, cols) in zip(channels, model.grids(size, size), strict=True))
    return counter.get_total_flops() // 2 + 7 * scans


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("gspn2_tiny", {}, 4_302_208_304),
        ("gspn2_tiny", {"depths": (2, 2, 7, 2)}, 3_591_353_936),
        ("gspn_tiny", {}, 5_295_590_400),  # published: 5.3 G
    ],
)
def test_the_multiply_adds_count_as_documented(name, config, count):
    assert multiply_adds(load_model(name, device="cpu", **config)) == count


def test_the_nano_has_the_layers_and_grids_of_the_nano_of_gspn():
    ours, theirs = (variant(name).build({}) for name in ("gspn2_nano", "gspn_nano"))
    assert ours.layers() == theirs.layers()


def test_chunks_follow_the_rule_of_gspn_or_are_the_same_in_every_block():
    tiny = variant("gspn2_tiny")
    chunks = [mixer.chunk for _, mixer in tiny.build({}).blocks().values()]
    assert chunks == [2] * 6 + [None] * 7 + [2] + [None] * 2
    assert {mixer.chunk for _, mixer in tiny.build({"chunk": 5}).blocks().values()} == {5}
    assert {mixer.chunk for _, mixer in variant("gspn2_nano").build({}).blocks().values()} == {None}


# The mixing layer


def scanned(op, x):
    """The mixing layer written out, the scan pixel by pixel, for one image (C, H, W)."""

    def maps(name, *order):
        return torch.einsum("or,rhw->ohw", getattr(op, name).weight.flatten(1), p).unflatten(0, order)

    v = torch.einsum("oc,chw->ohw", op.proxy_down.weight, x)
    p = torch.einsum("oc,chw->ohw", op.state_down.weight, x)
    logits = maps("w_conv_up", 3, 4, -1)
    lam, u, skip = (maps(name, 4, -1) for name in ("l_conv_up", "u_conv_up", "d_conv"))
    y = torch.zeros_like(v)
    for k in range(4):
        gates = logits[:, k].sigmoid().expand(3, *v.shape)
        y += op.m_conv.weight[0, k] * (u[k] * one_scan(op, k, gates, lam[k] * v) + skip[k] * v)
    z = F.layer_norm((x + torch.einsum("oc,chw->ohw", op.proxy_up.weight, y)).permute(1, 2, 0), (len(x),))
    z = (z * op.out_norm.weight + op.out_norm.bias).permute(2, 0, 1)
    norm = z.flatten(1).norm(dim=1).view(-1, 1, 1)
    return op.grn.gamma[0] * z * norm / (norm.mean() + 1e-6) + op.grn.beta[0] + z


def one_scan(op, k, gates, source):
    """h of one direction; gates: the sigmoids of the logits, (3, c, H, W)."""
    _, height, width = source.shape
    lines, cross = (width, height) if k in (0, 2) else (height, width)
    h = torch.zeros_like(source)
    places = [
        lambda t, n: (n, t),
        lambda t, n: (t, n),
        lambda t, n: (n, lines - 1 - t),
        lambda t, n: (lines - 1 - t, n),
    ]
    for t in range(lines):
        for n in range(cross):
            row, col = places[k](t, n)
            h[:, row, col] = source[:, row, col]
            neighbours = [(g, n + g - 1) for g in range(3) if 0 <= n + g - 1 < cross]
            total = sum(gates[g, :, row, col] for g, _ in neighbours)
            if t % (op.chunk or lines):
                for g, at in neighbours:
                    before = places[k](t - 1, at)
                    h[:, row, col] += gates[g, :, row, col] / total * h[:, before[0], before[1]]
    return h


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, (5, 4)),
        ({"chunk": 2}, (4, 7)),
        ({"c_proxy": 1, "chunk": 3}, (5, 5)),
        ({"c_proxy": 4, "shared_gates": False}, (3, 5)),
        ({}, (1, 1)),
    ],
)
def test_the_layer_equals_its_formula_pixel_by_pixel(settings, grid, layer):
    op, x = layer(**settings), images(2, 5, *grid)
    torch.testing.assert_close(op(x), torch.stack([scanned(op, image) for image in x]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("c_proxy", "shared", "gates"), [(2, True, 1), (4, True, 1), (4, False, 4), (1, False, 1)])
def test_what_is_frozen_has_the_channels_of_the_proxy_and_gates_that_they_share(c_proxy, shared, gates, layer):
    state = layer(c_proxy=c_proxy, shared_gates=shared).freeze(images(3, 5, 4, 6))
    assert state.value.shape == (3, c_proxy, 4, 6)
    assert state.gates.shape == (4, 3, 3, gates, 4, 6)
    assert state.lam.shape == state.u.shape == state.skip.shape == (4, 3, c_proxy, 4, 6)
    assert state.weight.shape == (4,)
    assert all(maps.is_contiguous() for maps in (state.value, state.gates, state.lam, state.u, state.skip))
    torch.testing.assert_close(state.gates.sum(1), torch.ones(4, 3, gates, 4, 6, dtype=torch.float64))


def test_gates_of_each_channel_that_are_alike_do_what_shared_gates_do(layer):
    shared, own, x = layer(c_proxy=3), layer(c_proxy=3, shared_gates=False), images(1, 5, 6, 5)
    weights = shared.state_dict()
    weights["w_conv_up.weight"] = weights["w_conv_up.weight"].repeat_interleave(3, 0)
    assert not torch.allclose(own(x), shared(x))
    own.load_state_dict(weights)
    torch.testing.assert_close(own(x), shared(x))


@pytest.mark.parametrize(("axis", "pairs"), [(3, (0, 2)), (2, (1, 3))])
def test_a_flipped_image_gives_the_flipped_map_where_the_directions_of_a_pair_have_the_same_weights(axis, pairs, layer):
    op, x = layer(chunk=None), images(1, 5, 4, 6)
    assert not torch.allclose(op(x.flip(axis)), op(x).flip(axis))
    first, second = pairs
    across = [k for k in range(4) if k not in pairs]
    gates = op.w_conv_up.weight.view(3, 4, -1)
    gates[:, second] = gates[:, first]
    gates[2, across] = gates[0, across]  # the directions along which the flip exchanges the neighbours
    for conv in (op.l_conv_up, op.u_conv_up, op.d_conv):
        maps = conv.weight.view(4, -1)
        maps[second] = maps[first]
    op.m_conv.weight[0, second] = op.m_conv.weight[0, first]
    torch.testing.assert_close(op(x.flip(axis)), op(x).flip(axis))


# The local perception unit and the block


def test_a_perception_unit_with_weights_of_zero_changes_nothing():
    unit = LocalPerception(4)
    for parameter in unit.parameters():
        parameter.data.zero_()
    x = torch.randn(2, 4, 5, 7)
    assert torch.equal(unit(x), x)


def test_a_perception_unit_adds_to_each_channel_a_convolution_of_itself_and_nothing_else(randomise):
    unit = LocalPerception(3).double()
    randomise(unit, seed=1)
    x = images(1, 3, 5, 4)
    with torch.no_grad():
        added = unit(x) - x
        window = F.pad(x, (1, 1, 1, 1))[0, 2, 3:6, 1:4]  # around (3, 1)
        expected = (unit.conv.weight[2, 0] * window).sum() + unit.conv.bias[2]
    torch.testing.assert_close(added[0, 2, 3, 1], expected)


def test_a_block_perceives_before_it_propagates_and_before_its_feed_forward_part(randomise):
    block = Block(4, 2, 3, None, True).double()
    randomise(block, seed=2)
    x = images(1, 4, 5, 6)
    with torch.no_grad():
        first = block.lpu(x)
        second = block.lpu2(first + block.op(block.norm(first)))
        torch.testing.assert_close(block(x), second + block.mlp(block.norm2(second)))


# The model


def test_gradients_reach_every_parameter(small, randomise):
    model = small("gspn2_nano", chunk=3)
    randomise(model, seed=3)
    model.requires_grad_(True)
    model(torch.randn(2, 3, 36, 44)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_gspn2_tiny_classifies_images_of_other_sizes_than_224():
    model = load_model("gspn2_tiny", seed=4, device="cpu")
    assert model(torch.randn(2, 3, 96, 72)).shape == (2, 1000)
    assert [layer.grid for layer in model.layers((96, 72))][::5] == [(24, 18), (12, 9), (6, 5), (3, 3)]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"c_proxy": 0}, "c_proxy must be a whole number of at least 1; got 0."),
        ({"c_proxy": 55}, "c_proxy must be at most the channels of each stage; got 55 and dims (54, 108)."),
        ({"shared_gates": 1}, "shared_gates must be True or False; got 1."),
        ({"global_stages": 3}, "global_stages must be a list of stages, counted from 0; got 3."),
        ({"chunk": 0}, "chunk must be a whole number of at least 1; got 0."),
        ({"depths": (1, 2, 3)}, "dims and depths must name the same number of stages; got dims (54, 108), depths (1,"),
        ({"merge": "released"}, "gspn2_nano has no setting 'merge': its settings are dims, depths, "),
    ],
)
def test_a_wrong_setting_is_answered_with_one_sentence(config, sentence):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$") as error:
        load_model("gspn2_nano", **config)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"c_proxy": 3, "shared_gates": False, "d_state": 5, "dims": (12, 20), "depths": (1, 3)},
        {"c_proxy": 1, "shared_gates": False, "chunk": 4},
    ],
)
def test_a_saved_model_is_read_again_with_its_settings(config, tmp_path):
    model = load_model("gspn2_nano", seed=5, device="cpu", **config)
    save(model, tmp_path / "ours.safetensors")
    again = load_model("gspn2_nano", weights=tmp_path / "ours.safetensors", device="cpu")
    assert (again.config, again.weights_sha256) == (model.config, model.weights_sha256)
    assert again.layout == f"workbench, {len(model.state_dict())} keys"
    with pytest.raises(ValueError, match="not one for gspn_nano: load it as gspn2_nano, gspn2_tiny"):
        load_model("gspn_nano", weights=tmp_path / "ours.safetensors")


def test_its_settings_can_be_written_as_text():
    assert spell(parse("gspn2_nano(chunk=8, shared_gates=false, c_proxy=4)")) == (
        "gspn2_nano(c_proxy=4, shared_gates=false, chunk=8)"
    )
    assert spell(parse("gspn2_nano(c_proxy=2, shared_gates=true, chunk=none)")) == "gspn2_nano"
