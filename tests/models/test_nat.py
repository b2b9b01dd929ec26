"""NAT and DiNAT: equal to an independent implementation, and their files, sizes and padding are the published ones."""

import re
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from transformers import DinatConfig, DinatForImageClassification
from transformers.models.dinat import modeling_dinat

from workbench.models import load_model
from workbench.models.checkpoint import save
from workbench.models.layouts import find_layout
from workbench.models.nat import NeighborhoodAttention
from workbench.models.registry import variant

#: The names of a block in the released files, and their shapes for c channels and h heads.
BLOCK = {
    "norm1.weight": lambda c, h: (c,),
    "norm1.bias": lambda c, h: (c,),
    "attn.rpb": lambda c, h: (h, 13, 13),
    "attn.qkv.weight": lambda c, h: (3 * c, c),
    "attn.qkv.bias": lambda c, h: (3 * c,),
    "attn.proj.weight": lambda c, h: (c, c),
    "attn.proj.bias": lambda c, h: (c,),
    "norm2.weight": lambda c, h: (c,),
    "norm2.bias": lambda c, h: (c,),
    "mlp.fc1.weight": lambda c, h: (3 * c, c),
    "mlp.fc1.bias": lambda c, h: (3 * c,),
    "mlp.fc2.weight": lambda c, h: (c, 3 * c),
    "mlp.fc2.bias": lambda c, h: (c,),
}


def official_shapes(dims, depths, heads, classes):
    """Every name in a released file, and its shape."""
    shapes = {
        "patch_embed.proj.0.weight": (dims[0] // 2, 3, 3, 3),
        "patch_embed.proj.0.bias": (dims[0] // 2,),
        "patch_embed.proj.1.weight": (dims[0], dims[0] // 2, 3, 3),
        "patch_embed.proj.1.bias": (dims[0],),
        "patch_embed.norm.weight": (dims[0],),
        "patch_embed.norm.bias": (dims[0],),
        "norm.weight": (dims[-1],),
        "norm.bias": (dims[-1],),
        "head.weight": (classes, dims[-1]),
        "head.bias": (classes,),
    }
    for i, (channels, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
        for j in range(depth):
            shapes |= {f"levels.{i}.blocks.{j}.{name}": shape(channels, count) for name, shape in BLOCK.items()}
    for i, (channels, following) in enumerate(pairwise(dims)):
        shapes[f"levels.{i}.downsample.reduction.weight"] = (following, channels, 3, 3)
        shapes[f"levels.{i}.downsample.norm.weight"] = shapes[f"levels.{i}.downsample.norm.bias"] = (following,)
    return shapes


def drawn(shapes):
    """Random tensors of these shapes, small enough that softmax and norms stay lively."""
    return {name: torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3) for name, shape in shapes.items()}


PUBLISHED = [
    ("nat_mini", 19_984_174, 253),
    ("nat_tiny", 27_901_582, 409),
    ("dinat_mini", 19_984_174, 253),
    ("dinat_tiny", 27_901_582, 409),
]


@pytest.mark.parametrize(("name", "count", "tensors"), PUBLISHED)
def test_parameters_names_and_shapes_are_the_published_ones(name, count, tensors):
    model = variant(name).build({})
    sizes = model.config
    shapes = official_shapes(sizes["dims"], sizes["depths"], sizes["heads"], 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert len(shapes) == len(model.state_dict()) == tensors
    file = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    layout = find_layout(file)
    ours = {name: tensor.shape for name, tensor in layout.translate(file).items()}
    assert ours == {name: tensor.shape for name, tensor in model.state_dict().items()}
    told = layout.infer(layout.translate(file))
    assert told == {key: sizes[key] for key in ("dims", "depths", "heads", "kernel", "ratio", "patch", "num_classes")}


def test_the_nano_variants_are_small():
    counts = {sum(p.numel() for p in variant(name).build({}).parameters()) for name in ("nat_nano", "dinat_nano")}
    assert counts == {281_164}


@pytest.mark.parametrize(
    ("name", "dilations"),
    [
        ("nat_mini", [[1] * 3, [1] * 4, [1] * 6, [1] * 5]),
        ("dinat_tiny", [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]),
    ],
)
def test_every_second_block_of_dinat_is_dilated_as_published(name, dilations):
    stages = variant(name).build({}).stages
    assert [[block.attn.dilation for block in stage.blocks] for stage in stages] == dilations
    assert {block.attn.kernel for stage in stages for block in stage.blocks} == {7}


# An independent implementation: transformers has DiNAT, but leaves the neighbourhoods to two functions of the package
# natten. They are written out here from the rule.

RENAMES = (
    (r"^dinat\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^dinat\.embeddings\.norm", "patch_embed.norm"),
    (r"^dinat\.encoder\.levels\.(\d)\.layers", r"layers.\1.blocks"),
    (r"^dinat\.encoder\.levels", "layers"),
    (r"^dinat\.layernorm", "norm"),
    (r"^classifier", "head"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.self\.rpb", "attn.rpb"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
PROJECTION = re.compile(r"attention\.self\.(query|key|value)\.")


def key_positions(size, kernel, dilation):
    """(size, kernel): the keys of every query along one axis, from the published rule."""
    table = []
    for i in range(size):
        g, n, half = i % dilation, i // dilation, kernel // 2
        members = -(-(size - g) // dilation)
        start = max(n - half, 0) + (n + half >= members) * (members - n - half - 1)
        table.append([g + dilation * (start + t) for t in range(kernel)])
    return torch.tensor(table)


def gathered(tokens, kernel, dilation):
    """(B, H, W, heads, d) -> the keys of every query, (B, H, kernel, W, kernel, heads, d), and where they are."""
    rows, cols = (key_positions(size, kernel, dilation) for size in tokens.shape[1:3])
    return tokens[:, rows][:, :, :, cols], rows, cols


def neighborhood_logits(q, k, rpb, kernel, dilation):
    """natten's first function, (B, heads, H, W, keys); q and k come as (B, W, H, heads, d)."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    keys, rows, cols = gathered(k, kernel, dilation)
    logits = torch.einsum("brchd,bricjhd->bhrcij", q, keys)
    down, right = ((t - torch.arange(len(t))[:, None]) // dilation + kernel - 1 for t in (rows, cols))
    return (logits + rpb[:, down[:, None, :, None], right[None, :, None, :]]).flatten(4)


def neighborhood_values(weights, v, kernel, dilation):
    """natten's second function, (B, heads, H, W, d); v comes as (B, W, H, heads, d)."""
    values, _, _ = gathered(v.transpose(1, 2), kernel, dilation)
    return torch.einsum("bhrcij,bricjhd->bhrcd", weights.unflatten(4, (kernel, kernel)), values)


@pytest.fixture
def in_transformers(monkeypatch):
    """transformers' DiNAT with the weights of ours."""
    monkeypatch.setattr(modeling_dinat, "requires_backends", lambda *_: None)
    monkeypatch.setattr(modeling_dinat, "natten2dqkrpb", neighborhood_logits)
    monkeypatch.setattr(modeling_dinat, "natten2dav", neighborhood_values)

    def build(model):
        sizes = model.config
        dilations = [[block.attn.dilation for block in stage.blocks] for stage in model.stages]
        config = DinatConfig(
            embed_dim=sizes["dims"][0],
            depths=list(sizes["depths"]),
            num_heads=list(sizes["heads"]),
            kernel_size=sizes["kernel"],
            mlp_ratio=float(sizes["ratio"]),
            dilations=dilations,
            layer_scale_init_value=0.0,
            num_labels=sizes["num_classes"],
        )
        theirs, ours, used = DinatForImageClassification(config).eval(), model.state_dict(), set()
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                source, part = our_name(name)
                used.add(source)
                parameter.copy_(ours[source] if part is None else ours[source].chunk(3)[part])
        assert used == set(ours)
        return theirs.double()

    return build


def our_name(name):
    """Our name for a tensor of transformers, and which third of it: query, key or value."""
    found = PROJECTION.search(name)
    for theirs, ours in RENAMES:
        name = re.sub(theirs, ours, name)
    if found is None:
        return name, None
    return PROJECTION.sub("attn.qkv.", name), ("query", "key", "value").index(found[1])


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"dilations": (1, 1)}, (40, 56)),
        ({"dilations": (2, 1)}, (64, 40)),
        ({"dilations": (3, 2), "padding": "keys"}, (32, 72)),
        ({"dilations": (1, 4), "padding": "keys"}, (8, 16)),
    ],
)
def test_the_logits_equal_those_of_transformers(config, size, in_transformers, randomise):
    sizes = {"dims": (16, 32), "depths": (2, 3), "heads": (2, 4), "kernel": 5, "num_classes": 6}
    model = load_model("dinat_tiny", backend="reference", **sizes, **config)
    randomise(model, seed=size[0])
    theirs, x = in_transformers(model.double()), torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        ours, expected = model(x), theirs(x).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


# Bias and padding


def test_the_bias_is_read_at_key_minus_query():
    attn = NeighborhoodAttention(channels=4, heads=1, kernel=3, dilation=2)
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.zero_()
        attn.rpb[0, 2 + 1, 2 - 1] = 50  # one step down and one step left of the query
    row = attn.freeze(torch.randn(1, 9, 8, 4)).row((4, 4))[0]
    assert row[6, 2] > 0.999


@pytest.mark.parametrize("grid", [(5, 16), (14, 3), (2, 2), (15, 14)])
def test_padding_adds_zeros_after_the_norm_that_are_keys_and_cuts_them_off(grid, randomise):
    padded = NeighborhoodAttention(channels=8, heads=2, kernel=7, dilation=2, padding="keys").double()
    randomise(padded, seed=grid[0])
    plain = NeighborhoodAttention(channels=8, heads=2, kernel=7, dilation=2).double()
    plain.load_state_dict(padded.state_dict())
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    larger = torch.zeros(2, max(14, grid[0]), max(14, grid[1]), 8, dtype=torch.float64)
    larger[:, : grid[0], : grid[1]] = x
    padded.backend = plain.backend = "reference"
    with torch.no_grad():
        torch.testing.assert_close(padded(x), plain(larger)[:, : grid[0], : grid[1]])
        state = padded.freeze(x)
    assert tuple(state.value.shape[2:]) == padded.padded(grid) == tuple(larger.shape[1:3])
    assert state.unpadded == (None if min(grid) >= 14 else grid)


def test_a_grid_below_kernel_times_dilation_is_refused_unless_it_is_padded():
    with pytest.raises(
        ValueError, match=r"^nat_tiny takes .* pixels, at least 224, or with padding='keys' .*; got 192 x 256\.$"
    ):
        variant("nat_tiny").build({}).layers((192, 256))
    with pytest.raises(
        ValueError,
        match=r"^dinat_nano takes .* at least 56, or with padding='keys' .*; got 64 x 52\.$",
    ):
        load_model("dinat_nano")(torch.zeros(1, 3, 64, 52))
    with pytest.raises(ValueError, match=r"^nat_nano takes .* multiples of 4 pixels, at least 28; got 64 x 66\.$"):
        load_model("nat_nano")(torch.zeros(1, 3, 64, 66))
    model = load_model("dinat_nano", padding="keys", backend="reference")
    assert [layer.grid for layer in model.layers((64, 36))] == [(32, 18), (32, 28), (16, 9), (16, 14)]
    assert {layer.stride for layer in model.layers((64, 36))} == {(2, 2), (4, 4)}
    assert model(torch.randn(1, 3, 64, 36)).shape == (1, 10)


def test_the_least_size_fits_every_block_and_no_smaller_one_does():
    for settings in ({"dilations": (4, 2)}, {"dilations": (1, 3)}, {"kernel": 5, "dilations": (5, 1)}, {"kernel": 3}):
        model = variant("nat_nano").build(settings)
        for side in range(4, 90, 4):
            grids = model.grids(side, side)
            blocks = [block.attn for stage in model.stages for block in stage.blocks]
            fits = all(m.kernel * m.dilation <= g[0] for m, g in zip(blocks, grids, strict=True))
            assert fits == (side >= model.least_size)


# Files

SMALL = {"dims": (8, 16, 32, 64), "depths": (3, 4, 6, 5), "heads": (1, 2, 4, 8)}


@pytest.fixture
def released(tmp_path):
    """A file with the names of a released one, but few channels."""
    path = tmp_path / "released.pth"
    torch.save(drawn(official_shapes(*SMALL.values(), 5)), path)
    return path


def test_a_file_with_the_official_names_gives_the_logits_of_the_same_weights_under_ours(released):
    model = load_model("nat_mini", weights=released, padding="keys")
    ours = load_model("nat_mini", **SMALL, num_classes=5, padding="keys")
    weights = torch.load(released)
    ours.load_state_dict({name.replace("levels.", "layers."): tensor for name, tensor in weights.items()})
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(model(x), ours(x))
    assert (model.layout, model.config["num_classes"]) == ("official NAT or DiNAT, 253 keys", 5)


def test_one_file_loads_as_nat_and_as_dinat_and_the_name_decides_the_dilations(released):
    nat, dinat = (load_model(name, weights=released, padding="keys") for name in ("nat_mini", "dinat_mini"))
    assert nat.layout == dinat.layout == "official NAT or DiNAT, 253 keys"
    assert nat.weights_sha256 == dinat.weights_sha256
    assert (nat.config["dilations"], dinat.config["dilations"]) == (None, (8, 4, 2, 1))
    x = torch.randn(1, 3, 64, 64)
    assert (nat(x) - dinat(x)).abs().max() > 1e-3
    patterns = [model.block("stage1.block2")[1].pattern(56, 56).name for model in (nat, dinat)]
    assert patterns == ["neighborhood 7x7", "neighborhood 7x7 dilation 8x8"]


def test_a_file_that_we_write_brings_its_dilations_and_padding_along(tmp_path):
    original = load_model("dinat_nano", dilations=(2, 2), padding="keys")
    save(original, tmp_path / "w.safetensors")
    model = load_model("dinat_nano", weights=tmp_path / "w.safetensors")
    assert (model.config, model.layout) == (original.config, "workbench, 63 keys")


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("nat_tiny", "nat_nano", "has the shapes of dinat_nano and nat_nano, not of nat_tiny: load it as that"),
        (
            "swin_nano",
            "dinat_nano",
            r"another family \(official NAT or DiNAT, 63 keys\), not one for swin_nano: load it as dinat_mini, ",
        ),
        ("nat_nano", "swin_nano", r"another family \(official Swin, 63 keys\), not one for nat_nano"),
    ],
)
def test_a_file_of_another_family_or_variant_is_named(name, of, message, tmp_path):
    save_file(load_model(of).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=rf"^w.safetensors [^\n]*{message}.*\.$"):
        load_model(name, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": (1, 2, 3)}, r"dims and dilations must name the same number of stages; got dims \(48, 96\), "),
        ({"dilations": (0, 1)}, r"dilations\[0\] must be a whole number of at least 1; got 0"),
        ({"kernel": 0}, "kernel must be a whole number of at least 1; got 0"),
        ({"patch": 3}, "patch must be a power of two, at least 2, whose half divides the 48 channels .*; got 3"),
        ({"patch": 64}, "patch must be a power of two, .*; got 64"),
        ({"padding": "key"}, "no padding named 'key'; did you mean keys"),
        ({"heads": (5, 6)}, r"heads must divide the channels of each stage; got dims \(48, 96\) and heads \(5, 6\)"),
    ],
)
def test_a_wrong_setting_is_answered_with_one_sentence(settings, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*\.$"):
        load_model("nat_nano", **settings)
