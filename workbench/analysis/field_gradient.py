"""Gradients of units of a layer with respect to the picture: one forward pass, then one backward pass for each unit.

Both can be cancelled inside, hooks act for the thread that asked only, and no parameter gets a gradient. What
attribution needs as well, cancelling and full precision, is here, too.
"""

import copy
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

#: How the channels of a unit become the one number whose gradient is taken: name -> words.
CHANNELS = {
    "relu_sum": "sum over channels of the activations' positive parts",
    "sum": "sum over channels",
    "mean": "mean over channels",
    "abs_sum": "sum over channels of the activations' magnitudes",
}

#: How the gradients of the three colours become one number for each pixel: name -> words.
GRADIENTS = {
    "relu": "positive parts of the gradient, summed over the colours",
    "abs": "magnitudes of the gradient, summed over the colours",
    "square": "squares of the gradient, summed over the colours",
    "relu_of_sum": "positive part of the gradient's sum over the colours",
}

DTYPES = {"float32": torch.float32, "float64": torch.float64}

#: A sum whose gradient is smaller than this, relative to that of a sum with signs, is constant but for rounding.
CONSTANT = 1e-5

Cells = Sequence[tuple[int, int]]
Cancel = Callable[[], bool] | None


class Cancelled(Exception):  # noqa: N818 (control flow, not an error)
    """Ends a pass that is no longer wanted."""


class _Reached(Exception):  # noqa: N818 (control flow, not an error)
    """Ends a forward pass at the layer that was asked for."""


def has_layers(model: Any) -> bool:
    """Whether a model names its layers as those of the registry do: methods `layers(size)` and `features(x, layer)`."""
    methods = [getattr(model, name, None) for name in ("layers", "features")]
    return all(callable(method) and not isinstance(method, nn.Module) for method in methods)


def device_of(model: Any) -> torch.device:
    """Where a model computes: the device of its first parameter or buffer, the CPU if it has none."""
    if isinstance(model, nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")
    return torch.device(getattr(model, "device", "cpu"))


def dtype_of(model: Any) -> torch.dtype:
    """What a model computes in: the dtype of its first floating-point parameter, or else buffer; float32 if none."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model itself if it computes in `dtype`, else a copy that does; in 16 bits small gradients would be lost."""
    if not isinstance(model, nn.Module):
        return model
    tensors = [*model.parameters(), *model.buffers()]
    same = all(t.dtype == dtype for t in tensors if t.is_floating_point())
    return model if same else copy.deepcopy(model).to(dtype)


def features(model: Any, x: torch.Tensor, layer: str) -> torch.Tensor:
    """The map of a layer: (B, colours, H, W) -> (B, C, h, w). In a plain module a layer is a submodule's dotted name.

    Raises:
        ValueError: the submodule does not run, or its output is no such map.
    """
    found = model.features(x, layer) if has_layers(model) else _output_of(model, layer, x)
    if not isinstance(found, torch.Tensor) or found.ndim != 4 or found.shape[0] != x.shape[0]:
        raise ValueError(
            f"A receptive field needs a layer whose output is a map (B, C, h, w); {_in_words(model, layer)} gives "
            f"{shape_of(found)} for images {tuple(x.shape)}: name another layer."
        )
    return found


def shape_of(found: Any) -> str:
    """What a module gave, in messages: the shape of a tensor, or the type."""
    return str(tuple(found.shape)) if isinstance(found, torch.Tensor) else type(found).__name__


def _in_words(model: Any, layer: str) -> str:
    """A layer in messages: the name of a submodule, or what the module itself is."""
    return repr(layer) if layer else f"the output of {type(model).__name__}"


def unit_gradients(
    model: Any,
    x: torch.Tensor,
    layer: str,
    units: Cells,
    grid: tuple[int, int],
    channels: str = "relu_sum",
    gradient: str = "relu",
    cancelled: Cancel = None,
) -> np.ndarray:
    """How much each pixel of each image moves each unit: the gradients with the colours reduced.

    Args:
        model: see `receptive_field`.
        x: (B, colours, H, W), on the model's device and in its dtype.
        layer: whose map the units are in.
        units: (row, col) cells of that map, U of them.
        grid: (h, w) that the map must have.
        channels: a name of `CHANNELS`, or "channel 5".
        gradient: a name of `GRADIENTS`.
        cancelled: polled before each unit, after each module in the forward pass and before it in the backward pass.

    Returns:
        (B, U, H, W) float64, NaN where a gradient is not finite.

    Raises:
        Cancelled: `cancelled()` was true.
        ValueError: the layer has no map, not of that grid, or not that channel.
    """
    poll = _poll(cancelled)
    with exact(x.device), evaluating(model):
        x = x.detach().clone().requires_grad_()
        with _polling(model, poll if cancelled else None):
            found = features(model, x.clone(), layer)  # some modules change what they are given
        if tuple(found.shape[2:]) != tuple(grid):
            raise ValueError(
                f"The map of {_in_words(model, layer)} has {found.shape[2]} x {found.shape[3]} cells for images of "
                f"{x.shape[2]} x {x.shape[3]} pixels; the spec says {grid[0]} x {grid[1]}: resolve it for this model."
            )
        objective = _objective(channels, found.shape[1])
        maps = []
        for n, (row, col) in enumerate(units):
            poll()
            value = objective(found[:, :, row, col]).sum()
            maps.append(_reduced(_gradient(value, x, keep=n + 1 < len(units)), gradient))
    return np.stack(maps, axis=1)


def is_constant(
    model: Any, x: torch.Tensor, layer: str, units: Cells, grid: tuple[int, int], cancelled: Cancel = None
) -> bool:
    """Whether the sum over channels does not depend on the picture but for rounding, as right after a layer norm.

    Its gradient is compared with that of the same sum with alternating signs, at the first unit and image.
    """
    plain, signed = (
        unit_gradients(model, x[:1], layer, units[:1], grid, channels, "abs", cancelled).sum()
        for channels in ("sum", ALTERNATING)
    )
    return bool(plain < CONSTANT * signed)


#: A sum that a norm over the channels does not keep constant.
ALTERNATING = "alternating sum"


def channel_of(channels: str) -> int | None:
    """The number in "channel 5"; None for anything else."""
    found = re.fullmatch(r"channel (\d{1,9})", channels)
    return int(found[1]) if found else None


def _objective(channels: str, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, C) -> what is differentiated."""
    number = channel_of(channels)
    if number is not None:
        if number >= count:
            raise ValueError(f"The layer has channels 0 to {count - 1}; got {channels!r}.")
        return lambda unit: unit[:, number]
    objectives: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu_sum": lambda unit: unit.relu().sum(1),
        "sum": lambda unit: unit.sum(1),
        "mean": lambda unit: unit.mean(1),
        "abs_sum": lambda unit: unit.abs().sum(1),
        ALTERNATING: lambda unit: unit[:, ::2].sum(1) - unit[:, 1::2].sum(1),
    }
    return objectives[channels]


def _gradient(value: torch.Tensor, x: torch.Tensor, keep: bool) -> torch.Tensor:
    """The gradient of a number with respect to x, zeros if it does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _reduced(gradient: torch.Tensor, how: str) -> np.ndarray:
    """(B, colours, H, W) -> (B, H, W) float64: squares of small gradients do not fit into 32 bits."""
    g = gradient.detach().to("cpu", torch.float64)
    reductions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": lambda g: g.relu().sum(1),
        "abs": lambda g: g.abs().sum(1),
        "square": lambda g: g.square().sum(1),
        "relu_of_sum": lambda g: g.sum(1).relu(),
    }
    reduced = reductions[how](g)
    reduced[~g.isfinite().all(1)] = torch.nan  # the positive part of minus infinity is 0
    return reduced.numpy()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for the modules of a model that are in training mode, and back."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Gradients are on and precision is full and repeatable, whatever the caller has set."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        _exact_products(stack)
        if device.type == "cuda":
            _exact_cudnn(stack)
        yield


def _exact_products(stack: ExitStack) -> None:
    """Products of matrices in full precision until the stack closes."""
    backends: Any = torch.backends
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # its answer once the precision of single operations has been set by their names
        _exact_by_name(stack, backends.cuda.matmul, backends.mkldnn.matmul)
        return
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, precision)


def _exact_cudnn(stack: ExitStack) -> None:
    """cuDNN in full precision and repeatable until the stack closes."""
    cudnn: Any = torch.backends.cudnn
    try:
        cudnn.allow_tf32  # noqa: B018 (raises once the precision of single operations has been set by their names)
    except RuntimeError:
        _exact_by_name(stack, cudnn.conv, cudnn.rnn)
        for name, value in (("benchmark", False), ("deterministic", True)):
            stack.callback(setattr, cudnn, name, getattr(cudnn, name))
            setattr(cudnn, name, value)
        return
    exact = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False, "fp32_precision": "ieee"}
    stack.enter_context(cudnn.flags(**exact))


def _exact_by_name(stack: ExitStack, *operations: Any) -> None:
    for operation in operations:
        stack.callback(setattr, operation, "fp32_precision", operation.fp32_precision)
        operation.fp32_precision = "ieee"


def _poll(cancelled: Cancel) -> Callable[[], None]:
    def poll() -> None:
        if cancelled is not None and cancelled():
            raise Cancelled

    return poll


@contextmanager
def _polling(model: Any, poll: Callable[[], None] | None) -> Iterator[None]:
    """While it is open, every module polls when it is done, and its outputs do when their gradient arrives."""
    asker = threading.get_ident()

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        if poll is None or threading.get_ident() != asker:
            return
        poll_passes(output, poll)

    modules = model.modules() if poll and isinstance(model, nn.Module) else ()
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def poll_passes(output: Any, poll: Callable[[], None]) -> None:
    """For hooks on modules: poll now, in the forward pass, and when the gradient of the output arrives."""
    poll()
    for tensor in output if isinstance(output, tuple | list) else [output]:
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            tensor.register_hook(lambda _: poll())  # goes with the graph


def _output_of(model: nn.Module, layer: str, x: torch.Tensor) -> Any:
    """Run a plain module up to a submodule, the module itself for "", and return what that gives."""
    if not layer:
        return model(x)
    caught: list[Any] = []
    asker = threading.get_ident()

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == asker:
            caught.append(output)
            raise _Reached

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        model(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not caught:
        raise ValueError(f"The layer {layer!r} does not run in the forward pass of {type(model).__name__}.")
    return caught[0]
