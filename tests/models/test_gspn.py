"""GSPN: its tensors are the released ones, and its mixing layer is the formula, evaluated pixel by pixel."""

import itertools

import numpy as np
import pytest
import torch

from workbench.models import load_model
from workbench.models.gspn import Propagation, is_global
from workbench.models.registry import variant

DEPTHS = (2, 2, 7, 2)
BLOCK_SHAPES = """
    norm.weight (d)
    norm.bias (d)
    op.in_proj.weight (D, d)
    op.conv2d.weight (D, 1, 7, 7)
    op.x_conv_down.weight (8, D, 1, 1)
    op.w_conv_up.weight (12D, 8, 1, 1)
    op.l_conv_up.weight (4D, 8, 1, 1)
    op.u_conv_up.weight (4D, 8, 1, 1)
    op.d_conv.weight (4D, 8, 1, 1)
    op.m_conv.weight (1, 4, 1, 1)
    op.grn.gamma (1, D, 1, 1)
    op.grn.beta (1, D, 1, 1)
    op.out_norm.weight (D)
    op.out_norm.bias (D)
    op.out_proj.weight (d, D)
    norm2.weight (d)
    norm2.bias (d)
    mlp.fc1.weight (4d, d)
    mlp.fc1.bias (4d)
    mlp.fc2.weight (d, 4d)
    mlp.fc2.bias (d)
"""
OUTER_SHAPES = {
    "patch_embed.0.weight": (48, 3, 3, 3),
    "patch_embed.0.bias": (48,),
    "patch_embed.2.weight": (48,),
    "patch_embed.2.bias": (48,),
    "patch_embed.5.weight": (96, 48, 3, 3),
    "patch_embed.5.bias": (96,),
    "patch_embed.7.weight": (96,),
    "patch_embed.7.bias": (96,),
    "classifier.norm.weight": (768,),
    "classifier.norm.bias": (768,),
    "classifier.head.weight": (1000, 768),
    "classifier.head.bias": (1000,),
}


def released_shapes():
    """The tensors of the released tiny model."""
    shapes = dict(OUTER_SHAPES)
    for i, depth in enumerate(DEPTHS):
        d = 96 * 2**i
        for j in range(depth):
            for line in BLOCK_SHAPES.split("\n")[1:-1]:
                name, shape = line.strip().split(" ", 1)
                sizes = [extent(word.strip(), d) for word in shape.strip("()").split(",")]
                shapes[f"layers.{i}.blocks.{j}.{name}"] = tuple(sizes)
        if i < 3:
            prefix = f"layers.{i}.downsample"
            shapes |= {f"{prefix}.1.weight": (2 * d, d, 3, 3), f"{prefix}.1.bias": (2 * d,)}
            shapes |= {f"{prefix}.3.weight": (2 * d,), f"{prefix}.3.bias": (2 * d,)}
    return shapes


def extent(word, d):
    """An extent such as "12D" or "4d", D = 1.5 d."""
    unit = {"d": d, "D": d * 3 // 2}.get(word[-1])
    return int(word) if unit is None else int(word[:-1] or 1) * unit


def test_gspn_tiny_has_the_297_released_tensors():
    tensors = variant("gspn_tiny").build({}).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == released_shapes()
    assert len(tensors) == 297


@pytest.mark.parametrize(
    ("name", "count"),
    [("gspn_tiny", 31_510_268), ("gspn_small", 50_773_346), ("gspn_base", 93_061_108), ("gspn_nano", 307_186)],
)
def test_the_parameters_count_as_published(name, count):
    assert sum(p.numel() for p in variant(name).build({}).parameters()) == count


@pytest.mark.parametrize(("name", "lines"), [("gspn_tiny", 120), ("gspn_base", 170)])
def test_the_scans_of_a_224_pixel_image_take_the_known_number_of_lines(name, lines):
    model = variant(name).build({})
    layers = zip(model.blocks().values(), model.grids(224, 224), strict=True)
    assert sum(mixer.chunk or grid[1] for (_, mixer), grid in layers) == lines


def test_in_a_global_stage_the_first_seven_blocks_and_every_seventh_scan_the_whole_map():
    assert [block for block in range(22) if is_global(2, block, (2, 3))] == [0, 1, 2, 3, 4, 5, 6, 13, 20]
    assert not is_global(1, 0, (2, 3))


def test_chunk_overrides_the_rule_in_every_block():
    assert {mixer.chunk for _, mixer in variant("gspn_tiny").build({"chunk": 5}).blocks().values()} == {5}
    assert {mixer.chunk for _, mixer in variant("gspn_nano").build({}).blocks().values()} == {None}


# The mixing layer, step by step


def stepwise(op, x):
    """The whole mixing layer in float64 numpy, one pixel after the other."""
    weights = {name: p.detach().double().numpy() for name, p in op.named_parameters()}
    return np.stack([stepwise_image(op, weights, image) for image in x.double().numpy()])


def stepwise_image(op, weights, x):
    v = depthwise(per_pixel(weights["in_proj.weight"], x), weights["conv2d.weight"][:, 0])
    p = per_pixel(weights["x_conv_down.weight"][:, :, 0, 0], v)
    w, lam, u, skip = (
        per_pixel(weights[f"{name}.weight"][:, :, 0, 0], p)
        for name in ("w_conv_up", "l_conv_up", "u_conv_up", "d_conv")
    )
    m = weights["m_conv.weight"].ravel()
    channels, height, width = v.shape
    y = np.zeros_like(v)
    for k, c in itertools.product(range(4), range(channels)):
        kc = k * channels + c
        gates = [w[g * 4 * channels + kc] for g in range(3)]
        y[c] += m[k] * scan_direction(op, k, v[c], gates, lam[kc], u[kc], skip[kc])
    y = layer_norm(y, weights["out_norm.weight"], weights["out_norm.bias"])
    y = response_norm(y, weights["grn.gamma"].ravel(), weights["grn.beta"].ravel())
    assert y.shape == (channels, height, width)
    return per_pixel(weights["out_proj.weight"], y)


def scan_direction(op, k, v, gates, lam, u, skip):
    """One channel and direction: u h + D v, for each pixel of the map that the maps are drawn in."""
    height, width = v.shape
    released = op.merge == "released"
    lines, cross = (width, height) if released or k in (0, 2) else (height, width)
    h, out = {}, np.zeros_like(v)
    for t, n in itertools.product(range(lines), range(cross)):
        # Where the maps are read and the output lands, and where the input comes from.
        at = (n, t) if released else [(n, t), (t, n), (n, width - 1 - t), (height - 1 - t, n)][k]
        source = [(n, t), (t, n), (n, width - 1 - t), (width - 1 - t, n)][k] if released else at
        s = [sigmoid(gate[at]) for gate in gates]
        exists = [n > 0, True, n < cross - 1]
        total = max(sum(weight for weight, there in zip(s, exists, strict=True) if there), 1e-7)
        h[t, n] = lam[at] * v[source]
        if t % (op.chunk or lines):
            h[t, n] += sum(s[g] / total * h[t - 1, n + g - 1] for g in range(3) if exists[g])
        out[at] = u[at] * h[t, n] + skip[at] * v[source]
    return out


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def per_pixel(weight, x):
    y = np.zeros((weight.shape[0], *x.shape[1:]))
    for row, col in np.ndindex(*x.shape[1:]):
        y[:, row, col] = weight @ x[:, row, col]
    return y


def depthwise(x, kernel):
    y = np.zeros_like(x)
    for row, col, i, j in itertools.product(range(x.shape[1]), range(x.shape[2]), range(7), range(7)):
        r, c = row + i - 3, col + j - 3
        if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
            y[:, row, col] += kernel[:, i, j] * x[:, r, c]
    return y


def layer_norm(x, weight, bias):
    y = np.zeros_like(x)
    for row, col in np.ndindex(*x.shape[1:]):
        pixel = x[:, row, col]
        y[:, row, col] = (pixel - pixel.mean()) / np.sqrt(pixel.var() + 1e-5) * weight + bias
    return y


def response_norm(x, gamma, beta):
    norms = [np.sqrt((channel**2).sum()) for channel in x]
    mean = sum(norms) / len(norms)
    return np.stack([gamma[c] * x[c] * norms[c] / (mean + 1e-6) + beta[c] + x[c] for c in range(len(x))])


CASES = [
    ("aligned", None, (5, 5)),
    ("aligned", None, (3, 8)),
    ("aligned", 2, (6, 7)),
    ("aligned", 3, (7, 4)),
    ("aligned", 1, (2, 5)),
    ("aligned", 2, (1, 1)),
    ("released", None, (6, 6)),
    ("released", 2, (7, 7)),
    ("released", 4, (5, 5)),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("merge", "chunk", "grid"), CASES)
def test_the_mixing_layer_equals_its_formula_pixel_by_pixel(merge, chunk, grid, dtype, tolerance, randomise):
    op = Propagation(channels=4, inner=6, d_state=3, merge=merge, chunk=chunk).to(dtype)
    randomise(op, seed=sum(grid))
    x = torch.randn(2, 4, *grid, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = np.abs(op(x).numpy() - stepwise(op, x))
    assert difference.max() < tolerance


@pytest.mark.parametrize("merge", ["aligned", "released"])
def test_the_forward_pass_is_the_sum_of_what_the_frozen_directions_contribute(merge, randomise):
    op = Propagation(channels=4, inner=6, d_state=3, merge=merge, chunk=2).double()
    randomise(op, seed=3)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    state = op.freeze(x)
    summed = state.contributions(state.value).sum(0)
    torch.testing.assert_close(state.mix(state.value), summed)
    torch.testing.assert_close(op(x), op.out_proj(op.grn(op.out_norm(summed))))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_frozen_maps_have_the_order_that_the_scan_reads_and_need_no_copy(batch):
    op = Propagation(channels=4, inner=6, d_state=3, merge="aligned", chunk=None)
    state = op.freeze(torch.randn(batch, 4, 5, 8))
    assert state.gates.shape == (4, 3, batch, 6, 5, 8)
    assert state.lam.shape == state.u.shape == state.skip.shape == (4, batch, 6, 5, 8)
    assert all(maps.is_contiguous() for maps in (state.value, state.gates, state.lam, state.u, state.skip))
    torch.testing.assert_close(state.gates.sum(1), torch.ones(4, batch, 6, 5, 8))


def test_the_border_gates_that_are_zero_follow_the_frame_of_the_merge():
    x = torch.randn(1, 4, 6, 6)
    aligned, released = (Propagation(4, 6, 3, merge, None).freeze(x).gates for merge in ("aligned", "released"))
    for k, (first, last) in enumerate(
        [((0, slice(None)), (-1, slice(None))), ((slice(None), 0), (slice(None), -1))] * 2
    ):
        assert aligned[k, 0, 0, 0][first].abs().max() == aligned[k, 2, 0, 0][last].abs().max() == 0
        assert (aligned[k, 0] == 0).sum() == (aligned[k, 2] == 0).sum() == 6 * 6
        assert released[k, 0, 0, :, 0].abs().max() == released[k, 2, 0, :, -1].abs().max() == 0


def test_an_image_that_is_not_square_is_fine_in_image_coordinates_only():
    model = load_model("gspn_nano", seed=1)
    assert model(torch.randn(2, 3, 37, 50)).shape == (2, 10)
    assert [layer.grid for layer in model.layers((37, 50))] == [(19, 25)] * 2 + [(10, 13)] * 2
    released = load_model("gspn_nano", merge="released")
    with pytest.raises(ValueError, match=r"merge='released' .*needs square images; gspn_nano got 32 x 40"):
        released(torch.randn(1, 3, 32, 40))
    with pytest.raises(ValueError, match="use a square image or merge='aligned'"):
        released.layers((32, 40))
    assert released(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_gspn_tiny_takes_images_from_32_pixels():
    model = variant("gspn_tiny").build({})
    assert [layer.grid for layer in model.layers(32)][::4] == [(8, 8), (2, 2), (2, 2), (1, 1)]
    with pytest.raises(ValueError, match="gspn_tiny takes images of at least 32 x 32 pixels; got 31 x 64"):
        model.layers((31, 64))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"merge": "aligend"}, "no merge named 'aligend'; did you mean aligned"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1; got 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number of at least 1; got 2.5"),
        ({"depths": (1, 2)}, r"dims and depths must name the same number of stages; got dims \(96, .* depths \(1, 2\)"),
        ({"dims": 96}, "dims must be a list of whole numbers; got 96"),
        ({"stem_strides": (2,)}, "stem_strides must be two"),
        ({"global_stages": 3}, "global_stages must be a list and ratio a positive number; got 3"),
    ],
)
def test_a_setting_out_of_range_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        load_model("gspn_tiny", **config)


def test_gspn_tiny_classifies_a_224_pixel_image():
    model = load_model("gspn_tiny", seed=4)
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
