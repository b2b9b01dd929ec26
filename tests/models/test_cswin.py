"""CSWin: equal to a construction stripe by stripe from the published names, and its operator is the softmax alone."""

import math
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from workbench.models import load_model
from workbench.models.checkpoint import save
from workbench.models.cswin import StripeAttention, convolve_stripes
from workbench.models.layouts import find_layout
from workbench.models.registry import variant

#: The names of a block in the released files but for its branches, and their shapes for c channels.
BLOCK = {
    "qkv.weight": lambda c: (3 * c, c),
    "qkv.bias": lambda c: (3 * c,),
    "norm1.weight": lambda c: (c,),
    "norm1.bias": lambda c: (c,),
    "proj.weight": lambda c: (c, c),
    "proj.bias": lambda c: (c,),
    "mlp.fc1.weight": lambda c: (4 * c, c),
    "mlp.fc1.bias": lambda c: (4 * c,),
    "mlp.fc2.weight": lambda c: (c, 4 * c),
    "mlp.fc2.bias": lambda c: (c,),
    "norm2.weight": lambda c: (c,),
    "norm2.bias": lambda c: (c,),
}


def official_shapes(dims, depths, classes):
    """Every name in a released file, and its shape."""
    shapes = {
        "stage1_conv_embed.0.weight": (dims[0], 3, 7, 7),
        "stage1_conv_embed.0.bias": (dims[0],),
        "stage1_conv_embed.2.weight": (dims[0],),
        "stage1_conv_embed.2.bias": (dims[0],),
        "norm.weight": (dims[-1],),
        "norm.bias": (dims[-1],),
        "head.weight": (classes, dims[-1]),
        "head.bias": (classes,),
    }
    for i, (channels, depth) in enumerate(zip(dims, depths, strict=True), 1):
        branches = 1 if i == len(dims) else 2
        for block in (f"stage{i}.{j}" for j in range(depth)):
            shapes |= {f"{block}.{name}": shape(channels) for name, shape in BLOCK.items()}
            for n in range(branches):
                shapes[f"{block}.attns.{n}.get_v.weight"] = (channels // branches, 1, 3, 3)
                shapes[f"{block}.attns.{n}.get_v.bias"] = (channels // branches,)
    for i, (channels, following) in enumerate(pairwise(dims), 1):
        shapes |= {f"merge{i}.conv.weight": (following, channels, 3, 3), f"merge{i}.conv.bias": (following,)}
        shapes |= {f"merge{i}.norm.weight": (following,), f"merge{i}.norm.bias": (following,)}
    return shapes


def drawn(shapes):
    """Random tensors of these shapes: norms around 1, weights that keep the scale of their input."""
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        tensors[name] = torch.randn(shape) * scale + (len(shape) == 1 and name.endswith("weight"))
    return tensors


def test_parameters_names_and_shapes_are_the_published_ones():
    model = variant("cswin_tiny").build({})
    sizes = model.config
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_320_552
    shapes = official_shapes(sizes["dims"], sizes["depths"], 1000)
    assert len(shapes) == 418
    file = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    layout = find_layout(file)
    ours = layout.translate(file)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert layout.infer(ours) == {key: sizes[key] for key in ("dims", "depths", "patch", "num_classes")}


def test_the_nano_variant_is_small():
    assert sum(parameter.numel() for parameter in variant("cswin_nano").build({}).parameters()) == 281_706


def test_the_stripes_widen_from_stage_to_stage_and_the_last_stage_reads_the_whole_map():
    model = variant("cswin_tiny").build({})
    names = [mixer.pattern(7, 7).name for _, mixer in model.blocks().values()]
    assert names == [f"cross of stripes of {n}" for n in (1, *[2] * 2, *[7] * 21)] + ["full"]


# The model by hand, from the published names: every stripe is cut out and treated as an image of its own.


def by_hand(tensors, x, depths, heads, split):
    x = F.conv2d(x, *pair(tensors, "stage1_conv_embed.0"), stride=4, padding=2)
    x = norm(tensors, "stage1_conv_embed.2", x.permute(0, 2, 3, 1))
    for i, depth in enumerate(depths, 1):
        for j in range(depth):
            x = block_by_hand(tensors, f"stage{i}.{j}", x, heads[i - 1], None if i == len(depths) else split[i - 1])
        if i < len(depths):
            x = F.conv2d(x.permute(0, 3, 1, 2), *pair(tensors, f"merge{i}.conv"), stride=2, padding=1)
            x = norm(tensors, f"merge{i}.norm", x.permute(0, 2, 3, 1))
    return F.linear(norm(tensors, "norm", x).mean((1, 2)), *pair(tensors, "head"))


def pair(tensors, name):
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def norm(tensors, name, x):
    return F.layer_norm(x, x.shape[-1:], *pair(tensors, name), eps=1e-5)


def block_by_hand(tensors, block, x, heads, width):
    q, k, v = F.linear(norm(tensors, f"{block}.norm1", x), *pair(tensors, f"{block}.qkv")).chunk(3, -1)
    if width is None:
        mixed = branch(q, k, v, heads, *pair(tensors, f"{block}.attns.0.get_v"))
    else:
        mixed = torch.cat([stripes(tensors, block, (q, k, v), heads // 2, width, n) for n in range(2)], -1)
    x = x + F.linear(mixed, *pair(tensors, f"{block}.proj"))
    hidden = F.gelu(F.linear(norm(tensors, f"{block}.norm2", x), *pair(tensors, f"{block}.mlp.fc1")))
    return x + F.linear(hidden, *pair(tensors, f"{block}.mlp.fc2"))


def stripes(tensors, block, qkv, heads, width, n):
    """One branch: n = 0 vertical stripes (runs of columns), n = 1 horizontal ones."""
    axis = 2 - n
    own = [t.chunk(2, -1)[n] for t in qkv]
    lepe = pair(tensors, f"{block}.attns.{n}.get_v")
    cut = zip(*(t.split(width, axis) for t in own), strict=True)
    return torch.cat([branch(*stripe, heads, *lepe) for stripe in cut], axis)


def branch(q, k, v, heads, weight, bias):
    """Softmax attention over all positions of (B, h, w, C), and the depthwise convolution of v."""
    lepe = F.conv2d(v.permute(0, 3, 1, 2), weight, bias, padding=1, groups=v.shape[-1]).permute(0, 2, 3, 1)
    q, k, values = (t.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ values).transpose(1, 2).reshape(v.shape) + lepe


SMALL = {"dims": (8, 16, 32, 48), "depths": (1, 2, 3, 1), "heads": (2, 2, 4, 3), "split": (1, 2, 7, 7)}


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (224, 32), (32, 288)])
def test_a_file_with_the_official_names_gives_the_logits_of_the_model_by_hand(size, tmp_path):
    tensors = drawn(official_shapes(SMALL["dims"], SMALL["depths"], 5))
    torch.save({"state_dict_ema": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "w.pth")
    model = load_model(
        "cswin_tiny", weights=tmp_path / "w.pth", heads=SMALL["heads"], split=SMALL["split"], backend="reference"
    )
    assert (model.layout, model.config["dims"]) == (f"official CSWin, {len(tensors)} keys, EMA weights", SMALL["dims"])
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    expected = by_hand(doubles, x, SMALL["depths"], SMALL["heads"], SMALL["split"])
    assert expected.std() > 0.1
    torch.testing.assert_close(model.double()(x), expected, rtol=0, atol=1e-10)


# LePE and the operator


@pytest.mark.parametrize(("rows", "width"), [(6, 2), (7, 3), (5, 1), (4, 7), (1, 2)])
def test_a_convolution_in_stripes_is_one_of_each_stripe_alone(rows, width, agree):
    tokens = torch.randn(2, rows, 5, 3)
    weight, bias = torch.randn(3, 1, 3, 3), torch.randn(3)
    alone = [
        F.conv2d(part.double().permute(0, 3, 1, 2), weight.double(), bias.double(), padding=1, groups=3)
        for part in tokens.split(width, 1)
    ]
    agree(convolve_stripes(tokens, weight, bias, width), torch.cat(alone, 2).permute(0, 2, 3, 1), terms=10)


@pytest.mark.parametrize(("width", "where"), [(2, "inside stripes"), (None, "on the whole map")])
def test_the_operator_is_the_softmax_and_says_that_lepe_is_not_in_it(width, where, randomise):
    attn = StripeAttention(channels=8, heads=4, width=width)
    attn.backend = "reference"
    randomise(attn, seed=1)
    x = torch.randn(1, 6, 5, 8)
    received = []
    attn.lepe.register_forward_pre_hook(lambda _, args: received.extend(args))
    attn(x)
    state = attn.freeze(x)
    assert torch.equal(received[0].permute(0, 3, 1, 2), state.mix(state.value))
    assert torch.equal(received[1].permute(0, 3, 1, 2), state.value)
    pattern = "full" if width is None else "cross of stripes of 2"
    assert state.reading == f"{pattern}; LePE (3x3 depthwise, {where}) not included"
    row = state.row((3, 4))
    torch.testing.assert_close(row.sum((1, 2)), torch.ones(4))
    if width is None:
        assert (row > 0).all()
    else:
        assert (row[:2] > 0).all(1).tolist() == [[False] * 4 + [True]] * 2  # the last stripe is one column
        assert (row[2:] > 0).all(2).tolist() == [[False, False, True, True, False, False]] * 2


def test_images_need_be_neither_square_nor_a_multiple_of_the_stripes():
    model = load_model("cswin_nano")
    assert model(torch.randn(1, 3, 36, 52)).shape == (1, 10)
    assert [layer.grid for layer in model.layers((36, 52))] == [(18, 26)] * 2 + [(9, 13)] * 2
    with pytest.raises(ValueError, match=r"^cswin_tiny takes .* multiples of 32 pixels; got 224 x 200\.$"):
        variant("cswin_tiny").build({}).layers((224, 200))


# Files and settings


def test_a_file_that_we_write_brings_its_stripes_along(tmp_path):
    original = load_model("cswin_nano", split=(3, 3), heads=(4, 6))
    save(original, tmp_path / "w.safetensors")
    model = load_model("cswin_nano", weights=tmp_path / "w.safetensors")
    assert (model.config, model.layout) == (original.config, "workbench, 68 keys")
    assert model.weights_sha256 == original.weights_sha256


def refusal(message):
    """A ValueError of one sentence that contains the message."""
    return pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*\.$")


def test_a_file_of_another_family_or_variant_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(load_model("cswin_nano").state_dict(), path)
    with refusal("w.safetensors has the shapes of cswin_nano, not of cswin_tiny: load it as that"):
        load_model("cswin_tiny", weights=path)
    with refusal(
        r"another family \(official CSWin, 68 keys\), not one for swin_tiny: load it as cswin_nano, cswin_tiny"
    ):
        load_model("swin_tiny", weights=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage1.0.attns.1.get_v.weight": torch.ones(7, 1, 3, 3)}, "layers.0.blocks.0.attn.lepe.weight .* is missing"),
        ({"stage1.0.attns.1.get_v.weight": torch.ones(())}, "layers.0.blocks.0.attn.lepe.weight .* is missing"),
        (
            {"stage2.1.attns.2.get_v.bias": torch.ones(4)},
            "layers.1.blocks.1.attns.2.get_v.bias is not part of the model",
        ),
        ({"stage1.0.qkv.bias": torch.ones(9)}, r"attn.qkv.bias is \(9,\) where \(24,\) is expected"),
    ],
)
def test_a_file_whose_branches_do_not_fit_is_refused(change, message, tmp_path):
    tensors = drawn(official_shapes(SMALL["dims"], SMALL["depths"], 5)) | change
    torch.save(tensors, tmp_path / "w.pth")
    with refusal(rf"w.pth does not fit cswin_tiny: .*{message}"):
        load_model("cswin_tiny", weights=tmp_path / "w.pth", heads=SMALL["heads"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"heads": (3, 6)},
            r"heads must be even in every stage but the last, half .* horizontal stripes; got \(3, 6\)",
        ),
        ({"heads": (2, 5)}, "heads must divide the channels of each stage"),
        ({"split": (2,)}, r"dims and heads and split must name the same number of stages; got .* split \(2,\)"),
        ({"split": (0, 2)}, r"split\[0\] must be a whole number of at least 1; got 0"),
        ({"padding": "keys"}, "cswin_nano has no setting 'padding': its settings are dims, .*, split, "),
    ],
)
def test_a_wrong_setting_is_answered_with_one_sentence(settings, message):
    with refusal(message):
        load_model("cswin_nano", **settings)


def test_names_of_stages_and_blocks_survive_more_than_nine_of_them():
    layout = find_layout({"stage1.0.attns.0.get_v.weight": torch.ones(1)})
    names = layout.translate({f"stage3.{n}.mlp.fc1.bias": torch.ones(1) for n in (2, 20)})
    assert all(re.fullmatch(r"layers\.2\.blocks\.(2|20)\.mlp\.fc1\.bias", name) for name in names)
    assert len(names) == 2


def test_a_file_of_no_known_shapes_that_does_not_tell_its_heads_is_refused_until_they_are_given(tmp_path):
    tensors = drawn(official_shapes(SMALL["dims"], SMALL["depths"], 5))
    torch.save(tensors, tmp_path / "w.pth")
    with refusal("w.pth has the shapes of no known variant, .* do not tell how many heads it has: give them"):
        load_model("cswin_tiny", weights=tmp_path / "w.pth")
    assert load_model("cswin_tiny", weights=tmp_path / "w.pth", heads=SMALL["heads"]).config["heads"] == SMALL["heads"]
