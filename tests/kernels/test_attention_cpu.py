"""Attention on the CPU: its numbers on every pattern, and what only this engine promises."""

import numba
import numpy as np
import pytest
import torch

from kernels.attention import (
    attend,
    axial,
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
)  # fmt: skip
from kernels.attention.cpu_plan import LANES, STAGED, WEIGHTS, layout
from kernels.vectormath import WIDTH, exp2, load, log32, store, total

GRID = (12, 15)
PATTERNS = [
    swin(3), swin(4, 2), swin((9, 8), (4, 2)), block((3, 5)), neighborhood(3), neighborhood((4, 7)),
    neighborhood(5, stride=2), neighborhood((4, 6), stride=(2, 3)), neighborhood(3, dilation=(2, 5)),
    neighborhood(4, causal=True), neighborhood((4, 3), (2, 1), (1, 2), True), halo(4, 1), halo((3, 2), (2, 0), "clamp"),
    grid((2, 3), GRID), stripe(2, 0), stripe(3, 1), axial(0), axial(1), disc(1), disc(4), full(),
    heads(swin(3), swin(3, 1)),
]  # fmt: skip
WITHOUT_BIAS = [cross(4), power(16, 2, 1), power(7, 1, 2), heads(disc(3), full())]

every_pattern = pytest.mark.parametrize("pattern", PATTERNS + WITHOUT_BIAS, ids=lambda p: p.name)


def draw(pattern, shape, keys=None, extra=0, bias=True):
    """q, k, v, bias and extra keys and values; None for those not there."""
    batch, height, width, count, channels = shape
    q = torch.randn(shape)
    k, v = torch.randn(2, batch, *(keys or (height, width)), count, channels)
    table = torch.randn(pattern.bias_shape(count, (height, width))) if bias else None
    more = torch.randn(2, batch, extra, count, channels) if extra else (None, None)
    return [q, k, v, table, *more]


def differentiate(tensors, pattern, backend, grad, wanted=(True,) * 6, scale=None):
    """The output and the wanted gradients, by a backend; the reference works in float64."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    tensors = [
        None if t is None else t.detach().to(dtype).requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)
    ]
    q, k, v, bias, more_k, more_v = tensors
    extra = None if more_k is None else (more_k, more_v)
    out = attend(q, k, v, pattern, bias, scale, backend=backend, extra=extra)
    asked = [t for t in tensors if t is not None and t.requires_grad]
    return [out, *torch.autograd.grad(out, asked, grad.to(dtype))]


def compare(agree, tensors, pattern, **options):
    grad = torch.randn_like(tensors[0])
    found = differentiate(tensors, pattern, "cpu", grad, **options)
    exact = differentiate(tensors, pattern, "reference", grad, **options)
    terms = tensors[0].shape[0] * tensors[0][0, :, :, 0, 0].numel() + tensors[1][0, :, :, 0].numel()
    for a, b in zip(found, exact, strict=True):
        # A gradient may be 0 because products of the inputs' size cancel.
        agree(a, b, terms=terms, scale=max(1.0, b.detach().abs().max().item()))


@every_pattern
def test_every_pattern_agrees_with_the_reference(pattern, agree, poison):
    bias = pattern not in WITHOUT_BIAS
    compare(agree, draw(pattern, (2, *GRID, 2, 20), bias=bias), pattern)
    if bias:
        compare(agree, draw(pattern, (1, *GRID, 2, 5), bias=False), pattern)


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 32, 48, 64, 65, 128, 130])
@pytest.mark.parametrize("pattern", [swin(7, 3), neighborhood(5)], ids=lambda p: p.name)
def test_any_number_of_channels_agrees(channels, pattern, agree, poison):
    compare(agree, draw(pattern, (1, 9, 8, 2, channels)), pattern)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (5, 4)], ids=str)
@pytest.mark.parametrize("pattern", [swin(6, 2), halo(2, 3), disc(3), full(), axial(1)], ids=lambda p: p.name)
def test_maps_smaller_than_a_window_agree(size, pattern, agree, poison):
    compare(agree, draw(pattern, (2, *size, 1, 8)), pattern)


@pytest.mark.parametrize(
    ("pattern", "size", "channels"),
    [(full(), (17, 21), 20), (power(100, 2, 1), (23, 17), 16), (disc(9), (19, 20), 8), (swin(14), (14, 15), 64),
     (axial(0), (150, 2), 8), (neighborhood(17), (18, 19), 64), (neighborhood(2, dilation=6), (12, 13), 4)],
    ids=lambda p: getattr(p, "name", None),
)  # fmt: skip
def test_keys_that_take_several_blocks_agree(pattern, size, channels, agree, poison):
    compare(agree, draw(pattern, (1, *size, 1, channels), bias=not pattern.raster), pattern)


@pytest.mark.parametrize("keys", [(3, 5), (1, 1), (14, 20)], ids=str)
def test_keys_on_a_grid_of_their_own_agree(keys, agree, poison):
    compare(agree, draw(full(), (2, 7, 9, 2, 8), keys=keys, bias=False), full())


@pytest.mark.parametrize("pattern", [swin(3, 1), neighborhood(3), full(), cross(2)], ids=lambda p: p.name)
@pytest.mark.parametrize("extra", [1, 5, 130])
def test_extra_keys_agree(pattern, extra, agree, poison):
    compare(agree, draw(pattern, (2, 5, 7, 2, 8), extra=extra, bias=False), pattern, scale=0.7)


@pytest.mark.parametrize("pattern", [swin(4, 1), neighborhood(3)], ids=lambda p: p.name)
@pytest.mark.parametrize("wanted", ["q", "k", "v", "b", "qb", "kv", "qv", "kb", "qkv"])
def test_only_the_gradients_that_are_needed_are_given(pattern, wanted, agree, poison):
    tensors = draw(pattern, (1, 6, 7, 2, 8))
    compare(agree, tensors, pattern, wanted=[name in wanted for name in "qkvb--"])


@pytest.mark.parametrize("pattern", [swin(4, 1), neighborhood(3), full(), disc(9)], ids=lambda p: p.name)
@pytest.mark.parametrize("level", [-300, 300])
def test_logits_of_any_level_neither_overflow_nor_vanish(pattern, level, agree, poison):
    tensors = draw(pattern, (1, 12, 13, 1, 4))
    tensors[3] += level
    grad = torch.randn_like(tensors[0])
    found, exact = (differentiate(tensors, pattern, backend, grad) for backend in ("cpu", "reference"))
    for a, b in zip(found, exact, strict=True):
        agree(a, b, terms=160 * abs(level))  # a logit near `level` is rounded to eps * level


@pytest.mark.parametrize("pattern", [swin(3, 1), neighborhood(3), full()], ids=lambda p: p.name)
def test_views_give_the_same_result_bit_by_bit(pattern, poison):
    q, k, v = torch.randn(2, 5, 4, 3, 2, 8).unbind(3)
    wanted = attend(q.clone(), k.clone(), v.clone(), pattern, backend="cpu")
    assert torch.equal(attend(q, k, v, pattern, backend="cpu"), wanted)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(attend(*turned, pattern, backend="cpu"), wanted)
    channels_first = [t.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2) for t in (q, k, v)]
    assert torch.equal(attend(*channels_first, pattern, backend="cpu"), wanted)
    shared = k[:1, :1].expand(k.shape)
    found = attend(q, shared, v, pattern, backend="cpu")
    assert torch.equal(found, attend(q, shared.contiguous(), v, pattern, backend="cpu"))


@pytest.mark.parametrize("pattern", [swin(7), neighborhood(7), full()], ids=lambda p: p.name)
def test_the_number_of_threads_changes_no_bit(pattern):
    tensors = draw(pattern, (2, 14, 15, 2, 16))
    grad = torch.randn_like(tensors[0])
    before = numba.get_num_threads()
    found = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            found.append(differentiate(tensors, pattern, "cpu", grad))
    finally:
        numba.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@every_pattern
def test_a_key_that_is_not_read_weighs_exactly_nothing(pattern):
    q, k, v, *_ = draw(pattern, (1, *GRID, 2, 4), bias=False)
    key = (5, 7)
    v.zero_()[0, key[0], key[1]] = 1
    found = attend(q, k, v, pattern, backend="cpu")[0].amax(-1)
    groups = [group for group in pattern.groups for _ in range(2 // len(pattern.groups))]
    reads = torch.stack([group.mask(GRID)[:, key[0] * GRID[1] + key[1]].view(GRID) for group in groups], -1)
    assert torch.equal(found > 0, reads)


@every_pattern
@pytest.mark.parametrize("tiles", ["query", "key", "both"])
def test_tiles_hold_every_pair_that_is_read_once(pattern, tiles):
    for group in pattern.groups:
        size = group.on(GRID)
        plan = layout(group, size, size, 1, 1, 32, tiles)
        held = np.zeros((size[0] * size[1],) * 2, int)
        for _, row, col, _ in plan.items:
            for r in plan.rows[row]:
                for c in plan.cols[col]:
                    q, k = ((r[i] + r[4] * np.arange(r[i + 1])) for i in (0, 2))
                    qc, kc = ((c[i] + c[4] * np.arange(c[i + 1])) for i in (0, 2))
                    q, k = (q[:, None] * size[1] + qc).ravel(), (k[:, None] * size[1] + kc).ravel()
                    held[q[:, None], k] += 1
        assert (held[group.mask(GRID).numpy()] == 1).all()
        assert plan.masked or held.sum() == group.mask(GRID).sum()


def test_memory_does_not_grow_with_the_keys():
    for size in (14, 56, 128):
        plan = layout(full(), (size, size), (size, size), 1, 1, 64, "query")
        assert plan.block * plan.lanes <= WEIGHTS
        assert plan.block * 64 <= STAGED
        assert plan.lanes <= LANES


def test_one_image_and_head_is_work_for_many_threads():
    for tiles in ("query", "key"):
        assert layout(full(), (56, 56), (56, 56), 1, 1, 32, tiles).chunks >= 16


@numba.njit
def _powers(x, powers, sums):
    for i in range(0, len(x), WIDTH):
        store(powers, i, exp2(load(x, i)))
        sums[i // WIDTH] = total(load(x, i))


def test_vector_exp2_is_exact_to_two_units_in_the_last_place():
    x = np.linspace(-125, 126, 16 * 2**14).astype(np.float32)
    powers, sums = np.empty_like(x), np.empty(len(x) // WIDTH, np.float32)
    _powers(x, powers, sums)
    assert np.abs(powers / np.exp2(x.astype(np.float64)) - 1).max() <= 2 * np.finfo(np.float32).eps
    np.testing.assert_allclose(sums, x.reshape(-1, WIDTH).sum(1), rtol=1e-5, atol=1e-3)
    special = np.resize(np.array([0, 1, -126, -1e30, -np.inf, np.nan], np.float32), 6 * WIDTH)
    powers = np.empty_like(special)
    _powers(special, powers, np.empty(6, np.float32))
    np.testing.assert_array_equal(powers[:6], [1, 2, 0, 0, 0, np.nan])


@numba.njit
def _logarithms(x, found):
    for i in range(len(x)):
        found[i] = log32(x[i])


def test_log32_is_exact_to_two_units_in_the_last_place():
    x = np.concatenate([np.linspace(0.5, 2, 10001), np.logspace(-37, 38, 10001)]).astype(np.float32)
    found, exact = np.empty_like(x), np.log(x.astype(np.float64))
    _logarithms(x, found)
    assert (np.abs(found - exact) <= 2 * np.finfo(np.float32).eps * np.maximum(np.abs(exact), 0.1)).all()
    special = np.empty(2, np.float32)
    _logarithms(np.array([1, np.nan], np.float32), special)
    np.testing.assert_array_equal(special, [0, np.nan])
