"""The fused mixer is the composition of gates, scan and merge: values and gradients, every rule, size and sharing.

All fresh memory is poisoned with NaN. Triton runs in its interpreter where there is no GPU, so its maps are tiny.
"""

import pytest
import torch

from kernels.backends import BackendUnavailable
from kernels.propagation import DIRECTIONS, NORMALISATIONS, mix, normalise_gates, propagate

SIZES = [(5, 7), (1, 6), (6, 1), (8, 8), (14, 14), (2, 16), (16, 9), (9, 17), (1, 1), (3, 41)]
NAMES = ("v", "logits", "lam", "u", "skip", "weight")

sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def drawn(size, *, batch=2, channels=3, count=4, groups=3, lam=3, u=3, skip=3, spread=3.0):
    """Random inputs of `mix`; lam, u and skip have that many channels, or are None."""
    maps = [None if c is None else torch.randn(count, batch, c, *size) for c in (lam, u, skip)]
    logits = spread * torch.randn(count, 3, batch, groups, *size)
    return [torch.randn(batch, channels, *size), logits, *maps, torch.randn(count)]


def compare(agree, inputs, backend="cpu", device="cpu", **settings):
    """Values and all gradients of `backend` against the reference in float64."""
    given = [None if t is None else t.to(device).requires_grad_() for t in inputs]
    exact = [None if t is None else t.detach().cpu().double().requires_grad_() for t in inputs]
    value, definition = mix(*given, backend=backend, **settings), mix(*exact, backend="reference", **settings)
    height, width = value.shape[-2:]
    # A term of the sum for each neighbour and line, and of a gradient for each direction and channel that share.
    terms, passes = 8 * max(height, width), len(inputs[-1])
    agree(value, definition, terms * passes)
    grad = torch.randn(value.shape)
    gradients = torch.autograd.grad(value, [t for t in given if t is not None], grad.to(device))
    wanted = [t for t in exact if t is not None]
    # A single line reads no logits, and a graph without them has no gradient for them.
    definitions = torch.autograd.grad(definition, wanted, grad.double(), allow_unused=True)
    for tensor, gradient, found in zip(wanted, gradients, definitions, strict=True):
        found = torch.zeros_like(tensor) if found is None else found
        # Gradients of a lone gate, which is 1 whatever its logit, cancel to 0.
        scale = max(found.abs().max().item(), grad.abs().max().item() * max(1.0, inputs[0].abs().max().item()))
        agree(gradient, found, terms * passes, scale=scale)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("chunk", [None, 2, 5])
@sizes
def test_values_and_gradients_are_those_of_the_composition(size, chunk, agree):
    compare(agree, drawn(size), chunk=chunk)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("rule", [rule for rule in NORMALISATIONS if rule != "sigmoid"])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_rule_agrees(rule, groups, agree):
    spread = 0.2 if rule in ("tanh", "none") else 3.0  # the rules that are not stable grow along the lines
    compare(agree, drawn((9, 13), groups=groups, spread=spread), chunk=4, rule=rule)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("size", [(6, 9), (1, 5), (10, 3)], ids=str)
@pytest.mark.parametrize(
    ("groups", "lam", "u", "skip"),
    [(1, 5, 5, 5), (5, 1, 5, 5), (5, 5, 1, 5), (5, 5, 5, 1), (1, 1, 1, 1), (5, None, 5, 5), (5, 5, None, None),
     (1, None, None, None), (1, None, 1, 5)],
)  # fmt: skip
def test_maps_may_be_shared_by_channels_or_absent(groups, lam, u, skip, size, agree):
    compare(agree, drawn(size, channels=5, groups=groups, lam=lam, u=u, skip=skip), chunk=4)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "directions",
    [("right_left",), ("bottom_top",), ("top_bottom", "left_right"), ("bottom_top", "left_right", "bottom_top")],
    ids=len,
)
def test_directions_may_be_few_and_repeat(directions, agree):
    compare(agree, drawn((6, 11), count=len(directions)), directions=directions)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(7, 7), (11, 13)], ids=str)
def test_many_small_planes_are_taken_together_and_agree(batch, size, agree):
    compare(agree, drawn(size, batch=batch, channels=61, groups=61, lam=61, u=61, skip=61), chunk=6)


@pytest.mark.usefixtures("poison")
def test_strided_inputs_give_what_contiguous_ones_give():
    inputs = drawn((6, 9))
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t for t in inputs]
    assert torch.equal(mix(*strided, backend="cpu"), mix(*inputs, backend="cpu"))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_that_is_asked_for_alone_is_the_one_asked_for_with_all(wanted):
    inputs = drawn((5, 9))
    every = [t.clone().requires_grad_() for t in inputs]
    alone = [t.clone().requires_grad_(name == wanted) for t, name in zip(inputs, NAMES, strict=True)]
    mix(*every, backend="cpu").square().sum().backward()
    mix(*alone, backend="cpu").square().sum().backward()
    at = NAMES.index(wanted)
    assert torch.equal(alone[at].grad, every[at].grad)
    assert [t.grad is not None for t in alone] == [name == wanted for name in NAMES]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("value", [-100.0, -36.0, -30.0, -17.5, -17.0, 30.0, 100.0])
def test_extreme_logits_give_what_the_definition_gives(value):
    inputs = drawn((6, 9))
    inputs[1] = torch.full_like(inputs[1], value)
    inputs[1][:, 1] += 3 * torch.randn_like(inputs[1][:, 1])
    exact = mix(*(t.double() for t in inputs), backend="reference")
    torch.testing.assert_close(mix(*inputs, backend="cpu").double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("size", [(13, 9), (20, 18)], ids=str)
def test_gates_that_are_nearly_0_or_1_agree(size, agree):
    compare(agree, drawn(size, spread=20.0, batch=1, channels=40, groups=40, lam=40, u=40, skip=40))


def test_what_a_neighbour_outside_the_map_would_weigh_does_not_count():
    inputs = drawn((6, 9))
    infinite = inputs[1].clone()
    for k, direction in enumerate(DIRECTIONS):
        axis = -2 if direction in ("left_right", "right_left") else -1
        infinite[k, 0].select(axis, 0).fill_(torch.inf)
        infinite[k, 2].select(axis, -1).fill_(torch.nan)
    assert torch.equal(mix(inputs[0], infinite, *inputs[2:], backend="cpu"), mix(*inputs, backend="cpu"))


def test_the_definition_is_the_composition_of_the_operators():
    v, logits, lam, u, skip, weight = (t.double() for t in drawn((4, 5)))
    h = propagate(v, normalise_gates(logits), lam, chunk=3)
    by_hand = sum(weight[k] * (u[k] * h[k] + skip[k] * v) for k in range(4))
    torch.testing.assert_close(mix(v, logits, lam, u, skip, weight, chunk=3), by_hand)


def test_the_gradient_of_the_reference_is_that_of_finite_differences():
    inputs = [t.double().requires_grad_() for t in drawn((3, 4), batch=1, channels=2, groups=1, lam=2, u=1, skip=2)]
    assert torch.autograd.gradcheck(lambda *given: mix(*given, chunk=2, backend="reference"), inputs)


@pytest.mark.usefixtures("poison")
def test_triton_agrees(agree, device_of):
    inputs = drawn((3, 5), batch=1, channels=2, groups=1, lam=2, u=2, skip=2)
    compare(agree, inputs, backend="triton", device=device_of("triton"), chunk=2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"v": torch.zeros(3, 4, 5)}, ValueError, r"v must be \(B, C, H, W\) with no empty axis; got \(3, 4, 5\)."),
        ({"logits": torch.zeros(4, 3, 2, 2, 4, 5)}, ValueError, r"logits must be .* if shared; got \(4, 3, 2, 2, 4, 5"),
        ({"lam": torch.zeros(3, 2, 3, 4, 5)}, ValueError, r"lam must be \(4, 2, 3, 4, 5\), or \(4, 2, 1, 4, 5\)"),
        ({"u": torch.zeros(4, 2, 3, 5, 4)}, ValueError, r"u must be \(4, 2, 3, 4, 5\)"),
        ({"skip": torch.zeros(4, 2, 3, 4, 5).double()}, TypeError, "skip must have the dtype of v"),
        ({"weight": torch.zeros(3)}, ValueError, r"weight must be \(4,\), one for each of the 4 .*; got \(3,\)"),
        ({"rule": "relu"}, ValueError, "rule must be one of sigmoid, .*; got 'relu'."),
        ({"chunk": 0}, ValueError, "chunk must be at least 1 line"),
        ({"chunk": 1.5}, TypeError, "chunk must be a whole number of lines"),
        ({"directions": ("up",)}, ValueError, "directions must be one or more of"),
        ({"v": torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, TypeError, "v must be a floating-point tensor"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_a_wrong_argument_is_named_in_one_sentence(changed, error, message):
    given = dict(zip(NAMES, drawn((4, 5)), strict=True)) | changed
    with pytest.raises(error, match=message):
        mix(**given)


def test_a_named_backend_that_cannot_run_says_so():
    with pytest.raises(BackendUnavailable, match="takes float32 tensors on the CPU"):
        mix(*(t.double() for t in drawn((4, 5))), backend="cpu")
