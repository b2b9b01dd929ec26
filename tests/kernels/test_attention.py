"""Neighbourhood attention: the reference is masked softmax attention, and bad input is refused in one sentence.

`test_attention_backends.py` compares the other backends with the reference; `test_attention_patterns.py` is about what
a pattern reads.
"""

import pytest
import torch
import torch.nn.functional as F

from kernels.attention import (
    attend,
    block,
    cross,
    disc,
    full,
    grid,
    halo,
    heads,
    neighborhood,
    power,
    stripe,
    swin,
)
from kernels.backends import BackendUnavailable

SIZE = (5, 6)
PATTERNS = [
    swin(3), swin(4, 2), swin((3, 4), (1, 3)), block((2, 5)), swin(9, 4), neighborhood(3), neighborhood((4, 3), (2, 1)),
    neighborhood(2, dilation=2), neighborhood(3, causal=True), halo(2, 1), halo(2, 1, "clamp"), grid((5, 3), SIZE),
    stripe(2), stripe(2, 1), disc(3), full(),
]  # fmt: skip
NO_TABLE = [cross(2), power(4, 2, 1), heads(swin(2), neighborhood(3))]

NAMED = {"ids": lambda pattern: pattern.name}


def dense(q, k, v, allowed, scale=None):
    """Softmax attention of flattened maps; allowed (N, N) or (heads, N, N), bool or added to the logits."""
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    return F.scaled_dot_product_attention(*flat, attn_mask=allowed, scale=scale).transpose(1, 2).reshape(q.shape)


def bias_of_pairs(bias, pattern, size):
    """The bias of every query and key, (heads, N, N), by its definition: read at query minus key, in steps."""
    row, col = (p.flatten() for p in torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    at = []
    for place, rule, length in ((row, pattern.rows, size[0]), (col, pattern.cols, size[1])):
        extent = rule.extent(length)
        steps = torch.div(place[:, None] - place[None, :], rule.step, rounding_mode="trunc")
        at.append((steps + extent - 1).clamp(0, 2 * extent - 2))  # a pair outside the table is not allowed
    return bias[:, at[0], at[1]]


def draw(count=3):
    return torch.randn(count, 2, *SIZE, 2, 4, dtype=torch.float64)


@pytest.mark.parametrize("pattern", PATTERNS, **NAMED)
@pytest.mark.parametrize("scale", [None, -0.7])
def test_the_reference_is_masked_softmax_attention(pattern, scale):
    q, k, v = draw()
    bias = torch.randn(pattern.bias_shape(2, SIZE), dtype=torch.float64)
    added = bias_of_pairs(bias, pattern, SIZE).masked_fill(~pattern.mask(SIZE), -torch.inf)
    found = attend(q, k, v, pattern, bias, scale, backend="reference")
    torch.testing.assert_close(found, dense(q, k, v, added, scale))


@pytest.mark.parametrize("pattern", NO_TABLE, **NAMED)
def test_groups_of_heads_and_raster_orders_are_masked_softmax_attention(pattern):
    q, k, v = draw()
    allowed = torch.stack([part.mask(SIZE) for part in pattern.groups]).expand(2, -1, -1)
    torch.testing.assert_close(attend(q, k, v, pattern, backend="reference"), dense(q, k, v, allowed))


@pytest.mark.parametrize("pattern", [swin(3, 1), cross(2), full()], **NAMED)
def test_extra_keys_are_further_columns_of_the_softmax(pattern):
    q, k, v = draw()
    extra = torch.randn(2, 2, 3, 2, 4, dtype=torch.float64)
    allowed = torch.stack([part.mask(SIZE) for part in pattern.groups]).expand(2, -1, -1)
    allowed = torch.cat([allowed, torch.ones(2, allowed.shape[1], 3, dtype=torch.bool)], 2)
    longer = [torch.cat([t.flatten(1, 2), more], 1) for t, more in zip((k, v), extra, strict=True)]
    flat = [t.transpose(1, 2) for t in (q.flatten(1, 2), *longer)]
    wanted = F.scaled_dot_product_attention(*flat, attn_mask=allowed).transpose(1, 2).reshape(q.shape)
    found = attend(q, k, v, pattern, extra=(extra[0], extra[1]), backend="reference")
    torch.testing.assert_close(found, wanted)


def test_a_bias_read_at_key_minus_query_is_the_flipped_table():
    pattern, (q, k, v) = neighborhood(3), draw()
    bias = torch.randn(pattern.bias_shape(2), dtype=torch.float64)
    found = attend(q, k, v, pattern, bias, relative="key-query", backend="reference")
    assert torch.equal(found, attend(q, k, v, pattern, bias.flip(1, 2), backend="reference"))
    at_query = attend(q, k, v, pattern, bias, backend="reference")
    assert not torch.allclose(found, at_query)


def test_pooled_keys_of_another_grid_are_all_read():
    q, (k, v) = draw(1)[0], torch.randn(2, 2, 2, 3, 2, 4, dtype=torch.float64)
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*flat).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(attend(q, k, v, full(), backend="reference"), wanted)


@pytest.mark.parametrize("pattern", [swin((2, 3), (1, 1)), neighborhood((3, 2)), disc(2)], **NAMED)
def test_the_gradients_of_the_reference_are_those_of_finite_differences(pattern):
    tensors = [torch.randn(1, 3, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tensors.append(torch.randn(pattern.bias_shape(2), dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda q, k, v, b: attend(q, k, v, pattern, b, backend="reference"), tensors)


TOKENS, BIAS, EXTRA = torch.zeros(1, 4, 4, 2, 8), torch.zeros(2, 5, 5), torch.zeros(1, 3, 2, 8)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"pattern": 7}, TypeError, r"pattern must be a Pattern, such as swin\(7\); got int."),
        ({"q": [1.0]}, TypeError, "q must be a tensor; got list."),
        ({"k": None}, TypeError, "k must be a tensor; got NoneType."),
        ({"q": TOKENS.int()}, TypeError, "q must be a floating-point tensor; got torch.int32."),
        ({"v": TOKENS.double()}, TypeError, "v must have the dtype of q, torch.float32; got torch.float64."),
        ({"q": TOKENS[0]}, ValueError, r"q must be \(B, H, W, heads, d\) with no empty axis; got \(4, 4, 2, 8\)."),
        ({"q": TOKENS[:0]}, ValueError, r"q must be .* with no empty axis; got \(0, 4, 4, 2, 8\)."),
        ({"k": TOKENS[:, :3]}, ValueError, r"k must have the shape of q, \(1, 4, 4, 2, 8\); got \(1, 3, 4, 2, 8\)."),
        ({"v": TOKENS.to("meta")}, ValueError, "v must be on the device of q, cpu; got meta."),
        ({"bias": BIAS.double()}, TypeError, "bias must have the dtype of q, torch.float32; got torch.float64."),
        (
            {"pattern": full(), "bias": torch.zeros(2, 7, 7), "k": TOKENS[:, :3], "v": TOKENS[:, :3]}, ValueError,
            r"bias needs keys on the grid of the queries, \(4, 4\); got keys on \(3, 4\).",
        ),
        ({"bias": BIAS[:1]}, ValueError, r"bias must be .* = \(2, 5, 5\) for swin 3x3; got \(1, 5, 5\)."),
        ({"scale": "1"}, TypeError, r"scale must be a number, or None for d \*\* -0.5; got str."),
        ({"scale": float("nan")}, ValueError, "scale must be finite; got nan."),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*; got 'cuda'."),
        ({"relative": "both"}, ValueError, "relative must be 'query-key' or 'key-query'; got 'both'."),
        ({"extra": TOKENS[0]}, TypeError, "extra must be a pair of tensors: further keys and values."),
        ({"extra": (EXTRA, None)}, TypeError, "extra values must be a tensor; got NoneType."),
        (
            {"extra": (EXTRA[:, :, :1], EXTRA)}, ValueError,
            r"extra keys must be \(B, S, heads, d\) with B, heads and d of q, 1, 2, 8; got \(1, 3, 1, 8\).",
        ),
        (
            {"extra": (EXTRA, EXTRA[:, :2])}, ValueError,
            r"extra keys and values must have one shape; got \(1, 3, 2, 8\) and \(1, 2, 2, 8\).",
        ),
        (
            {"pattern": full(), "bias": None, "k": TOKENS[..., :1, :]}, ValueError,
            r"k must be \(B, KH, KW, heads, d\) with B, heads and d of q, \(1, 2, 8\), and no empty axis; got .*",
        ),
        (
            {"pattern": full(), "bias": None, "v": TOKENS[:, :3]}, ValueError,
            r"v must have the shape of k, \(1, 4, 4, 2, 8\); got \(1, 3, 4, 2, 8\).",
        ),
        ({"pattern": cross(1)}, ValueError, "cross of stripes of 1 has no relative position bias, .*"),
        (
            {"pattern": heads(swin(2), swin(3), swin(4)), "bias": None}, ValueError,
            r"heads must be a multiple of 3 for .*; got 2.",
        ),
        (
            {"pattern": neighborhood(5), "bias": None}, ValueError,
            "neighborhood 5x5 needs a map of at least 5 rows, .*; got 4: choose a kernel of at most 4 or a larger map.",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(change, error, sentence):
    arguments = {"q": TOKENS, "k": TOKENS, "v": TOKENS, "pattern": swin(3), "bias": BIAS} | change
    with pytest.raises(error, match=f"^{sentence}$"):
        attend(**arguments)


def test_a_head_too_wide_for_triton_is_refused_with_a_remedy(device_of):
    q = torch.zeros(1, 2, 2, 1, 129, device=device_of("triton"))
    sentence = r"backend='triton' takes at most 128 channels a head; got 129: use backend='reference'\."
    with pytest.raises(BackendUnavailable, match=f"^{sentence}$"):
        attend(q, q, q, swin(2), backend="triton")
