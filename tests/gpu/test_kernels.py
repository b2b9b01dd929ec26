"""The Triton kernels on a real GPU against the reference in float64; collected everywhere, run where a GPU is."""

import pytest
import torch

from kernels.attention import attend, swin
from kernels.propagation import DIRECTIONS, normalise_gates, propagate

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: A sum of a few dozen rounded terms: a small multiple of the storage dtype's rounding.
TOLERANCE = {dtype: 40 * torch.finfo(dtype).eps for dtype in DTYPES}


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("window", "shift"), [(7, 0), (7, 3), (8, 4), (5, 2)])
def test_window_attention_on_a_gpu_equals_the_reference(window, shift, dtype):
    generator = torch.Generator().manual_seed(window + shift)
    q, k, v = (torch.randn(2, 28, 35, 3, 32, generator=generator) for _ in range(3))
    bias = torch.randn(3, 2 * window - 1, 2 * window - 1, generator=generator)
    pattern = swin(window, shift)
    _compare(lambda *t, backend: attend(*t[:3], pattern, t[3], backend=backend), (q, k, v, bias), dtype)
