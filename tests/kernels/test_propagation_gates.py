"""Gate normalisation: rows sum to 1 over the neighbours that exist, and every backend and gradient agrees.

All fresh memory is poisoned with NaN. Triton runs in its interpreter where there is no GPU, so its maps are tiny.
"""

import pytest
import torch

from kernels.propagation import DIRECTIONS, normalise_gates, propagate

SIZES = [(5, 7), (1, 6), (6, 1), (2, 3), (9, 8), (1, 1), (3, 41)]
BACKENDS = ["reference", "cpu", "triton"]

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
backends = pytest.mark.parametrize("backend", BACKENDS)


def cross_of(direction):
    """The cross axis of gates (3, B, G, H, W)."""
    return -2 if direction in ("left_right", "right_left") else -1


def by_hand(logits, directions=DIRECTIONS):
    """Sigmoids divided by the sum over existing neighbours, written out for each border."""
    gates = torch.sigmoid(logits.double())
    for k, direction in enumerate(directions):
        axis = cross_of(direction)
        gates[k, 0].select(axis, 0).zero_()
        gates[k, 2].select(axis, -1).zero_()
    return gates / gates.sum(1, keepdim=True).clamp(min=1e-7)


@pytest.mark.usefixtures("poison")
@sizes
@backends
def test_gates_are_sigmoids_over_their_sum(backend, size, agree, device_of):
    logits = 3 * torch.randn(4, 3, 1, 2, *size, device=device_of(backend))
    agree(normalise_gates(logits, backend=backend), by_hand(logits.cpu()), 3)


@sizes
@backends
def test_gates_sum_to_1_and_a_missing_neighbour_has_exactly_0(backend, size, agree, device_of):
    logits = 3 * torch.randn(4, 3, 1, 2, *size, device=device_of(backend))
    gates = normalise_gates(logits, backend=backend)
    assert (gates >= 0).all()
    agree(gates.sum(1), torch.ones(4, 1, 2, *size, dtype=torch.float64), 3)
    for k, direction in enumerate(DIRECTIONS):
        axis = cross_of(direction)
        missing = torch.zeros_like(gates[k], dtype=torch.bool)
        missing[0].select(axis, 0).fill_(True)
        missing[2].select(axis, -1).fill_(True)
        assert torch.equal(gates[k] == 0, missing)


@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1)], ids=str)
@backends
def test_a_position_with_no_neighbour_but_the_middle_one_gives_it_everything(backend, size, agree, device_of):
    gates = normalise_gates(torch.randn(4, 3, 2, 1, *size, device=device_of(backend)), backend=backend)
    for k, direction in enumerate(DIRECTIONS):
        if size[cross_of(direction)] == 1:
            agree(gates[k, 1], torch.ones(2, 1, *size, dtype=torch.float64), 3)
            assert not gates[k, ::2].any()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, on behalf of the interpreted sigmoid
@pytest.mark.parametrize(
    "value", [-100.0, -30.0, -17.5, -17.0, 30.0, 100.0]
)  # clamped: three below -17.2, two below -16.8
@backends
def test_extreme_logits_give_what_the_definition_gives(backend, value, agree, device_of):
    logits = torch.full((4, 3, 1, 1, 3, 4), value, device=device_of(backend), requires_grad=True)
    exact = logits.detach().cpu().double().requires_grad_()
    gates, definition = normalise_gates(logits, backend=backend), normalise_gates(exact, backend="reference")
    smallest = torch.finfo(torch.float32).tiny / 1e-7  # what a sigmoid may lose below the normal numbers
    torch.testing.assert_close(gates.cpu().double(), definition, rtol=1e-5, atol=smallest)
    weight = torch.randn(gates.shape)
    (gradient,) = torch.autograd.grad(gates, logits, weight.to(gates.device))
    (exact_gradient,) = torch.autograd.grad(definition, exact, weight.double())
    assert gradient.isfinite().all()
    # Where the gates saturate, the gradient is a difference of numbers of the size of eps.
    torch.testing.assert_close(gradient.cpu().double(), exact_gradient, rtol=1e-5, atol=torch.finfo(torch.float32).eps)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("strided", [False, True])
@sizes
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_gradient_is_that_of_the_reference(backend, size, strided, groups, agree, device_of):
    logits = torch.randn(4, 3, 2 if backend == "cpu" else 1, groups, *size, device=device_of(backend))
    weight = torch.randn_like(logits)
    if strided:
        logits, weight = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (logits, weight))
    logits.requires_grad_()
    exact = logits.detach().cpu().double().requires_grad_()
    (gradient,) = torch.autograd.grad(normalise_gates(logits, backend=backend), logits, weight)
    (exact_gradient,) = torch.autograd.grad(
        normalise_gates(exact, backend="reference"), exact, weight.cpu().double()
    )  # fmt: skip
    agree(gradient, exact_gradient, 6, scale=weight.abs().max().item())  # a lone gate is 1: its gradients cancel


@pytest.mark.parametrize("size", [(3, 4), (1, 4), (4, 1), (1, 1)], ids=str)
def test_the_gradient_of_the_reference_is_that_of_finite_differences(size):
    logits = torch.randn(4, 3, 1, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: normalise_gates(t, backend="reference"), logits)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_storage_in_triton_costs_one_rounding_of_the_result(dtype, agree, device_of):
    logits = torch.randn(4, 3, 1, 2, 3, 5, device=device_of("triton")).to(dtype).requires_grad_()
    exact = logits.detach().cpu().double().requires_grad_()
    gates, definition = normalise_gates(logits, backend="triton"), normalise_gates(exact, backend="reference")
    assert gates.dtype == dtype
    agree(gates, definition, 3)
    weight = torch.randn(gates.shape).to(dtype)
    (gradient,) = torch.autograd.grad(gates, logits, weight.to(gates.device))
    (exact_gradient,) = torch.autograd.grad(definition, exact, weight.double())
    agree(gradient, exact_gradient, 6)


@backends
def test_directions_may_repeat_and_come_in_any_order(backend, device_of):
    directions = ("bottom_top", "left_right", "bottom_top")
    logits = torch.randn(3, 3, 1, 2, 4, 5, device=device_of(backend))
    gates = normalise_gates(logits, directions, backend=backend)
    for k, direction in enumerate(directions):
        assert torch.equal(gates[k : k + 1], normalise_gates(logits[k : k + 1], (direction,), backend=backend))


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_row_stochastic_gates_carry_a_line_of_ones_on_unchanged(backend, direction, chunk, agree):
    """W_ij, the product of the gate matrices from line j to line i, has rows that sum to 1."""
    height, width = 9, 10
    gates = normalise_gates(torch.randn(1, 3, 1, 2, height, width), (direction,), backend=backend)
    axis = -1 if direction in ("left_right", "right_left") else -2
    lines = width if axis == -1 else height
    lam = torch.zeros(1, 1, 1, height, width)
    start = 5
    lam.select(axis, lines - 1 - start if direction in ("right_left", "bottom_top") else start).fill_(1)
    h = propagate(torch.ones(1, 2, height, width), gates, lam, directions=(direction,), chunk=chunk, backend=backend)
    walked = (h.flip(axis) if direction in ("right_left", "bottom_top") else h).movedim(axis, 0)
    end = lines if chunk is None else 8
    agree(walked[start:end], torch.ones_like(walked[start:end]).double(), lines)
    assert not walked[:start].any()
    assert not walked[end:].any()
