"""Every rule of gate normalisation: the formulas written out, every backend and gradient, and the matrix of the scan.

All fresh memory is poisoned with NaN. Triton runs in its interpreter where there is no GPU, so its maps are tiny.
"""

import pytest
import torch

from kernels.propagation import DIRECTIONS, NORMALISATIONS, complement, normalise_gates, propagate

pytestmark = pytest.mark.usefixtures("poison")

RULES = tuple(NORMALISATIONS)
SIZES = [(5, 7), (1, 6), (6, 1), (2, 3), (9, 8), (1, 1), (3, 41)]
TINY = [(3, 4), (1, 3), (4, 1), (1, 1)]

rules = pytest.mark.parametrize("rule", RULES)
backends = pytest.mark.parametrize("backend", ["cpu", "triton"])
directions_one_by_one = pytest.mark.parametrize("direction", DIRECTIONS)


def is_horizontal(direction):
    return direction in ("left_right", "right_left")


def exists_in(shape, directions):
    """True where a gate's neighbour lies on the map: (K, 3, B, G, H, W)."""
    exists = torch.ones(shape, dtype=torch.bool)
    for k, direction in enumerate(directions):
        axis = -2 if is_horizontal(direction) else -1
        exists[k, 0].select(axis, 0).fill_(False)
        exists[k, 2].select(axis, -1).fill_(False)
    return exists


def by_hand(logits, rule):
    """The rules, gate by gate, for (K, 3, ...) in float64 with the four directions."""
    exists = exists_in(logits.shape, DIRECTIONS)
    logits = logits.double()
    if rule in ("sigmoid", "softmax"):
        weight = torch.where(exists, (torch.sigmoid if rule == "sigmoid" else torch.exp)(logits), 0)
        return weight / weight.sum(1, keepdim=True)
    if rule == "absolute":
        size = torch.where(exists, logits.abs(), 0).sum(1, keepdim=True)
        return torch.where(exists, torch.where(size > 1, logits / size, logits), 0)
    return torch.where(exists, torch.tanh(logits) if rule == "tanh" else logits, 0)


@rules
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_rule_is_its_formula(rule, size, agree):
    logits = 2 * torch.randn(4, 3, 2, 3, *size)
    for backend in ("reference", "cpu"):
        gates = normalise_gates(logits, rule=rule, backend=backend)
        agree(gates, by_hand(logits, rule), 4)
        assert torch.equal(gates != 0, exists_in(logits.shape, DIRECTIONS))


@rules
@pytest.mark.parametrize("size", TINY, ids=str)
def test_every_rule_in_triton_is_its_formula(rule, size, agree, device_of):
    logits = 2 * torch.randn(4, 3, 1, 2, *size, device=device_of("triton"))
    agree(normalise_gates(logits, rule=rule, backend="triton"), by_hand(logits.cpu(), rule), 4)


def gradient_of(logits, weight, rule, backend, directions=DIRECTIONS):
    return torch.autograd.grad(normalise_gates(logits, directions, rule=rule, backend=backend), logits, weight)[0]


@rules
@backends
@pytest.mark.parametrize("strided", [False, True])
def test_the_gradient_of_every_rule_is_that_of_the_reference(backend, rule, strided, agree, device_of):
    for size in SIZES if backend == "cpu" else TINY[: 1 if strided else 3]:
        logits = torch.randn(4, 3, 1, 2, *size, device=device_of(backend))
        weight = torch.randn_like(logits)
        if strided:
            logits, weight = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (logits, weight))
        exact = logits.cpu().double().requires_grad_()
        found = gradient_of(logits.requires_grad_(), weight, rule, backend)
        expected = gradient_of(exact, weight.cpu().double(), rule, "reference")
        agree(found, expected, 8, scale=weight.abs().max().item())


@rules
@pytest.mark.parametrize("size", [(3, 4), (1, 4), (4, 1), (1, 1)], ids=str)
def test_the_gradient_of_every_rule_is_that_of_finite_differences(rule, size):
    logits = torch.randn(4, 3, 1, 1, *size, dtype=torch.float64)
    if rule == "absolute":  # away from its kinks: where a logit is 0, and where the magnitudes sum to 1
        logits = logits + 0.1 * logits.sign()
        near = (torch.where(exists_in(logits.shape, DIRECTIONS), logits.abs(), 0).sum(1, keepdim=True) - 1).abs() < 0.05
        logits = torch.where(near, 1.2 * logits, logits)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: normalise_gates(t, rule=rule, backend="reference"), logits)


@backends
def test_at_the_kinks_of_the_absolute_rule_the_gradient_is_that_of_the_reference(backend, device_of):
    signs = torch.randint(0, 2, (4, 3, 1, 2, 3, 4)) * 2.0 - 1
    for size in (0.0, 0.5):  # nothing but zeros; and three halves, or two at the border: exactly 1
        logits = (size * signs).to(device_of(backend)).requires_grad_()
        weight = torch.randint(-3, 4, logits.shape).float()
        exact = logits.detach().cpu().double().requires_grad_()
        found = gradient_of(logits, weight.to(logits.device), "absolute", backend)
        expected = gradient_of(exact, weight.double(), "absolute", "reference")
        torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-6)


@rules
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_storage_in_triton_costs_one_rounding_for_every_rule(rule, dtype, agree, device_of):
    logits = torch.randn(4, 3, 1, 1, 3, 5, device=device_of("triton")).to(dtype).requires_grad_()
    exact = logits.detach().cpu().double().requires_grad_()
    gates = normalise_gates(logits, rule=rule, backend="triton")
    assert gates.dtype == dtype
    agree(gates, normalise_gates(exact, rule=rule, backend="reference"), 4)
    weight = torch.randn(gates.shape).to(dtype)
    found = gradient_of(logits, weight.to(gates.device), rule, "triton")
    agree(found, gradient_of(exact, weight.double(), rule, "reference"), 8, scale=weight.abs().max().item())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")  # interpreted
@rules
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_the_logit_of_a_missing_neighbour_may_be_anything(backend, rule, device_of):
    logits = torch.randn(4, 3, 1, 1, 2, 3)
    exists = exists_in(logits.shape, DIRECTIONS)
    gates = normalise_gates(logits.to(device_of(backend)), rule=rule, backend=backend)
    for value in (torch.inf, -torch.inf, 1e30):
        other = torch.where(exists, logits, torch.tensor(value)).to(gates.device)
        assert torch.equal(normalise_gates(other, rule=rule, backend=backend), gates)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, on behalf of the interpreted sigmoid
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_large_logits_stay_finite_and_keep_the_bounds_of_their_rule(backend, device_of):
    logits = 300 * torch.randn(4, 3, 1, 1, 3, 4, device=device_of(backend))
    for rule in ("sigmoid", "softmax", "absolute", "tanh"):
        gates = normalise_gates(logits, rule=rule, backend=backend)
        assert gates.isfinite().all()
        assert gates.abs().max() <= 1 + 1e-6
        if rule == "absolute":
            assert gates.abs().sum(1).max() <= 1 + 1e-6
        if rule == "softmax":
            torch.testing.assert_close(gates.sum(1), torch.ones_like(gates[:, 0]), rtol=0, atol=1e-6)


def test_an_unknown_rule_is_answered_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"^rule must be one of sigmoid, softmax, absolute, tanh, none; got 'relu'\.$"):
        normalise_gates(torch.zeros(4, 3, 1, 1, 2, 2), rule="relu")


# complement, SPN's input weight


def reads_previous(size, direction, chunk):
    """(H, W) bool: whether a position's line has a line before it in its chunk."""
    lines = size[1] if is_horizontal(direction) else size[0]
    t = torch.arange(lines)
    if direction in ("right_left", "bottom_top"):
        t = lines - 1 - t
    reads = t % (chunk or lines) != 0
    return reads.expand(size) if is_horizontal(direction) else reads[:, None].expand(size)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1), (1, 1)], ids=str)
def test_complement_is_1_minus_what_is_read(size, chunk, agree):
    gates = torch.randn(4, 3, 2, 2, *size, requires_grad=True)  # gates of missing neighbours are not 0 here
    lam = complement(gates, chunk=chunk)
    read = torch.where(exists_in(gates.shape, DIRECTIONS), gates.double(), 0).sum(1)
    for k, direction in enumerate(DIRECTIONS):
        expected = torch.where(reads_previous(size, direction, chunk), 1 - read[k], 1)
        agree(lam[k], expected.detach(), 4)
    weight = torch.randn_like(lam)
    (gradient,) = torch.autograd.grad(lam, gates, weight)
    for k, direction in enumerate(DIRECTIONS):
        counts = exists_in(gates.shape, DIRECTIONS)[k] & reads_previous(size, direction, chunk)
        assert torch.equal(gradient[k], torch.where(counts, -weight[k], 0))


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_with_the_complement_a_map_of_ones_stays_one_whatever_the_signs(backend, chunk, agree, device_of):
    """Every row of the matrix sums to 1."""
    logits = torch.randn(4, 3, 1, 2, 4, 5, device=device_of(backend))
    gates = normalise_gates(logits, rule="absolute", backend=backend)
    ones = torch.ones(1, 2, 4, 5, device=logits.device)
    h = propagate(ones, gates, complement(gates, chunk=chunk), chunk=chunk, backend=backend)
    agree(h, torch.ones(h.shape, dtype=torch.float64), 10)


WRONG = {
    "numbers": ([1.0], TypeError, "gates must be a tensor; got list."),
    "integers": (torch.ones(4, 3, 1, 1, 2, 2, dtype=torch.int64), TypeError, "gates must be a floating-point tensor"),
    "two gates": (torch.ones(4, 2, 1, 1, 2, 2), ValueError, "gates must be (K, 3, B, G, H, W) with K = 4 directions"),
    "an empty map": (torch.ones(4, 3, 1, 1, 0, 2), ValueError, "no empty axis; got (4, 3, 1, 1, 0, 2)."),
}


@pytest.mark.parametrize(("gates", "kind", "words"), WRONG.values(), ids=WRONG)
def test_complement_refuses_what_are_no_gates(gates, kind, words):
    with pytest.raises(kind) as told:
        complement(gates)
    assert words in str(told.value)


# The matrix of the recurrence


def line_of(t, size, direction):
    """The flat image positions of line t, in the order of the cross axis."""
    height, width = size
    lines = width if is_horizontal(direction) else height
    at = lines - 1 - t if direction in ("right_left", "bottom_top") else t
    return (
        [n * width + at for n in range(height)] if is_horizontal(direction) else [at * width + n for n in range(width)]
    )


def dense(gates, lam, size, direction, chunk):
    """G with h = G x, (N, N) in image coordinates, from the tridiagonal w_t: h_t = w_t h_(t-1) + diag(lam_t) x_t.

    gates (3, H W), lam (H W); G_tj = w_t w_(t-1) ... w_(j+1) diag(lam_j) for lines j <= t of one chunk.
    """
    height, width = size
    lines, cross = (width, height) if is_horizontal(direction) else (height, width)
    full = torch.zeros(height * width, height * width, dtype=torch.float64)
    for j in range(lines):
        source = line_of(j, size, direction)
        block = torch.diag(lam[source])
        for t in range(j, min(lines, (j // (chunk or lines) + 1) * (chunk or lines))):
            place = line_of(t, size, direction)
            if t > j:
                g = gates[:, place]
                w = torch.diag(g[1]) + torch.diag(g[0, 1:], -1) + torch.diag(g[2, : cross - 1], 1)
                block = w @ block
            full[torch.tensor(place)[:, None], torch.tensor(source)] = block
    return full


@rules
@directions_one_by_one
@pytest.mark.parametrize("with_complement", [False, True])
def test_matrix_recurrence_numba_and_triton_agree(rule, direction, with_complement, agree, device_of):
    for size, chunk in (((3, 4), None), ((4, 3), 2), ((1, 3), None), ((3, 1), None)):
        logits, x = torch.randn(1, 3, 1, 1, *size), torch.randn(1, 1, *size)
        one = (direction,)
        exact_gates = normalise_gates(logits.double(), one, rule=rule, backend="reference")
        exact_lam = (
            complement(exact_gates, one, chunk=chunk) if with_complement else torch.randn(1, 1, 1, *size).double()
        )
        matrix = dense(exact_gates[0, :, 0, 0].flatten(1), exact_lam.flatten(), size, direction, chunk)
        expected = (matrix @ x.double().flatten()).view(1, 1, 1, *size)
        scale = (matrix.abs() @ x.double().flatten().abs()).max().item()
        settings = {"directions": one, "chunk": chunk}
        agree(propagate(x.double(), exact_gates, exact_lam, **settings, backend="reference"), expected, 8, scale)
        for backend in ("cpu",) if 1 in size else ("cpu", "triton"):  # the interpreter is slow
            gates = normalise_gates(logits.to(device_of(backend)), one, rule=rule, backend=backend)
            lam = complement(gates, one, chunk=chunk) if with_complement else exact_lam.float().to(gates.device)
            h = propagate(x.to(gates.device), gates, lam, **settings, backend=backend)
            agree(h, expected, 24, scale)
            if with_complement:
                torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)).double(), rtol=0, atol=1e-12)
