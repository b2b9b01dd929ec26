"""Neighbourhood attention: every backend gives the output and the gradients of the reference in float64."""

import pytest
import torch

from kernels.attention import attend, swin

#: (B, H, W, heads, d), pattern: odd, non-square, 1-wide, 1-high, window larger than the map, more queries than a tile.
CASES = {
    "odd and non-square": ((2, 5, 7, 2, 20), swin(3)),
    "shifted": ((1, 7, 5, 2, 16), swin(4, 2)),
    "shifted by rows only": ((1, 5, 4, 1, 8), swin((2, 3), (1, 0))),
    "one column": ((1, 9, 1, 1, 3), swin(4, 1)),
    "one row": ((1, 1, 9, 2, 8), swin((3, 4), (0, 2))),
    "one position": ((2, 1, 1, 2, 1), swin(3, 1)),
    "window larger than the map": ((1, 4, 3, 2, 8), swin(6, 2)),
    "more queries than a tile": ((1, 9, 9, 1, 24), swin((9, 8))),
}

cases = pytest.mark.parametrize(("shape", "pattern"), CASES.values(), ids=CASES)
backends = pytest.mark.parametrize("backend", ["cpu", "triton"])


@pytest.fixture
def draw(device_of):
    """draw(backend, shape, pattern) -> q, k, v and bias (or None), where the backend runs, asking for gradients."""

    def make(backend, shape, pattern, dtype=torch.float32, bias=True):
        shapes = [shape] * 3 + [pattern.bias_shape(shape[3])] * bias
        tensors = [torch.randn(s).to(device_of(backend), dtype).requires_grad_() for s in shapes]
        return tensors if bias else [*tensors, None]

    return make


def differentiate(tensors, pattern, backend, grad, scale=None):
    """The output, then the gradient of every tensor that asks for one."""
    out = attend(*tensors[:3], pattern, tensors[3], scale, backend=backend)
    asked = [t for t in tensors if t is not None and t.requires_grad]
    return [out, *torch.autograd.grad(out, asked, grad)]


def exact(tensors, pattern, grad, scale=None):
    """The same by the reference in float64."""
    tensors = [None if t is None else t.detach().cpu().double().requires_grad_(t.requires_grad) for t in tensors]
    return differentiate(tensors, pattern, "reference", grad.cpu().double(), scale)


def compare(agree, tensors, pattern, backend, grad=None, scale=None):
    q = tensors[0]
    grad = torch.randn_like(q) if grad is None else grad
    found, wanted = differentiate(tensors, pattern, backend, grad, scale), exact(tensors, pattern, grad, scale)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.dtype, a.shape) == (q.dtype, b.shape)
        agree(a, b, terms=q.shape[0] * q.shape[1] * q.shape[2] + q.shape[4])


@backends
@cases
def test_a_backend_agrees_with_the_reference(shape, pattern, backend, draw, agree, poison):
    compare(agree, draw(backend, shape, pattern), pattern, backend)


@backends
def test_a_backend_agrees_without_a_bias_and_with_a_scale(backend, draw, agree, poison):
    compare(agree, draw(backend, (1, 4, 5, 2, 8), swin(3, 1), bias=False), swin(3, 1), backend, scale=-0.7)


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
@pytest.mark.parametrize("wanted", ["v", "k", "q", "b", "qv", "kb"])
def test_only_the_gradients_that_are_needed_are_given(wanted, backend, draw, agree, poison):
    tensors = draw(backend, (1, 4, 3, 2, 8), swin(3, 1))
    for name, tensor in zip("qkvb", tensors, strict=True):
        tensor.requires_grad_(name in wanted)
    compare(agree, tensors, swin(3, 1), backend)


@backends
@cases
def test_weights_sum_to_one(shape, pattern, backend, draw, poison):
    q, k, v, bias = draw(backend, shape, pattern)
    out = attend(q, k, torch.ones_like(v), pattern, bias, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out))


@backends
def test_views_of_fused_and_transposed_tensors_give_the_same_result(backend, device_of, poison):
    q, k, v = torch.randn(2, 3, 4, 3, 2, 8, device=device_of(backend)).unbind(3)
    pattern = swin(2, 1)
    wanted = attend(q.clone(), k.clone(), v.clone(), pattern, backend=backend)
    assert torch.equal(attend(q, k, v, pattern, backend=backend), wanted)
    channels_first = v.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    columns_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend(q, columns_first, channels_first, pattern, backend=backend), wanted)
    shared = q[:1, :1].expand(q.shape)
    found = attend(shared, k, v, pattern, backend=backend)
    assert torch.equal(found, attend(shared.contiguous(), k, v, pattern, backend=backend))


@backends
def test_a_gradient_that_is_one_number_in_memory_is_read_correctly(backend, draw, agree):
    tensors = draw(backend, (1, 3, 2, 1, 4), swin(2))
    compare(agree, tensors, swin(2), backend, grad=torch.ones((), device=tensors[0].device).expand(tensors[0].shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_the_rounding_of_what_is_stored(dtype, draw, poison):
    pattern = swin(3, 1)
    tensors = draw("triton", (1, 4, 5, 2, 16), pattern, dtype)
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
