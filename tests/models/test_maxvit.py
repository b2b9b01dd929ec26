"""MaxViT: its parts by their formulas in both families of weights, its size, and the layouts of its weights."""

import re

import pytest
import torch
import torch.nn.functional as F

from workbench.models import load_model
from workbench.models.checkpoint import save
from workbench.models.maxvit import GridAttention, MBConv, Stem, WindowAttention
from workbench.models.registry import variant

TINY = {"dims": (64, 128, 256, 512), "depths": (2, 2, 5, 2)}
TABLE = "relative_position_bias_table"


def our_shapes(dims, depths, heads, family, offsets=13, num_classes=1000):
    """The names and shapes of our tensors."""
    shapes = linear("stem.conv1", dims[0], 3, 3, 3) | batch_norm("stem.norm1", dims[0])
    shapes |= linear("stem.conv2", dims[0], dims[0], 3, 3)
    for i, (before, channels) in enumerate(zip((dims[0], *dims[:-1]), dims, strict=True)):
        for j in range(depths[i]):
            block = f"layers.{i}.blocks.{j}"
            shapes |= conv_shapes(f"{block}.conv", channels if j else before, channels)
            if j == 0 and (before != channels or family == "torchvision"):
                shapes |= linear(f"{block}.conv.shortcut.expand", channels, before, 1, 1)
            for part in ("attn_block", "attn_grid"):
                shapes |= attention_shapes(f"{block}.{part}", channels, heads[i], offsets)
    last = dims[-1]
    shapes |= linear("head.norm", last) | linear("head.pre_logits", last, last) | linear("head.fc", num_classes, last)
    without_bias = () if family == "tf" else ("stem.conv1.bias", "head.fc.bias")
    return {name: shape for name, shape in shapes.items() if name not in without_bias}


def conv_shapes(name, before, channels):
    inner = 4 * channels
    return (
        batch_norm(f"{name}.pre_norm", before)
        | {f"{name}.conv1_1x1.weight": (inner, before, 1, 1), f"{name}.conv2_kxk.weight": (inner, 1, 3, 3)}
        | batch_norm(f"{name}.norm1", inner)
        | batch_norm(f"{name}.norm2", inner)
        | linear(f"{name}.se.fc1", channels // 4, inner, 1, 1)
        | linear(f"{name}.se.fc2", inner, channels // 4, 1, 1)
        | linear(f"{name}.conv3_1x1", channels, inner, 1, 1)
    )


def attention_shapes(name, channels, heads, offsets):
    return (
        linear(f"{name}.norm1", channels)
        | linear(f"{name}.norm2", channels)
        | linear(f"{name}.attn.qkv", 3 * channels, channels)
        | linear(f"{name}.attn.proj", channels, channels)
        | {f"{name}.attn.{TABLE}": (heads, offsets, offsets)}
        | linear(f"{name}.mlp.fc1", 4 * channels, channels)
        | linear(f"{name}.mlp.fc2", channels, 4 * channels)
    )


def linear(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name, channels):
    running = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return linear(name, channels) | running | {f"{name}.num_batches_tracked": ()}


def timm_name(name):
    """timm's name of one of our tensors."""
    name = re.sub(r"^layers\.", "stages.", name).replace(f".attn.{TABLE}", f".attn.rel_pos.{TABLE}")
    return name.replace("head.pre_logits.", "head.pre_logits.fc.")


#: Our parts and torchvision's.
PARTS = {
    "conv.pre_norm": "MBconv.layers.pre_norm", "conv.conv1_1x1": "MBconv.layers.conv_a.0",
    "conv.norm1": "MBconv.layers.conv_a.1", "conv.conv2_kxk": "MBconv.layers.conv_b.0",
    "conv.norm2": "MBconv.layers.conv_b.1", "conv.se.fc1": "MBconv.layers.squeeze_excitation.fc1",
    "conv.se.fc2": "MBconv.layers.squeeze_excitation.fc2", "conv.conv3_1x1": "MBconv.layers.conv_c",
    "conv.shortcut.expand": "MBconv.proj.1", "norm1": "attn_layer.0", "attn.qkv": "attn_layer.1.to_qkv",
    "attn.proj": "attn_layer.1.merge", "attn": "attn_layer.1", "norm2": "mlp_layer.0", "mlp.fc1": "mlp_layer.1",
    "mlp.fc2": "mlp_layer.3",
}  # fmt: skip
OUTER = {
    "stem.conv1": "stem.0.0", "stem.norm1": "stem.0.1", "stem.conv2": "stem.1.0", "head.norm": "classifier.2",
    "head.pre_logits": "classifier.3", "head.fc": "classifier.5",
}  # fmt: skip


def torchvision_name(name):
    """torchvision's name of one of our tensors."""
    part, leaf = name.rsplit(".", 1)
    if part in OUTER:
        return f"{OUTER[part]}.{leaf}"
    _, i, _, j, inner = part.split(".", 4)
    for attention, theirs in (("attn_block.", "window_attention."), ("attn_grid.", "grid_attention.")):
        if inner.startswith(attention):
            return f"blocks.{i}.layers.{j}.layers.{theirs}{PARTS[inner.removeprefix(attention)]}.{leaf}"
    return f"blocks.{i}.layers.{j}.layers.{PARTS[inner]}.{leaf}"


def in_torchvisions_layout(tensors):
    """Our tensors under torchvision's names, with its flat tables by query minus key and its index buffers."""
    theirs = {}
    for name, tensor in tensors.items():
        if name.endswith(TABLE):
            offsets = tensor.shape[1]
            flat = torch.stack([tensor[:, offsets - 1 - r, offsets - 1 - c] for r, c in places(offsets, offsets)])
            theirs[torchvision_name(name)] = flat
            index = torchvision_name(name).replace(TABLE, "relative_position_index")
            theirs[index] = torch.zeros(49, 49, dtype=torch.long)
        else:
            theirs[torchvision_name(name)] = tensor
    return theirs


def places(rows, cols):
    return [(r, c) for r in range(rows) for c in range(cols)]


def random_tensors(shapes):
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1000)
            continue
        fan_in = torch.Size(shape[1:]).numel()
        tensors[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            tensors[name] = 1 + 0.1 * tensors[name].tanh()
    return tensors


@pytest.mark.parametrize(("family", "count"), [("tf", 30_916_528), ("torchvision", 30_919_624)])
def test_the_parameters_count_as_published(family, count):
    model = variant("maxvit_tiny").build({"weights_family": family})
    assert sum(p.numel() for p in model.parameters()) == count
    shapes = our_shapes(**TINY, heads=(2, 4, 8, 16), family=family)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes


def test_the_nano_variant_has_a_third_of_a_million_parameters():
    assert sum(p.numel() for p in variant("maxvit_nano").build({}).parameters()) == 333_738


@pytest.mark.parametrize(
    ("family", "found"), [("tf", "timm MaxViT (tf), 560 keys"), ("torchvision", "torchvision MaxViT, 582 keys")]
)
def test_weights_in_both_layouts_are_read_and_tell_their_family(tmp_path, family, found):
    tensors = random_tensors(our_shapes(**TINY, heads=(2, 4, 8, 16), family=family))
    path = tmp_path / "maxvit.pth"
    theirs = {timm_name(name): t for name, t in tensors.items()} if family == "tf" else in_torchvisions_layout(tensors)
    torch.save(theirs, path)
    model = load_model("maxvit_tiny", weights=path, device="cpu")
    assert (model.layout, model.config["weights_family"]) == (found, family)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    expected = variant("maxvit_tiny").build({"weights_family": family}).to_empty(device="cpu").eval()
    expected.load_state_dict(tensors)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-4)


def test_weights_of_the_rw_family_and_of_other_variants_and_families_are_named_and_refused(tmp_path):
    path = tmp_path / "maxvit.pth"
    tensors = random_tensors(our_shapes((16, 32), (1, 1), (2, 4), "tf"))
    flat = {timm_name(n): t.flatten(1).t() if n.endswith(TABLE) else t for n, t in tensors.items()}
    torch.save(flat, path)
    with pytest.raises(ValueError, match=r"maxvit.pth is a timm MaxViT rw \(queries, keys and values interleaved"):
        load_model("maxvit_tiny", weights=path, device="cpu")
    tiny = random_tensors(our_shapes(**TINY, heads=(2, 4, 8, 16), family="tf"))
    torch.save({timm_name(name): tensor for name, tensor in tiny.items()}, path)
    with pytest.raises(ValueError, match=r"maxvit.pth has the shapes of maxvit_tiny, not of maxvit_nano"):
        load_model("maxvit_nano", weights=path, device="cpu")
    with pytest.raises(ValueError, match=r"another family \(timm MaxViT \(tf\), 560 keys\), not one for davit_tiny"):
        load_model("davit_tiny", weights=path, device="cpu")
    with pytest.raises(ValueError, match=r"maxvit.pth does not fit maxvit_tiny: .*shortcut.expand.weight .* missing"):
        load_model("maxvit_tiny", weights=path, device="cpu", weights_family="torchvision")


@pytest.mark.parametrize("family", ["tf", "torchvision"])
@pytest.mark.parametrize(
    ("kind", "grid"), [(WindowAttention, (6, 9)), (GridAttention, (6, 9)), (GridAttention, (3, 3))]
)
def test_attention_equals_softmax_over_the_keys_of_each_query(kind, grid, family, randomise):
    attn = kind(channels=6, heads=2, window=3, weights_family=family).double()
    randomise(attn, seed=grid[1])
    x = torch.randn(2, *grid, 6, dtype=torch.float64)
    torch.testing.assert_close(attn(x), query_by_query(attn, x, family))


def query_by_query(attn, x, family):
    """Attention from its rule: the keys of the same window, or those equal modulo grid / window."""
    grid = x.shape[1:3]
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 3)).unbind(3)
    steps = tuple(n // 3 for n in grid) if isinstance(attn, GridAttention) else (1, 1)
    out = torch.zeros_like(q)
    for p in places(*grid):
        if isinstance(attn, GridAttention):
            keys = [s for s in places(*grid) if all(a % n == b % n for a, b, n in zip(p, s, steps, strict=True))]
        else:
            keys = [s for s in places(*grid) if all(a // 3 == b // 3 for a, b in zip(p, s, strict=True))]
        rows, cols = torch.tensor(keys).unbind(1)
        bias = attn.relative_position_bias_table[:, (rows - p[0]) // steps[0] + 2, (cols - p[1]) // steps[1] + 2]
        logits = torch.einsum("bhd,bnhd->bhn", q[:, p[0], p[1]], k[:, rows, cols])
        logits = logits * (6 if family == "torchvision" else 3) ** -0.5 + bias
        out[:, p[0], p[1]] = torch.einsum("bhn,bnhd->bhd", logits.softmax(-1), v[:, rows, cols])
    return attn.proj(out.flatten(3))


def spread(module):
    """Random running statistics, so that the norms of evaluation do something."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return module.double().eval()


def normed(x, norm):
    """Batch norm in evaluation, eps 1e-3."""
    scale = norm.weight / (norm.running_var + 1e-3).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("family", ["tf", "torchvision"])
@pytest.mark.parametrize(("channels", "following", "stride"), [(4, 8, 2), (8, 8, 2), (8, 8, 1)])
def test_the_inverted_bottleneck_follows_its_formula(family, channels, following, stride, randomise):
    conv = MBConv(channels, following, stride, family)
    randomise(conv, seed=stride)
    spread(conv)
    x = torch.randn(2, channels, 6, 8, dtype=torch.float64)
    inner = gelu(normed(F.conv2d(normed(x, conv.pre_norm), conv.conv1_1x1.weight), conv.norm1), family)
    before = 0 if family == "tf" and stride == 2 else 1  # "same" padding on even sides lies after the last line
    padded = F.pad(inner, (before, 1, before, 1))
    inner = F.conv2d(padded, conv.conv2_kxk.weight, stride=stride, groups=4 * following)
    inner = gelu(normed(inner, conv.norm2), family)[:, :, : 6 // stride, : 8 // stride]
    squeezed = F.conv2d(inner.mean((2, 3), keepdim=True), conv.se.fc1.weight, conv.se.fc1.bias)
    gate = F.conv2d(squeezed * squeezed.sigmoid(), conv.se.fc2.weight, conv.se.fc2.bias).sigmoid()
    out = F.conv2d(gate * inner, conv.conv3_1x1.weight, conv.conv3_1x1.bias)
    torch.testing.assert_close(conv(x), out + past(x, conv, following, stride, family))


def past(x, conv, following, stride, family):
    """The shortcut past an inverted bottleneck."""
    if stride == 1:
        return x
    if family == "torchvision":
        padded = F.pad(x, (1, 1, 1, 1))  # zeros count in the mean
        pooled = sum(padded[:, :, r : r + 6 : 2, c : c + 8 : 2] for r, c in places(3, 3)) / 9
    else:
        pooled = sum(x[:, :, r::2, c::2] for r, c in places(2, 2)) / 4
        if x.shape[1] == following:
            return pooled
    expand = conv.shortcut.expand
    return F.conv2d(pooled, expand.weight, expand.bias)


def gelu(x, family):
    if family == "tf":
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize(("family", "before"), [("tf", 0), ("torchvision", 1)])
def test_the_stem_halves_the_image_and_pads_as_its_family(family, before, randomise):
    stem = Stem(5, 2, family)
    randomise(stem, seed=before)
    spread(stem)
    x = torch.randn(1, 3, 8, 10, dtype=torch.float64)
    conv1 = F.conv2d(F.pad(x, (before, 1, before, 1)), stem.conv1.weight, stem.conv1.bias, stride=2)[:, :, :4, :5]
    assert (stem.conv1.bias is not None) == (family == "tf")
    expected = F.conv2d(gelu(normed(conv1, stem.norm1), family), stem.conv2.weight, stem.conv2.bias, padding=1)
    torch.testing.assert_close(stem(x), expected)


def test_every_block_has_a_window_and_a_grid_layer():
    model = load_model("maxvit_nano", device="cpu")
    layers = model.layers((64, 96))
    assert [layer.name for layer in layers] == [
        f"stage{i}.block1.{part}" for i in (1, 2) for part in ("window", "grid")
    ]
    assert [layer.grid for layer in layers] == [(32, 48)] * 2 + [(16, 24)] * 2
    x = torch.randn(1, 3, 64, 96)
    states = [mixer.freeze(model.mixer_inputs(x)[name]) for name, (_, mixer) in model.blocks().items()]
    assert [state.reading for state in states] == ["block 8x8", "grid 8x8 of 32x48", "block 8x8", "grid 8x8 of 16x24"]


@pytest.mark.parametrize(
    "config", [{"weights_family": "torchvision"}, {"stem_stride": 2}, {"heads": (2, 4), "window": 4}]
)
def test_saved_weights_are_read_again_with_their_settings(tmp_path, config):
    model = load_model("maxvit_nano", device="cpu", **config)
    save(model, tmp_path / "ours.safetensors")
    again = load_model("maxvit_nano", weights=tmp_path / "ours.safetensors", device="cpu")
    assert again.config == model.config
    assert again.weights_sha256 == model.weights_sha256


def test_sides_must_make_every_grid_a_multiple_of_the_window():
    tiny = variant("maxvit_tiny").build({})
    assert [layer.grid for layer in tiny.layers((448, 224))][::4] == [
        (112, 56),
        (56, 28),
        (28, 14),
        (28, 14),
        (28, 14),
        (14, 7),
    ]
    with pytest.raises(
        ValueError, match="maxvit_tiny takes images whose sides are multiples of 224 pixels; got 256 x 224"
    ):
        tiny.layers((256, 224))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights_family": "rw"}, "weights_family"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2; got 3"),
        ({"heads": (5, 6)}, "heads must divide the channels of each stage"),
    ],
)
def test_settings_out_of_range_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        load_model("maxvit_nano", device="cpu", **config)
