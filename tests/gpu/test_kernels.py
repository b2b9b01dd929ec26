"""The Triton kernels on a real GPU against the reference in float64; collected everywhere, run where a GPU is."""

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
)
from kernels.propagation import DIRECTIONS, NORMALISATIONS, mix, mix_gpu, normalise_gates, propagate

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: A sum of a few dozen rounded terms: a small multiple of the storage dtype's rounding.
TOLERANCE = {dtype: (40 if dtype == torch.float32 else 8) * torch.finfo(dtype).eps for dtype in DTYPES}
#: Every pattern of the family; those that need a map of their own name it.
PATTERNS = [
    swin(7), swin(7, 3), swin(8, 4), swin(5, 2), swin(14), block(2), neighborhood(7), neighborhood(6, 3),
    neighborhood((3, 9), (1, 2)), neighborhood(5, dilation=2), neighborhood(7, causal=True), halo(7, 3),
    halo(7, 3, "clamp"), grid(7, (28, 35)), stripe(3), stripe(4, 1), cross(2), axial(0), axial(1), disc(6),
    power(64, 2, 1), full(), heads(swin(7), neighborhood(5)),
]  # fmt: skip


def _compare(function, inputs, dtype):
    """Outputs and gradients of `function(*inputs, backend=...)`, Triton in `dtype` against the reference in float64."""
    stored = [tensor.to("cuda", dtype) for tensor in inputs]
    results = []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in stored]
        output = function(*leaves, backend=backend)
        weights = torch.linspace(-1, 1, output.numel(), device="cuda", dtype=torch.float64).view_as(output).to(kind)
        results.append([output, *torch.autograd.grad(output, leaves, weights, materialize_grads=True)])
    for ours, exact in zip(*results, strict=True):
        error = (ours.double() - exact).norm() / exact.norm().clamp(min=1e-30)
        assert error <= TOLERANCE[dtype], float(error)


def _draw(pattern, shape):
    """q, k, v, and the bias if the pattern has a table."""
    generator = torch.Generator().manual_seed(sum(shape))
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    try:
        table = pattern.bias_shape(shape[3], shape[1:3])
    except ValueError:
        return tensors
    return [*tensors, torch.randn(table, generator=generator)]


def _mixed(shape, groups, rule):
    """Inputs of `mix` with that many channels of gates."""
    generator = torch.Generator().manual_seed(sum(shape))
    spread = 0.2 if rule in ("tanh", "none") else 2.0  # the rules that are not stable grow along the lines
    logits = spread * torch.randn(4, 3, shape[0], groups, *shape[2:], generator=generator)
    maps = [torch.randn(4, *shape, generator=generator) for _ in range(3)]
    return [torch.randn(shape, generator=generator), logits, *maps, torch.randn(4, generator=generator)]


def _attend(pattern):
    return lambda q, k, v, bias=None, backend="auto": attend(q, k, v, pattern, bias, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("shape", [(2, 3, 56, 56), (1, 2, 37, 61), (1, 4, 1, 9), (1, 1, 130, 260)])
def test_propagation_on_a_gpu_equals_the_reference(shape, chunk, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator)
    gates = normalise_gates(torch.randn(4, 3, *shape, generator=generator), DIRECTIONS)
    lam = torch.randn(4, *shape, generator=generator)
    _compare(lambda *t, backend: propagate(*t, chunk=chunk, backend=backend), (x, gates, lam), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_normalisation_on_a_gpu_equals_the_reference(dtype):
    logits = torch.randn(4, 3, 2, 3, 17, 23, generator=torch.Generator().manual_seed(1))
    _compare(lambda t, backend: normalise_gates(t, backend=backend), (logits,), dtype)


@pytest.mark.parametrize("rule", NORMALISATIONS)
def test_every_rule_on_a_gpu_equals_the_reference(rule):
    logits = torch.randn(4, 3, 2, 3, 17, 23, generator=torch.Generator().manual_seed(2))
    _compare(lambda t, backend: normalise_gates(t, rule=rule, backend=backend), (logits,), torch.float32)
    inputs = _mixed((1, 3, 17, 23), 3, rule)
    _compare(lambda *t, backend: mix(*t, rule=rule, chunk=9, backend=backend), inputs, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, None])
@pytest.mark.parametrize(
    ("shape", "chunk"),
    [((2, 5, 7, 7), None), ((2, 6, 14, 14), None), ((2, 3, 56, 56), 2), ((1, 4, 1, 9), None), ((1, 2, 130, 260), 5)],
    ids=str,
)
def test_the_fused_mixer_on_a_gpu_equals_the_reference(shape, chunk, groups, dtype):
    inputs = _mixed(shape, groups or shape[1], "sigmoid")
    _compare(lambda *t, backend: mix(*t, chunk=chunk, backend=backend), inputs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_programs_that_walk_all_directions_on_a_gpu_give_the_same(dtype, monkeypatch):
    """What one thread of a program adds for a direction, another one reads for the next."""
    monkeypatch.setattr(mix_gpu, "_ENOUGH_WARPS", 0)
    for shape in ((3, 40, 28, 28), (1, 20, 64, 150)):
        _compare(lambda *t, backend: mix(*t, backend=backend), _mixed(shape, shape[1], "sigmoid"), dtype)


def test_the_fused_mixer_gives_the_same_in_every_run():
    leaves = [tensor.cuda().requires_grad_() for tensor in _mixed((4, 60, 56, 56), 1, "sigmoid")]
    grad = torch.randn(4, 60, 56, 56, device="cuda")
    runs = []
    for _ in range(3):
        out = mix(*leaves, backend="triton")
        runs.append([out, *torch.autograd.grad(out, leaves, grad)])
    for again in runs[1:]:
        for a, b in zip(runs[0], again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_attention_on_a_gpu_equals_the_reference(pattern, dtype):
    _compare(_attend(pattern), _draw(pattern, (2, 28, 35, 4, 32)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [8, 24, 64, 96, 128])
@pytest.mark.parametrize("pattern", [swin(7, 3), neighborhood(5)], ids=lambda pattern: pattern.name)
def test_attention_on_a_gpu_takes_heads_of_any_width(pattern, channels, dtype):
    _compare(_attend(pattern), _draw(pattern, (1, 14, 15, 2, channels)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_one_fused_tensor_are_read_in_place_on_a_gpu(dtype):
    fused = torch.randn(2, 14, 14, 3, 3, 32, generator=torch.Generator().manual_seed(2))
    _compare(lambda t, backend: attend(*t.unbind(3), swin(7, 3), backend=backend), (fused,), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", [swin(7, 3), neighborhood(5), cross(2)], ids=lambda pattern: pattern.name)
def test_extra_keys_on_a_gpu_share_the_softmax(pattern, dtype):
    generator = torch.Generator().manual_seed(3)
    extra = [torch.randn(2, 9, 2, 32, generator=generator) for _ in range(2)]
    q, k, v = _draw(pattern, (2, 14, 15, 2, 32))[:3]

    def function(q, k, v, extra_k, extra_v, backend):
        return attend(q, k, v, pattern, backend=backend, extra=(extra_k, extra_v))

    _compare(function, (q, k, v, *extra), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_of_another_grid_are_read_on_a_gpu(dtype):
    generator = torch.Generator().manual_seed(4)
    shapes = (2, 14, 15, 2, 32), (2, 7, 5, 2, 32), (2, 7, 5, 2, 32)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    _compare(lambda *t, backend: attend(*t, full(), backend=backend), tensors, dtype)


def test_results_are_the_same_in_every_run():
    pattern = neighborhood(7)
    leaves = [tensor.cuda().requires_grad_() for tensor in _draw(pattern, (4, 28, 28, 2, 32))]
    grad = torch.randn(4, 28, 28, 2, 32, device="cuda")
    runs = []
    for _ in range(3):
        out = _attend(pattern)(*leaves, backend="triton")
        runs.append([out, *torch.autograd.grad(out, leaves, grad)])
    for again in runs[1:]:
        for a, b in zip(runs[0], again, strict=True):
            assert torch.equal(a, b)
