"""Line propagation on the CPU and in Triton: outputs and every gradient are those of the reference in float64.

All fresh memory is poisoned with NaN. Triton runs in its interpreter where there is no GPU, which is slow: its maps are
tiny, and chosen to meet whole and cut tiles, several programs along the lines, and lines wider than one block.
"""

from typing import NamedTuple

import pytest
import torch

from kernels.propagation import DIRECTIONS, propagate

pytestmark = pytest.mark.usefixtures("poison")

LEFT_RIGHT, TOP_BOTTOM, RIGHT_LEFT, BOTTOM_TOP = ((direction,) for direction in DIRECTIONS)


class Layout(NamedTuple):
    """Which directions, and what they and the channels share; strided: no input is contiguous, nor is the gradient."""

    directions: tuple[str, ...] = DIRECTIONS
    x_per_direction: bool = False
    gates_shared: bool = False
    lam: str = "full"
    strided: bool = False


LAYOUTS = {
    "lam None": Layout(lam="none"),
    "x of each direction": Layout(x_per_direction=True),
    "gates shared by channels": Layout(gates_shared=True),
    "gates and lam shared by channels": Layout(gates_shared=True, lam="shared"),
    "x of each direction, lam shared": Layout(x_per_direction=True, lam="shared"),
    "one direction, x in five axes": Layout(BOTTOM_TOP, x_per_direction=True),
    "repeated directions": Layout((*RIGHT_LEFT, *TOP_BOTTOM, *RIGHT_LEFT), gates_shared=True, lam="none"),
    "strided": Layout(strided=True),
    "strided and shared": Layout(x_per_direction=True, gates_shared=True, lam="shared", strided=True),
}

#: (B, C, H, W): a single pixel, lines of one, fewer and more than 8, 16, 32 and 64 positions, and exactly as many.
SHAPES = [
    (1, 1, 1, 1), (2, 3, 1, 6), (2, 3, 6, 1), (2, 2, 2, 3), (1, 5, 9, 8), (2, 3, 8, 9), (1, 3, 5, 7), (1, 2, 16, 16),
    (1, 3, 17, 33), (2, 1, 33, 17), (1, 2, 3, 41), (1, 2, 70, 7), (1, 2, 64, 32),
]  # fmt: skip
CHUNKS = [None, 1, 2, 5, 100]

#: Shape, layout and chunk of the maps that Triton gets.
TINY = [
    ((1, 2, 3, 5), LAYOUTS["x of each direction"], None),
    ((2, 2, 3, 4), LAYOUTS["gates and lam shared by channels"], 2),  # rows of whole tiles
    ((1, 2, 4, 3), LAYOUTS["lam None"], 5),
    ((1, 1, 1, 1), LAYOUTS["lam None"], None),
    ((2, 2, 1, 6), LAYOUTS["gates shared by channels"], 1),
    ((1, 2, 6, 1), LAYOUTS["strided"], 2),
    ((1, 3, 2, 3), LAYOUTS["strided and shared"], 2),
    ((1, 2, 3, 5), LAYOUTS["repeated directions"], 2),
    ((1, 2, 5, 3), LAYOUTS["one direction, x in five axes"], 100),
    ((1, 1, 9, 8), Layout((*LEFT_RIGHT, *BOTTOM_TOP), lam="shared"), None),
    ((1, 2, 17, 3), Layout(LEFT_RIGHT, gates_shared=True), 2),  # a block of 32 positions across
    ((1, 2, 3, 17), Layout(BOTTOM_TOP, lam="none"), 2),
    ((1, 1, 2, 36), Layout((*LEFT_RIGHT, *RIGHT_LEFT)), 4),  # two programs along the lines, whole tiles
    ((1, 1, 2, 37), Layout((*LEFT_RIGHT, *RIGHT_LEFT), lam="none"), 5),  # and tiles cut by a program's end
    ((1, 1, 37, 2), Layout((*TOP_BOTTOM, *BOTTOM_TOP)), 3),
]  # fmt: skip


def inputs_of(shape, layout, device="cpu", dtype=torch.float32):
    """x, gates whose magnitudes sum to 1 (those at the border included) and lam, each of which wants its gradient."""
    batch, channels, *size = shape
    count = len(layout.directions)
    x = torch.randn(*([count] if layout.x_per_direction else []), batch, channels, *size)
    gates = torch.randn(count, 3, batch, 1 if layout.gates_shared else channels, *size)
    gates /= gates.abs().sum(1, keepdim=True)
    tensors = [x, gates]
    if layout.lam != "none":
        tensors.append(torch.randn(count, batch, 1 if layout.lam == "shared" else channels, *size))
    return [scattered(t.to(device, dtype), layout.strided).requires_grad_() for t in tensors]


def scattered(tensor, strided=True):
    """The same values, every second one of a memory that has its last two axes swapped and NaN in between."""
    if not strided:
        return tensor
    swapped = tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    return torch.stack([swapped, torch.full_like(swapped, torch.nan)], -1)[..., 0]


def evaluate(inputs, layout, chunk, backend, weight=None):
    """h, its weight in the loss, and the gradient of every input."""
    h = propagate(*inputs, directions=layout.directions, chunk=chunk, backend=backend)
    if weight is None:
        weight = scattered(torch.randn_like(h), layout.strided)
    return h, weight, torch.autograd.grad(h, inputs, weight, materialize_grads=True)


def check(shape, layout, chunk, backend, agree, device="cpu", dtype=torch.float32):
    inputs = inputs_of(shape, layout, device, dtype)
    h, weight, gradients = evaluate(inputs, layout, chunk, backend)
    assert h.dtype == dtype
    exact_inputs = [t.detach().cpu().double().requires_grad_() for t in inputs]
    exact, _, exact_gradients = evaluate(exact_inputs, layout, chunk, "reference", weight.cpu().double())
    terms = max(shape[2:]) + shape[1] + len(layout.directions)
    agree(h, exact, terms)
    for gradient, exact_gradient, given in zip(gradients, exact_gradients, inputs, strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == given.shape
        agree(gradient, exact_gradient, terms)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cpu_backend_agrees_with_the_reference(shape, chunk, layout, agree):
    check(shape, layout, chunk, "cpu", agree)


@pytest.mark.parametrize(("shape", "layout", "chunk"), TINY)
def test_the_triton_backend_agrees_with_the_reference(shape, layout, chunk, agree, device_of):
    check(shape, layout, chunk, "triton", agree, device_of("triton"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "chunk"), [((1, 2, 3, 5), None), ((1, 2, 2, 8), 3)])
def test_half_storage_in_triton_costs_one_rounding_of_what_is_stored(shape, chunk, dtype, agree, device_of):
    check(shape, LAYOUTS["x of each direction"], chunk, "triton", agree, device_of("triton"), dtype)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_gradients_do_not_depend_on_which_others_are_wanted(backend, wanted, device_of):
    layout = LAYOUTS["gates shared by channels"]
    inputs = inputs_of((1, 2, 3, 4), layout, device_of(backend))
    _, weight, everything = evaluate(inputs, layout, 2, backend)
    some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    h = propagate(*some, directions=layout.directions, chunk=2, backend=backend)
    gradients = torch.autograd.grad(h, [some[i] for i in wanted], weight)
    for i, gradient in zip(wanted, gradients, strict=True):
        assert torch.equal(gradient, everything[i])


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_without_gradients_nothing_is_kept_for_them(backend, device_of):
    x, gates, lam = (t.detach() for t in inputs_of((1, 1, 3, 3), LAYOUTS["strided"], device_of(backend)))
    assert propagate(x, gates, lam, backend=backend).grad_fn is None


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_inputs_and_the_incoming_gradient_are_left_as_they_were(backend, device_of):
    layout = LAYOUTS["x of each direction"]
    inputs = inputs_of((1, 2, 3, 4), layout, device_of(backend))
    before = [t.detach().clone() for t in inputs]
    weight = torch.randn(4, 1, 2, 3, 4, device=device_of(backend))
    kept = weight.clone()
    evaluate(inputs, layout, 2, backend, weight)
    assert torch.equal(weight, kept)
    assert all(torch.equal(now, was) for now, was in zip(inputs, before, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_nan_reaches_what_reads_it_and_no_other_chunk_image_or_channel(backend, device_of):
    device = device_of(backend)
    x, gates, _ = (t.detach() for t in inputs_of((2, 2, 3, 4), Layout(LEFT_RIGHT), device))
    clean = propagate(x, gates, directions=LEFT_RIGHT, chunk=2, backend=backend)
    x[1, 1, 1, 2] = torch.nan
    h = propagate(x, gates, directions=LEFT_RIGHT, chunk=2, backend=backend)
    reached = torch.zeros_like(h, dtype=torch.bool)
    reached[0, 1, 1, 1, 2] = True
    reached[0, 1, 1, :, 3] = True
    assert h[reached].isnan().all()
    assert torch.equal(h[~reached], clean[~reached])
