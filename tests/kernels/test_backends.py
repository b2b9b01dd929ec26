"""Which backend runs an operator, what a refusal says, and the bridge from an engine to autograd."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from kernels import backends
from kernels.backends import BACKENDS, BackendUnavailable, choose, run
from kernels.propagation import propagate

STORAGE = (torch.float32, torch.float16, torch.bfloat16)


def tensor(device, dtype=torch.float32):
    """As much of a tensor as `choose` looks at; there need not be such a device here."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


@pytest.fixture
def without(monkeypatch):
    """`without("triton")`: as if the package were not installed."""

    def hide(module):
        monkeypatch.setattr(backends, "_has", lambda name: name != module)

    return hide


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_auto_takes_triton_on_a_gpu_tensor(dtype):
    assert choose("auto", tensor("cuda", dtype)) == "triton"


def test_auto_takes_numba_on_a_float32_cpu_tensor_even_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", tensor("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float64), ("cpu", torch.float16), ("cpu", torch.bfloat16), ("cuda", torch.float64),
        ("mps", torch.float32), ("meta", torch.float32),
    ],
)  # fmt: skip
def test_auto_takes_the_reference_otherwise(device, dtype):
    assert choose("auto", tensor(device, dtype)) == "reference"


@pytest.mark.parametrize(("module", "device"), [("triton", "cuda"), ("numba", "cpu")])
def test_auto_takes_the_reference_where_an_engine_is_not_installed(module, device, without):
    without(module)
    assert choose("auto", tensor(device)) == "reference"


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize("dtype", [*STORAGE, torch.float64], ids=str)
def test_the_reference_runs_on_everything(device, dtype):
    assert choose("reference", tensor(device, dtype)) == "reference"


@pytest.mark.parametrize(("backend", "module"), [("cpu", "numba"), ("triton", "triton")])
def test_a_backend_that_is_not_installed_says_what_to_install(backend, module, without):
    without(module)
    with pytest.raises(BackendUnavailable, match=f"needs {module}, .* not installed: run `pip install {module}`."):
        choose(backend, tensor("cuda"))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cuda", torch.float32), ("cpu", torch.float64), ("cpu", torch.bfloat16), ("meta", torch.float32)],
)
def test_cpu_never_falls_back(device, dtype):
    with pytest.raises(BackendUnavailable, match=rf"takes float32 tensors on the CPU; got {dtype} on {device}: move"):
        choose("cpu", tensor(device, dtype))


def test_triton_never_falls_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match=r"needs a GPU tensor; got one on cpu"):
        choose("triton", tensor("cpu"))
    with pytest.raises(BackendUnavailable, match=r"takes float32, float16 or bfloat16; got torch.float64"):
        choose("triton", tensor("cuda", torch.float64))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendUnavailable, match="needs a GPU tensor; got one on meta"):
        choose("triton", tensor("meta"))


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_triton_runs_on_a_gpu_and_interpreted_on_a_cpu(dtype, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose("triton", tensor("cuda", dtype)) == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", tensor("cpu", dtype)) == "triton"


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"backend must be one of {', '.join(BACKENDS)}; got 'cuda'."):
        choose("cuda", tensor("cpu"))


class Doubling:
    """An engine whose output is factor times a, plus b; it notes which gradients it was asked for."""

    def __init__(self):
        self.asked = None

    def forward(self, factor, a, b):
        return factor * a + b, (a, None)

    def backward(self, factor, needs, grad, saved):
        self.asked = needs
        assert saved[1] is None
        return factor * grad if needs[0] else None, grad if needs[1] else None


def test_an_engine_gets_its_settings_and_is_asked_only_for_the_gradients_that_are_wanted():
    engine, a, b = Doubling(), torch.randn(3, requires_grad=True), torch.randn(3)
    output = run(engine, 2.0, a, b)
    assert torch.equal(output, 2 * a + b)
    (gradient,) = torch.autograd.grad(output.sum(), a)
    assert torch.equal(gradient, torch.full((3,), 2.0))
    assert engine.asked == (True, False)


def test_an_engine_has_first_derivatives_only():
    a = torch.randn(3, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(run(Doubling(), 2.0, a, a), a, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_python_threads_may_use_the_cpu_backend_at_once():
    inputs = [(torch.randn(1, 3, 9, 11), torch.rand(4, 3, 1, 3, 9, 11) / 3) for _ in range(4)]
    alone = [propagate(*pair, backend="cpu") for pair in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: propagate(*pair, backend="cpu"), inputs * 8))
    for i, result in enumerate(together):
        assert torch.equal(result, alone[i % 4])


@pytest.mark.usefixtures("poison")
def test_poisoned_memory_is_nan_until_it_is_written():
    for memory in (torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(3).new_empty(3), torch.empty(3).half()):
        assert memory.isnan().all()
    assert torch.empty(3, dtype=torch.int64).shape == (3,)
    assert not torch.zeros(3).isnan().any()
