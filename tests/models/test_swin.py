"""Swin: equal to an independent implementation, and its windows follow the map where that one does not go."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from transformers import SwinConfig, SwinForImageClassification

from workbench.models import load_model
from workbench.models.registry import variant
from workbench.models.swin import WindowAttention

#: Names in transformers -> ours; query, key and value are three tensors there.
RENAMES = (
    (r"^swin\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^swin\.embeddings\.norm", "patch_embed.norm"),
    (r"^swin\.encoder\.", ""),
    (r"^swin\.layernorm", "norm"),
    (r"^classifier", "head"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"attention\.(o_proj|output\.dense)", "attn.proj"),
    (r"output\.dense", "mlp.fc2"),
    (r"attention\..*relative_position_bias_table", "attn.relative_position_bias_table"),
)
PROJECTION = re.compile(r"attention\.(?:self\.)?(q_proj|query|k_proj|key|v_proj|value)\.(weight|bias)$")


def same_weights_in_transformers(model):
    """transformers' Swin with the weights of ours."""
    config = model.config
    theirs = SwinForImageClassification(
        SwinConfig(
            image_size=config["input_size"],
            patch_size=config["patch"],
            embed_dim=config["dims"][0],
            depths=list(config["depths"]),
            num_heads=list(config["heads"]),
            window_size=config["window"],
            num_labels=config["num_classes"],
        )
    ).eval()
    ours = model.state_dict()
    used = set()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            source, part = our_name(name)
            used.add(source)
            parameter.copy_(ours[source] if part is None else ours[source].chunk(3)[part])
    assert used == set(ours)
    return theirs


def our_name(name):
    """Our name for a tensor of transformers, and which third of it: query, key or value."""
    if found := PROJECTION.search(name):
        prefix = re.sub(r"^swin\.encoder\.", "", name[: found.start()])
        return f"{prefix}attn.qkv.{found[2]}", "qkv".index(found[1][0])
    for theirs, ours in RENAMES:
        name = re.sub(theirs, ours, name)
    return name, None


@pytest.mark.parametrize(
    ("name", "size"), [("swin_nano", (64, 64)), ("swin_nano", (32, 64)), ("swin_tiny", (224, 224))]
)
def test_the_logits_equal_those_of_transformers(name, size, randomise):
    model = load_model(name)
    randomise(model, seed=5)
    theirs = same_weights_in_transformers(model)
    x = torch.randn(2 if name == "swin_nano" else 1, 3, *size, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        ours, expected = model(x), theirs(x, interpolate_pos_encoding=True).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count", "tensors"),
    [
        ("swin_tiny", 28_288_354, 173),
        ("swin_small", 49_606_258, 329),
        ("swin_base", 87_768_224, 329),
        ("swin_nano", 304_972, 63),
    ],
)
def test_the_parameters_count_as_published(name, count, tensors):
    model = variant(name).build({})
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == tensors


def test_every_second_block_of_a_map_larger_than_the_window_is_shifted():
    model = variant("swin_tiny").build({})
    layers = zip(model.blocks().values(), model.grids(224, 224), strict=True)
    names = [mixer.pattern(*grid).name for (_, mixer), grid in layers]
    assert names == ["swin 7x7", "swin 7x7 shifted by 3x3"] * 5 + ["swin 7x7"] * 2


@pytest.mark.parametrize(
    ("grid", "window", "shift"), [((5, 9), 5, 0), ((7, 20), 7, 0), ((8, 8), 7, 3), ((1, 1), 1, 0), ((20, 3), 3, 0)]
)
def test_the_window_shrinks_to_the_map_and_then_is_not_shifted(grid, window, shift):
    pattern = WindowAttention(channels=4, heads=2, window=7, shift=3).pattern(*grid)
    assert (pattern.rows.kernel, pattern.cols.kernel) == (window, window)
    assert (pattern.rows.offset, pattern.cols.offset) == (shift, shift)


@pytest.mark.parametrize(("grid", "shift"), [((4, 4), 3), ((3, 6), 3), ((9, 8), 3), ((8, 11), 0)])
def test_a_block_equals_softmax_attention_over_the_cell_of_each_query(grid, shift, randomise):
    attn = WindowAttention(channels=6, heads=2, window=7, shift=shift).double()
    randomise(attn, seed=grid[1])
    x = torch.randn(2, *grid, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        torch.testing.assert_close(attn(x), query_by_query(attn, x))


def query_by_query(attn, x):
    """Window attention from its rule: keys of the same cell, bias by the offset between query and key."""
    rows, cols = x.shape[1:3]
    side = min(7, rows, cols)
    shift = attn.shift if min(rows, cols) > 7 else 0
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    places = list(itertools.product(range(rows), range(cols)))
    for image, head, place in itertools.product(range(len(x)), range(2), places):
        own = slice(3 * head, 3 * head + 3)
        keys = [other for other in places if cell(other, side, shift) == cell(place, side, shift)]
        bias = [attn.relative_position_bias_table[(place[0] - r + 6) * 13 + place[1] - c + 6, head] for r, c in keys]
        logits = torch.stack([k[image, r, c, own] for r, c in keys]) @ q[image, *place, own] * 3**-0.5
        weights = (logits + torch.stack(bias)).softmax(0)
        out[image, *place, own] = weights @ torch.stack([v[image, r, c, own] for r, c in keys])
    return attn.proj(out)


def cell(place, side, shift):
    return tuple((i + side - shift) // side for i in place)


# Padding


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("swin_nano", {}, (36, 52)),  # grids 18 x 26 and 9 x 13, windows of 8
        ("swin_nano", {"window": 5}, (64, 44)),
        ("swin_tiny", {}, (256, 288)),  # grids from 64 x 72 to 8 x 9; transformers has no smaller ones than a window
    ],
)
def test_padded_logits_equal_those_of_transformers_which_pads_too(name, config, size, randomise):
    model = load_model(name, padding="keys", **config)
    randomise(model, seed=7)
    theirs = same_weights_in_transformers(model)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        ours, expected = model(x), theirs(x, interpolate_pos_encoding=True).logits
        cropped = load_model(name, **config)
        cropped.load_state_dict(model.state_dict())
        assert (cropped(x) - expected).abs().max() > 1e-2  # without padding the border reads other keys
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [(9, 8), (8, 20), (13, 10), (14, 15), (5, 9), (7, 3), (14, 21)])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_padded_block_equals_rolled_and_masked_windows_on_the_padded_map(grid, shift, randomise):
    attn = WindowAttention(channels=6, heads=2, window=7, shift=shift, padding="keys").double()
    randomise(attn, seed=grid[1])
    x = torch.randn(2, *grid, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    with torch.no_grad():
        torch.testing.assert_close(attn(x), rolled_and_masked(attn, x))
        state = attn.freeze(x)
    side = min(7, *grid)
    padded = tuple(math.ceil(n / side) * side for n in grid)
    assert tuple(state.value.shape[2:]) == padded == attn.padded(grid)
    assert state.unpadded == (None if padded == grid else grid)


def rolled_and_masked(attn, x):
    """The published way: pad, roll, cut into windows, mask what the roll brought together, and undo it all."""
    rows, cols = x.shape[1:3]
    side = min(7, rows, cols)
    shift = attn.shift if min(rows, cols) > 7 else 0
    x = F.pad(x, (0, 0, 0, -cols % side, 0, -rows % side))
    padded = x.shape[1:3]
    qkv = windows(attn.qkv(x.roll((-shift, -shift), (1, 2))), side).unflatten(-1, (3, 2, 3))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (windows, heads, positions, 3)
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).flatten(0, 1)
    down, right = (place[:, None] - place + 6).unbind(-1)
    bias = attn.relative_position_bias_table[13 * down + right].permute(2, 0, 1)
    region = windows(regions(padded, side, shift).expand(len(x), -1, -1)[..., None], side)
    apart = torch.where(region == region.transpose(1, 2), 0.0, -torch.inf).unsqueeze(1)
    mixed = (q @ k.transpose(-1, -2) * 3**-0.5 + bias + apart).softmax(-1) @ v
    mixed = mixed.transpose(1, 2).reshape(len(x), padded[0] // side, padded[1] // side, side, side, 6)
    mixed = mixed.transpose(2, 3).reshape(len(x), *padded, 6).roll((shift, shift), (1, 2))
    return attn.proj(mixed[:, :rows, :cols])


def windows(x, side):
    """(B, H, W, C) -> (B * windows, side * side, C)."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).reshape(-1, side * side, x.shape[-1])


def regions(padded, side, shift):
    """The nine regions of the rolled map, numbered: positions of one region were neighbours before."""
    marks = torch.zeros(padded, dtype=torch.float64)
    if shift:
        cuts = slice(0, -side), slice(-side, -shift), slice(-shift, None)
        for number, (down, across) in enumerate(itertools.product(cuts, cuts)):
            marks[down, across] = number
    return marks


def test_queries_keys_and_values_are_views_of_one_tensor():
    state = WindowAttention(channels=8, heads=2, window=7, shift=0).freeze(torch.randn(1, 9, 9, 8))
    assert state.q.untyped_storage().data_ptr() == state.v.untyped_storage().data_ptr()


def test_sides_must_be_multiples_of_the_last_patch():
    model = variant("swin_tiny").build({})
    with pytest.raises(
        ValueError, match="swin_tiny takes images whose sides are multiples of 32 pixels; got 224 x 200"
    ):
        model.layers((224, 200))
    nano = load_model("swin_nano")
    assert nano(torch.randn(1, 3, 36, 52)).shape == (1, 10)
    with pytest.raises(ValueError, match="multiples of 4 pixels; got 64 x 66"):
        nano(torch.randn(1, 3, 64, 66))


def test_the_grids_of_padded_layers_are_the_padded_ones_and_the_strides_those_of_the_image():
    layers = load_model("swin_nano", padding="keys").layers((36, 52))
    assert [layer.grid for layer in layers] == [(24, 32)] * 2 + [(16, 16)] * 2
    assert [layer.stride for layer in layers] == [(2, 2)] * 2 + [(4, 4)] * 2
    assert [layer.grid for layer in load_model("swin_nano").layers((36, 52))] == [(18, 26)] * 2 + [(9, 13)] * 2


def test_an_unknown_padding_is_answered_with_one_sentence():
    with pytest.raises(ValueError, match=r"^There is no padding named 'zeros'\. Known: none, keys\.$"):
        load_model("swin_nano", padding="zeros")


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"heads must divide the channels of each stage; got dims .* heads \(5, 6\)"):
        load_model("swin_nano", heads=(5, 6))
