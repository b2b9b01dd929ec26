"""Neighbourhood attention: every backend gives the output and the gradients of the reference in float64."""

import random

import pytest
import torch

from kernels.attention import (
    Axis,
    Pattern,
    PowerAxis,
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
)

#: (B, H, W, heads, d), pattern: odd, non-square, 1-wide, 1-high, window larger than the map, more queries than a tile.
WINDOWS = {
    "odd and non-square": ((2, 5, 7, 2, 20), swin(3)),
    "shifted": ((1, 7, 5, 2, 16), swin(4, 2)),
    "shifted by rows only": ((1, 5, 4, 1, 8), swin((2, 3), (1, 0))),
    "one column": ((1, 9, 1, 1, 3), swin(4, 1)),
    "one row": ((1, 1, 9, 2, 8), swin((3, 4), (0, 2))),
    "one position": ((2, 1, 1, 2, 1), swin(3, 1)),
    "window larger than the map": ((1, 4, 3, 2, 8), swin(6, 2)),
    "more queries than a tile": ((1, 9, 9, 1, 24), swin((9, 8))),
    "one tile of many windows": ((2, 5, 6, 1, 4), block(1)),
}

#: The other patterns of the family, each on a grid that does not suit it.
FAMILY = {
    "neighborhood": ((2, 7, 6, 2, 8), neighborhood(3)),
    "even kernel": ((1, 7, 6, 2, 8), neighborhood((4, 2))),
    "kernel as large as the map": ((1, 5, 7, 1, 8), neighborhood((5, 7))),
    "kernel of one row": ((1, 4, 9, 1, 8), neighborhood((1, 5))),
    "stride": ((1, 7, 9, 1, 8), neighborhood(5, 3)),
    "even stride": ((1, 9, 7, 1, 8), neighborhood(5, (2, 4))),
    "blocked": ((1, 7, 8, 1, 8), neighborhood(3, 3)),
    "dilation": ((2, 7, 9, 1, 8), neighborhood(3, 1, 2)),
    "stride and dilation": ((1, 9, 11, 1, 8), neighborhood(4, (1, 3), (2, 2))),
    "causal": ((1, 7, 6, 2, 8), neighborhood(3, causal=True)),
    "causal, strided and dilated": ((1, 7, 6, 1, 8), neighborhood(4, 2, 2, causal=True)),
    "causal on one row": ((2, 1, 9, 1, 8), neighborhood((1, 4), causal=True)),
    "halo": ((1, 7, 6, 2, 8), halo(2, 1)),
    "clamped halo": ((1, 7, 6, 2, 8), halo(2, (1, 2), "clamp")),
    "grid": ((1, 6, 9, 1, 8), grid(3, (6, 9))),
    "stripes": ((1, 5, 7, 2, 8), stripe(2)),
    "rows of stripes": ((1, 5, 7, 1, 8), stripe(3, 1)),
    "cross": ((1, 5, 6, 4, 8), cross(2)),
    "axial": ((2, 5, 6, 1, 8), axial(1)),
    "axial on one column": ((1, 7, 1, 1, 8), axial(0)),
    "disc": ((1, 6, 7, 2, 8), disc(3)),
    "disc of one": ((1, 4, 3, 1, 8), disc(1)),
    "power": ((1, 5, 5, 2, 8), power(4, 2, 1)),
    "power without a sink": ((2, 3, 5, 1, 8), power(3, 1, 0)),
    "power along the rows of a map": ((1, 9, 3, 1, 8), Pattern(PowerAxis(2, 2, 1), Axis(), "power rows")),
    "full": ((1, 5, 4, 2, 8), full()),
    "full on one position": ((1, 1, 1, 1, 8), full()),
    "heads": ((1, 5, 6, 4, 8), heads(swin(3), neighborhood(3, 2))),
}


def random_pattern(seed):
    """A map and two rules of every kind: kernels, strides, dilations, offsets and borders, sometimes a disc."""
    draw = random.Random(seed)
    axes, sizes = [], []
    for _ in range(2):
        kernel = draw.randint(1, 4)
        stride, dilation = draw.randint(1, kernel), draw.randint(1, 2)
        rule = Axis(
            kernel, stride, dilation, draw.randrange(stride), draw.choice(["clamp", "crop"]), draw.random() < 0.2
        )
        axes.append(rule)
        sizes.append(kernel * dilation + draw.randint(0, 3))
    radius = draw.choice([None, None, 2, 3])
    return (draw.randint(1, 2), *sizes, 1, draw.choice([4, 7])), Pattern(*axes, name=f"random {seed}", radius=radius)


CASES = WINDOWS | FAMILY
backends = pytest.mark.parametrize("backend", ["cpu", "triton"])


def cases(chosen):
    return pytest.mark.parametrize(("shape", "pattern"), chosen.values(), ids=chosen)


@pytest.fixture
def draw(device_of):
    """draw(backend, shape, pattern) -> q, k, v and bias (or None), where the backend runs, asking for gradients."""

    def make(backend, shape, pattern, dtype=torch.float32, bias=True):
        shapes = [shape] * 3 + [bias_shape(shape, pattern)] * bias
        made = [None if s is None else torch.randn(s).to(device_of(backend), dtype).requires_grad_() for s in shapes]
        return made if bias else [*made, None]

    return make


def bias_shape(shape, pattern):
    """The shape of a pattern's bias, or None if it has no one table."""
    try:
        return pattern.bias_shape(shape[3], tuple(shape[1:3]))
    except ValueError:
        return None


def differentiate(tensors, pattern, backend, grad, scale=None, extra=None, relative="query-key"):
    """The output, then the gradient of every tensor that asks for one."""
    out = attend(*tensors[:3], pattern, tensors[3], scale, backend=backend, extra=extra, relative=relative)
    asked = [t for t in (*tensors, *(extra or ())) if t is not None and t.requires_grad]
    return [out, *torch.autograd.grad(out, asked, grad)]


def doubled(tensors):
    """The same in float64 on the CPU."""
    return [None if t is None else t.detach().cpu().double().requires_grad_(t.requires_grad) for t in tensors]


def exact(tensors, pattern, grad, scale=None, extra=None, relative="query-key"):
    """The output and the gradients by the reference in float64."""
    extra = None if extra is None else doubled(extra)
    return differentiate(doubled(tensors), pattern, "reference", grad.cpu().double(), scale, extra, relative)


def compare(agree, tensors, pattern, backend, grad=None, **settings):
    q = tensors[0]
    grad = torch.randn_like(q) if grad is None else grad
    found = differentiate(tensors, pattern, backend, grad, **settings)
    wanted = exact(tensors, pattern, grad, **settings)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.dtype, a.shape) == (q.dtype, b.shape)
        # Where a gradient vanishes, as for a query with one key, terms of the size of the random numbers, 1, cancel.
        terms, scale = q.shape[0] * q.shape[1] * q.shape[2] + q.shape[4], max(1.0, b.abs().max().item())
        agree(a, b, terms, scale)


@backends
@cases(CASES)
def test_a_backend_agrees_with_the_reference(shape, pattern, backend, draw, agree, poison):
    compare(agree, draw(backend, shape, pattern), pattern, backend)


@backends
@pytest.mark.parametrize("seed", range(12))
def test_a_backend_agrees_on_random_rules(seed, backend, draw, agree, poison):
    shape, pattern = random_pattern(seed)
    compare(agree, draw(backend, shape, pattern), pattern, backend)


@backends
@pytest.mark.parametrize("name", ["shifted", "neighborhood", "cross", "disc", "power", "full"])
def test_extra_keys_share_the_softmax_with_the_patterns_keys(name, backend, draw, device_of, agree, poison):
    shape, pattern = CASES[name]
    extra = [torch.randn(shape[0], 3, *shape[3:], device=device_of(backend)).requires_grad_() for _ in range(2)]
    compare(agree, draw(backend, shape, pattern), pattern, backend, extra=extra)


@backends
@pytest.mark.parametrize("asked", [(), (0,), (1,)])
def test_extra_keys_get_only_the_gradients_that_are_needed(asked, backend, draw, device_of, agree, poison):
    shape, pattern = (1, 4, 3, 2, 8), swin(2, 1)
    extra = [torch.randn(1, 5, 2, 8, device=device_of(backend)).requires_grad_(n in asked) for n in range(2)]
    tensors = draw(backend, shape, pattern)
    for tensor in tensors[1:]:
        tensor.requires_grad_(False)
    compare(agree, tensors, pattern, backend, extra=extra)


@backends
@pytest.mark.parametrize("keys", [(1, 1), (2, 3), (7, 9), (9, 8)])
def test_keys_that_are_all_read_may_lie_on_another_grid(keys, backend, draw, device_of, agree, poison):
    q, *_, _ = draw(backend, (2, 5, 4, 2, 8), full(), bias=False)
    k, v = (torch.randn(2, *keys, 2, 8, device=device_of(backend)).requires_grad_() for _ in range(2))
    compare(agree, [q, k, v, None], full(), backend)


@backends
@pytest.mark.parametrize("name", ["shifted", "neighborhood", "dilation", "causal"])
def test_a_bias_may_be_read_at_key_minus_query(name, backend, draw, agree, poison):
    shape, pattern = CASES[name]
    compare(agree, draw(backend, shape, pattern), pattern, backend, relative="key-query")


@backends
@pytest.mark.parametrize("name", ["shifted", "dilation", "disc", "power", "heads"])
def test_a_bias_is_not_read_outside_its_table(name, backend, draw, poison):
    """What lies before and after the table in memory is NaN, and must reach neither the output nor a gradient."""
    shape, pattern = CASES[name]
    q, k, v, bias = draw(backend, shape, pattern)
    if bias is not None:
        around = torch.full((3, *bias.shape), torch.nan, device=bias.device)
        around[1] = bias.detach()
        bias = around[1].requires_grad_()
    for found in differentiate([q, k, v, bias], pattern, backend, torch.randn_like(q)):
        assert found.isfinite().all()


@backends
def test_a_backend_agrees_without_a_bias_and_with_a_scale(backend, draw, agree, poison):
    for pattern in (swin(3, 1), neighborhood(3)):
        compare(agree, draw(backend, (1, 4, 5, 2, 8), pattern, bias=False), pattern, backend, scale=-0.7)


@pytest.mark.parametrize(
    ("shape", "pattern"), [((1, 13, 11, 2, 130), swin((8, 11), (5, 0))), ((2, 14, 14, 1, 64), swin(14))]
)
def test_the_cpu_agrees_where_queries_and_channels_are_split(shape, pattern, draw, agree, poison):
    compare(agree, draw("cpu", shape, pattern), pattern, "cpu")


@backends
@pytest.mark.parametrize("level", [-200, 200])
def test_logits_of_any_level_neither_overflow_nor_vanish(level, backend, draw, agree, poison):
    """Seventy queries: the last block of the CPU is not full, and what a full one left must not reach its sums."""
    pattern = swin((10, 7))
    q, k, v, bias = draw(backend, (1, 10, 7, 1, 4), pattern)
    bias = (bias.detach() + level).requires_grad_()
    grad = torch.randn_like(q)
    found = differentiate([q, k, v, bias], pattern, backend, grad)
    wanted = exact([q, k, v, bias], pattern, grad)
    for a, b in zip(found, wanted, strict=True):
        agree(a, b, terms=70 * abs(level))  # a logit near `level` is rounded to eps * level


@backends
@pytest.mark.parametrize("pattern", [swin(3, 1), neighborhood(3)], ids=lambda p: p.name)
@pytest.mark.parametrize("wanted", ["v", "k", "q", "b", "qv", "kb", "qkv"])
def test_only_the_gradients_that_are_needed_are_given(wanted, pattern, backend, draw, agree, poison):
    tensors = draw(backend, (1, 4, 3, 2, 8), pattern)
    for name, tensor in zip("qkvb", tensors, strict=True):
        tensor.requires_grad_(name in wanted)
    compare(agree, tensors, pattern, backend)


@backends
@cases(CASES)
def test_weights_sum_to_one(shape, pattern, backend, draw, poison):
    q, k, v, bias = draw(backend, shape, pattern)
    out = attend(q, k, torch.ones_like(v), pattern, bias, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out))


@backends
@pytest.mark.parametrize("pattern", [swin(2, 1), neighborhood(2), cross(1), power(3, 1, 1)], ids=lambda p: p.name)
def test_views_of_fused_and_transposed_tensors_give_the_same_result(pattern, backend, device_of, poison):
    def results(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = attend(*leaves, pattern, backend=backend)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    q, k, v = torch.randn(2, 3, 2, 3, 2, 8, device=device_of(backend)).unbind(3)
    grad = torch.randn(2, 3, 2, 2, 8, device=device_of(backend)).transpose(2, 3)
    channels_first = v.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    columns_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    shared = q[:1, :1].expand(q.shape)
    for views in ((q, k, v), (shared, columns_first, channels_first)):
        for a, b in zip(results(*views), results(*(t.contiguous() for t in views)), strict=True):
            assert torch.equal(a, b)


@backends
def test_a_gradient_that_is_one_number_in_memory_is_read_correctly(backend, draw, agree):
    tensors = draw(backend, (1, 3, 2, 1, 4), swin(2))
    compare(agree, tensors, swin(2), backend, grad=torch.ones((), device=tensors[0].device).expand(tensors[0].shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["shifted", "neighborhood", "halo", "cross", "disc", "power", "full"])
def test_half_precision_costs_the_rounding_of_what_is_stored(name, dtype, draw, poison):
    shape, pattern = CASES[name]
    tensors = draw("triton", shape, pattern, dtype)
    grad = torch.randn_like(tensors[0])
    # Weights and their gradients are rounded too, before they are multiplied with the values.
    for a, b in zip(differentiate(tensors, pattern, "triton", grad), exact(tensors, pattern, grad), strict=True):
        assert a.dtype == dtype
        assert (a.cpu() - b).abs().max() <= 4 * torch.finfo(dtype).eps * b.abs().max()


@backends
def test_transposing_the_map_transposes_the_output(backend, draw):
    q, k, v, bias = draw(backend, (1, 5, 8, 2, 8), swin((3, 4), (1, 2)))
    turned = [t.transpose(1, 2) for t in (q, k, v)]
    found = attend(*turned, swin((4, 3), (2, 1)), bias.transpose(1, 2), backend=backend)
    wanted = attend(q, k, v, swin((3, 4), (1, 2)), bias, backend=backend)
    torch.testing.assert_close(found.transpose(1, 2), wanted)


@backends
def test_flipping_the_map_and_the_bias_flips_the_output(backend, draw):
    q, k, v, bias = draw(backend, (1, 6, 4, 2, 8), swin((3, 2)))
    flipped = [t.flip(1, 2) for t in (q, k, v)]
    found = attend(*flipped, swin((3, 2)), bias.flip(-1, -2), backend=backend)
    torch.testing.assert_close(found.flip(1, 2), attend(q, k, v, swin((3, 2)), bias, backend=backend))
