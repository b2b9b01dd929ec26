"""Which engine runs an operator: the choice, its refusals, and the bridge from an engine to autograd.

An engine is a module with `forward(settings, *tensors) -> (output, saved)` and
`backward(settings, needs, grad, saved) -> gradients`; `run` makes it differentiable.
"""

import importlib.util
import os
import threading
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

BACKENDS = ("auto", "reference", "cpu", "triton")

#: numba's fallback threading layer must not be entered by two Python threads at once; every engine call holds this.
#: A kernel uses all cores, so callers that wait here lose nothing.
CPU_LOCK = threading.Lock()


class BackendUnavailable(RuntimeError):  # noqa: N818 (the name is part of the public contract)
    """An explicitly chosen backend cannot run here; the message names the reason and the remedy."""


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's CPU interpreter (TRITON_INTERPRET=1, set before triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def choose(backend: str, tensor: torch.Tensor) -> str:
    """Return the backend that will run an operator on `tensor`: "reference", "cpu" or "triton".

    "auto" takes Triton on a GPU tensor, numba on a float32 CPU tensor, and the reference otherwise. An explicit
    backend never falls back.

    Raises:
        ValueError: `backend` is not a known name.
        BackendUnavailable: the named backend cannot run on this tensor; says why and what to do.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    device, dtype = tensor.device.type, tensor.dtype
    storage = (torch.float32, torch.float16, torch.bfloat16)
    if backend == "auto":
        if device == "cuda" and dtype in storage and _has("triton"):
            return "triton"
        if device == "cpu" and dtype == torch.float32 and _has("numba"):
            return "cpu"
        return "reference"
    if backend == "cpu":
        if not _has("numba"):
            raise BackendUnavailable("backend='cpu' needs numba, which is not installed: run `pip install numba`.")
        if device != "cpu" or dtype != torch.float32:
            raise BackendUnavailable(
                f"backend='cpu' takes float32 tensors on the CPU; got {dtype} on {device}: "
                "move them with .float().cpu() or use backend='auto'."
            )
    if backend == "triton":
        if not _has("triton"):
            raise BackendUnavailable("backend='triton' needs triton, which is not installed: run `pip install triton`.")
        if device != "cuda" and not (device == "cpu" and interpreting()):
            raise BackendUnavailable(
                f"backend='triton' needs a GPU tensor; got one on {device}: move it with .cuda(), or set "
                "TRITON_INTERPRET=1 before starting Python to interpret the kernels on the CPU."
            )
        if dtype not in storage:
            raise BackendUnavailable(
                f"backend='triton' takes float32, float16 or bfloat16; got {dtype}: convert it or use "
                "backend='reference'."
            )
    return backend


def choose_without_triton(operator: str, backend: str, tensor: torch.Tensor) -> str:
    """As `choose`, for an operator that has no Triton kernels: "auto" takes the reference on a GPU tensor.

    Raises:
        ValueError: `backend` is not a known name.
        BackendUnavailable: the named backend cannot run on this tensor, or is "triton".
    """
    if backend == "triton":
        raise BackendUnavailable(
            f"backend='triton' is not there for {operator}, which has no Triton kernels: use backend='reference', "
            "which runs on every device, or 'auto'."
        )
    chosen = choose(backend, tensor)
    return "reference" if chosen == "triton" else chosen


def check_tensor(name: str, tensor: torch.Tensor, first: tuple[str, torch.Tensor]) -> None:
    """Raise unless `tensor` is a floating-point tensor with the dtype and device of the operator's first one.

    Raises:
        TypeError: not a tensor, not floating-point, or another dtype.
        ValueError: another device.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}.")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {tensor.dtype}.")
    if tensor.dtype != first[1].dtype:
        raise TypeError(f"{name} must have the dtype of {first[0]}, {first[1].dtype}; got {tensor.dtype}.")
    if tensor.device != first[1].device:
        raise ValueError(f"{name} must be on the device of {first[0]}, {first[1].device}; got {tensor.device}.")


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: ModuleType, settings: Any, *tensors: torch.Tensor | None) -> torch.Tensor:
        output, saved = engine.forward(settings, *tensors)
        ctx.engine, ctx.settings = engine, settings
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        return None, None, *ctx.engine.backward(ctx.settings, needs, grad, ctx.saved_tensors)


def run(engine: ModuleType, settings: Any, *tensors: torch.Tensor | None) -> torch.Tensor:
    """Run an engine's forward with its own backward attached (first derivatives only)."""
    return _Differentiable.apply(engine, settings, *tensors)
