"""DaViT: its two attentions by their formulas, its size, and the two layouts that its weights come in."""

import re

import pytest
import torch

from workbench.models import load_model
from workbench.models.checkpoint import save
from workbench.models.davit import ChannelAttention, PatchEmbed, WindowAttention
from workbench.models.registry import variant

SMALL = {"dims": (16, 32), "depths": (2, 1), "heads": (2, 4), "num_classes": 5, "patch": 2}


def official_shapes(dims, depths, num_classes, kernel=7):
    """The names and shapes of the official layout."""
    shapes = {}
    for i, (channels, before) in enumerate(zip(dims, (3, *dims[:-1]), strict=True)):
        size = kernel if i == 0 else 2
        shapes |= linear(f"patch_embeds.{i}.proj", channels, before, size, size)
        shapes |= norm(f"patch_embeds.{i}.norm", channels if i == 0 else before)
    for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
        for half in (f"main_blocks.{i}.{j}.{part}" for j in range(depth) for part in range(2)):
            for n in range(2):
                shapes |= linear(f"{half}.cpe.{n}.proj", channels, 1, 3, 3)
                shapes |= norm(f"{half}.norm{n + 1}", channels)
            shapes |= linear(f"{half}.attn.qkv", 3 * channels, channels)
            shapes |= linear(f"{half}.attn.proj", channels, channels)
            shapes |= linear(f"{half}.mlp.fc1", 4 * channels, channels)
            shapes |= linear(f"{half}.mlp.fc2", channels, 4 * channels)
    return shapes | norm("norms", dims[-1]) | linear("head", num_classes, dims[-1])


def linear(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name, channels):
    return linear(name, channels)


def timm_name(name):
    """timm's name of an official tensor."""
    if found := re.match(r"patch_embeds\.(\d)\.(proj|norm)\.(\w+)$", name):
        part = "conv" if found[2] == "proj" else "norm"
        where = "stem" if found[1] == "0" else f"stages.{found[1]}.downsample"
        return f"{where}.{part}.{found[3]}"
    if found := re.match(r"main_blocks\.(\d)\.(.*)$", name):
        rest = found[2].replace("cpe.0.", "cpe1.").replace("cpe.1.", "cpe2.")
        return f"stages.{found[1]}.blocks.{rest}"
    return name.replace("norms.", "head.norm.") if name.startswith("norms.") else name.replace("head.", "head.fc.")


def random_tensors(shapes):
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel()
        tensors[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
        if "norm" in name and name.endswith("weight"):
            tensors[name] = 1 + 0.1 * tensors[name]
    return tensors


def test_the_parameters_count_as_published():
    model = variant("davit_tiny").build({})
    assert sum(p.numel() for p in model.parameters()) == 28_360_168
    assert len(model.state_dict()) == 212
    assert sum(p.numel() for p in variant("davit_nano").build({}).parameters()) == 307_210


def test_the_tensors_have_the_official_names_and_shapes():
    shapes = official_shapes((96, 192, 384, 768), (1, 1, 3, 1), 1000)
    built = variant("davit_tiny").build({}).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in built.items()} == shapes


@pytest.mark.parametrize("names", [str, timm_name], ids=["official", "timm"])
def test_weights_in_both_layouts_are_read(tmp_path, names):
    tensors = random_tensors(official_shapes((96, 192, 384, 768), (1, 1, 3, 1), 1000))
    path = tmp_path / "davit.pth"
    torch.save({names(name): tensor for name, tensor in tensors.items()}, path)
    model = load_model("davit_tiny", weights=path, device="cpu")
    assert model.layout == f"{'official' if names is str else 'timm'} DaViT, 212 keys"
    expected = variant("davit_tiny").build({}).to_empty(device="cpu").eval()
    expected.load_state_dict(tensors)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-4)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())


def test_a_files_sizes_are_told_by_its_shapes(tmp_path):
    path = tmp_path / "small.pth"
    torch.save(random_tensors(official_shapes(SMALL["dims"], SMALL["depths"], 5, kernel=3)), path)
    model = load_model("davit_tiny", weights=path, device="cpu", heads=(2, 4))
    assert {name: model.config[name] for name in ("dims", "depths", "patch", "num_classes")} == {
        name: SMALL[name] for name in ("dims", "depths", "patch", "num_classes")
    }


@pytest.mark.parametrize("config", [{"heads": (6, 12)}, {"window": 4, "padding": "keys"}])
def test_saved_weights_are_read_again_with_what_their_shapes_do_not_tell(tmp_path, config):
    model = load_model("davit_nano", device="cpu", **config)
    save(model, tmp_path / "ours.safetensors")
    again = load_model("davit_nano", weights=tmp_path / "ours.safetensors", device="cpu")
    assert again.config == model.config


def test_weights_of_another_family_variant_or_with_a_tensor_missing_are_named(tmp_path):
    tensors = random_tensors(official_shapes((96, 192, 384, 768), (1, 1, 3, 1), 1000))
    path = tmp_path / "davit.pth"
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"davit.pth is a checkpoint of another family \(official DaViT, 212 keys\)"):
        load_model("swin_tiny", weights=path, device="cpu")
    with pytest.raises(ValueError, match=r"davit.pth has the shapes of davit_tiny, not of davit_nano: load it as that"):
        load_model("davit_nano", weights=path, device="cpu")
    del tensors["norms.bias"]
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"davit.pth does not fit davit_tiny: norms.bias \(768,\) is missing."):
        load_model("davit_tiny", weights=path, device="cpu")


def test_every_dual_block_has_a_spatial_and_a_channel_layer():
    model = load_model("davit_nano", device="cpu", **SMALL)
    layers = model.layers((64, 48))
    assert [layer.name for layer in layers] == [
        f"stage{i}.block{j}.{part}" for i, j in ((1, 1), (1, 2), (2, 1)) for part in ("spatial", "channel")
    ]
    assert [layer.kind for layer in layers] == ["attention", "channel"] * 3
    assert [layer.grid for layer in layers] == [(32, 24)] * 4 + [(16, 12)] * 2
    assert layers[-1].groups == ("head 0", "head 1", "head 2", "head 3")


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (7, 4)])
def test_channel_attention_is_a_softmax_over_the_products_of_all_positions(grid, randomise):
    attn = ChannelAttention(channels=6, heads=2).double()
    randomise(attn, seed=grid[0])
    x = torch.randn(2, *grid, 6, dtype=torch.float64)
    q, k, v = attn.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    out = torch.zeros_like(q)
    for image in range(2):
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            logits = (k[image, :, own, None] * v[image, :, None, own]).sum(0) / 3**0.5
            a = logits.exp() / logits.exp().sum(1, keepdim=True)
            for p in range(x.shape[1] * x.shape[2]):
                out[image, p, own] = a @ q[image, p, own]
    torch.testing.assert_close(attn(x), attn.proj(out).view_as(x))


@pytest.mark.parametrize(("grid", "padding"), [((9, 5), "none"), ((9, 5), "keys"), ((2, 4), "keys"), ((8, 4), "keys")])
def test_spatial_attention_reads_the_window_of_each_query(grid, padding, randomise):
    attn = WindowAttention(channels=6, heads=2, window=4, padding=padding).double()
    randomise(attn, seed=grid[0])
    x = torch.randn(1, *grid, 6, dtype=torch.float64)
    rows, cols = (-(-n // 4) * 4 for n in grid) if padding == "keys" else grid
    tokens = torch.zeros(rows, cols, 6, dtype=torch.float64)
    tokens[: grid[0], : grid[1]] = x[0]
    q, k, v = attn.qkv(tokens).unflatten(-1, (3, 2, 3)).unbind(2)
    out = torch.zeros(*grid, 2, 3, dtype=torch.float64)
    for r in range(grid[0]):
        for c in range(grid[1]):
            own = slice(r // 4 * 4, r // 4 * 4 + 4), slice(c // 4 * 4, c // 4 * 4 + 4)
            logits = torch.einsum("hd,rchd->hrc", q[r, c], k[own]) / 3**0.5
            out[r, c] = torch.einsum("hrc,rchd->hd", logits.flatten(1).softmax(1).view_as(logits), v[own])
    torch.testing.assert_close(attn(x)[0], attn.proj(out.flatten(2)))


def test_padding_adds_whole_windows_of_keys_and_the_layers_say_so():
    nano = load_model("davit_nano", device="cpu", padding="keys")
    assert [layer.grid for layer in nano.layers((68, 60))] == [(40, 32), (34, 30), (24, 16), (17, 15)]
    x = torch.randn(1, 3, 68, 60)
    state = nano.block("stage1.block1.spatial")[1].freeze(nano.mixer_inputs(x)["stage1.block1.spatial"])
    assert state.unpadded == (34, 30)
    assert nano(x).shape == (1, 10)


@pytest.mark.parametrize(("step", "kernel", "padding"), [(4, 7, 3), (2, 3, 1)])
def test_the_first_patches_overlap_and_are_normed_after_the_others_before(step, kernel, padding):
    first, later = PatchEmbed(3, 8, step, first=True), PatchEmbed(8, 16, 2, first=False)
    x = torch.randn(2, 4 * step, 6 * step, 3)
    tokens = first(x)
    assert (first.proj.kernel_size, first.proj.padding) == ((kernel, kernel), (padding, padding))
    assert tokens.shape == (2, 4, 6, 8)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 4, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(later(tokens * 5 + 3), later(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": (5, 6)}, r"heads must divide the channels of each stage"),
        ({"padding": "zeros"}, "padding"),
        ({"window": 0}, "window must be a whole number of at least 1; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        load_model("davit_nano", device="cpu", **config)


def test_sides_must_be_multiples_of_the_last_patch():
    with pytest.raises(
        ValueError, match="davit_tiny takes images whose sides are multiples of 32 pixels; got 224 x 40"
    ):
        variant("davit_tiny").build({}).layers((224, 40))
