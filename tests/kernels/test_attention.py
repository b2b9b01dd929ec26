"""Neighbourhood attention: patterns read the keys of their definition, and the reference is masked softmax attention.

`test_attention_backends.py` compares the other backends with the reference.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from kernels.attention import attend, block, swin
from kernels.backends import BackendUnavailable

PATTERNS = [swin(3), swin(4, 2), swin((3, 4), (1, 3)), block((2, 5)), swin(9, 4)]
GRIDS = [(7, 5), (1, 6), (6, 1), (1, 1), (8, 12)]

patterns = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)


def positions(grid):
    return itertools.product(range(grid[0]), range(grid[1]))


def rolled_and_masked(window, shift, height, width):
    """Which query reads which key in Swin's own construction: roll, cut into windows, forbid pairs of two regions."""
    region = torch.zeros(height, width)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for n, (rows, cols) in enumerate(itertools.product(slices, slices)):
        region[rows, cols] = n

    def windows(grid):
        return grid.unfold(0, window, window).unfold(1, window, window).reshape(-1, window * window)

    position = windows(torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1)))
    reads = torch.zeros(height * width, height * width, dtype=torch.bool)
    for place, same in zip(position, windows(region), strict=True):
        reads[place[:, None], place[None, :]] = same[:, None] == same[None, :]
    return reads


@pytest.mark.parametrize(("window", "shift", "grid"), [(7, 3, (14, 21)), (4, 2, (8, 12)), (4, 1, (8, 8))])
def test_shifted_windows_are_those_of_rolling_and_masking(window, shift, grid):
    assert torch.equal(swin(window, shift).mask(grid), rolled_and_masked(window, shift, *grid))


@grids
@patterns
def test_keys_are_the_positions_of_the_same_cell_in_row_major_order(pattern, grid):
    rows, cols = pattern.rows, pattern.cols

    def cell(i, axis):
        return (i + axis.kernel - axis.offset) // axis.kernel

    for r, c in positions(grid):
        same = [(i, j) for i, j in positions(grid) if cell(i, rows) == cell(r, rows) and cell(j, cols) == cell(c, cols)]
        assert pattern.keys((r, c), grid) == same


@grids
@patterns
def test_count_and_mask_say_what_keys_says(pattern, grid):
    mask, count = pattern.mask(grid), pattern.count(grid)
    for r, c in positions(grid):
        keys = pattern.keys((r, c), grid)
        assert count[r, c] == len(keys)
        assert mask[r * grid[1] + c].nonzero().flatten().tolist() == [i * grid[1] + j for i, j in keys]


def test_patterns_are_equal_when_they_read_the_same_keys():
    assert swin(7) == swin((7, 7), (0, 0)) == block(7)
    assert hash(swin(7)) == hash(block(7))
    assert swin(7) != swin(7, 3)
    assert (swin(7, 3).name, block((2, 3)).name) == ("swin 7x7 shifted by 3x3", "block 2x3")


@patterns
@pytest.mark.parametrize("scale", [None, -0.7])
def test_the_reference_is_masked_softmax_attention(pattern, scale):
    _, height, width, heads, _ = shape = (2, 5, 6, 2, 4)
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    bias = torch.randn(pattern.bias_shape(heads), dtype=torch.float64)
    row, col = (p.flatten() for p in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    kh, kw = pattern.rows.kernel, pattern.cols.kernel
    down = (row[:, None] - row[None, :] + kh - 1).clamp(0, 2 * kh - 2)
    right = (col[:, None] - col[None, :] + kw - 1).clamp(0, 2 * kw - 2)
    added = bias[:, down, right].masked_fill(~pattern.mask((height, width)), -torch.inf)
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    dense = F.scaled_dot_product_attention(*flat, attn_mask=added, scale=scale).transpose(1, 2).view(shape)
    torch.testing.assert_close(attend(q, k, v, pattern, bias, scale, backend="reference"), dense)


def test_the_gradients_of_the_reference_are_those_of_finite_differences():
    pattern = swin((2, 3), (1, 1))
    tensors = [torch.randn(1, 3, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tensors.append(torch.randn(pattern.bias_shape(2), dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda q, k, v, b: attend(q, k, v, pattern, b, backend="reference"), tensors)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: swin(0), "window must be at least 1 position a side; got 0."),
        (lambda: block((3, -1)), r"window must be at least 1 position a side; got \(3, -1\)."),
        (lambda: swin(7, 7), "shift must be at least 0 and smaller than the window 7; got 7."),
        (lambda: swin((4, 2), (0, -1)), r"shift must be at least 0 and smaller .* \(4, 2\); got \(0, -1\)."),
        (lambda: swin(2.5), r"window must be a whole number or a \(rows, cols\) pair of them; got 2.5."),
        (lambda: swin(7, (1, 2, 3)), r"shift must be a whole number or .* got \(1, 2, 3\)."),
        (lambda: swin(7).keys((3, 9), (8, 9)), r".* on the grid of 8 rows and 9 columns; got \(3, 9\)."),
        (lambda: swin(7).keys((-1, 0), (8, 9)), r".* on the grid of 8 rows and 9 columns; got \(-1, 0\)."),
    ],
)
def test_a_bad_window_shift_or_position_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make()


TOKENS, BIAS = torch.zeros(1, 4, 4, 2, 8), torch.zeros(2, 5, 5)


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
        ({"bias": BIAS[:1]}, ValueError, r"bias must be .* = \(2, 5, 5\) for swin 3x3; got \(1, 5, 5\)."),
        ({"scale": "1"}, TypeError, r"scale must be a number, or None for d \*\* -0.5; got str."),
        ({"scale": float("nan")}, ValueError, "scale must be finite; got nan."),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*; got 'cuda'."),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, error, sentence):
    arguments = {"q": TOKENS, "k": TOKENS, "v": TOKENS, "pattern": swin(3), "bias": BIAS} | change
    with pytest.raises(error, match=f"^{sentence}$"):
        attend(**arguments)


def test_a_head_too_wide_for_triton_is_refused_with_a_remedy(device_of):
    q = torch.zeros(1, 2, 2, 1, 129, device=device_of("triton"))
    sentence = r"backend='triton' takes at most 128 channels a head; got 129: use backend='reference'\."
    with pytest.raises(BackendUnavailable, match=f"^{sentence}$"):
        attend(q, q, q, swin(2), backend="triton")
