"""Line propagation: the reference is the recurrence of its docstring, and the equivalences that follow from it hold.

`test_propagation_backends.py` compares the other backends with the reference.
"""

import pytest
import torch

from kernels.propagation import DIRECTIONS, propagate

#: Direction -> how its maps become those of a left_right scan, and back.
TO_LEFT_RIGHT = {
    "left_right": (lambda m: m, lambda m: m),
    "right_left": (lambda m: m.flip(-1), lambda m: m.flip(-1)),
    "top_bottom": (lambda m: m.transpose(-1, -2), lambda m: m.transpose(-1, -2)),
    "bottom_top": (lambda m: m.flip(-2).transpose(-1, -2), lambda m: m.transpose(-1, -2).flip(-2)),
}
SIZES = [(5, 7), (1, 6), (6, 1), (2, 3), (9, 8), (1, 1)]
CHUNKS = [None, 1, 2, 5, 100]

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
directions_one_by_one = pytest.mark.parametrize("direction", DIRECTIONS)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
chunks = pytest.mark.parametrize("chunk", CHUNKS)


def draw(height, width, count=4, batch=2, channels=3, dtype=torch.float32):
    """x (B, C, H, W), gates whose magnitudes sum to 1, border gates included, and lam."""
    gates = torch.randn(count, 3, batch, channels, height, width, dtype=dtype)
    gates /= gates.abs().sum(1, keepdim=True)
    x = torch.randn(batch, channels, height, width, dtype=dtype)
    return x, gates, torch.randn(count, batch, channels, height, width, dtype=dtype)


def step_by_step(x, gates, lam, directions, chunk):
    """The recurrence, one position after the other."""
    height, width = x.shape[-2:]
    h = torch.zeros(len(directions), *x.shape, dtype=torch.float64)
    for k, direction in enumerate(directions):
        lines, cross = (width, height) if direction in ("left_right", "right_left") else (height, width)

        def pixel(t, n, direction=direction, lines=lines):
            line = lines - 1 - t if direction in ("right_left", "bottom_top") else t
            return (n, line) if direction in ("left_right", "right_left") else (line, n)

        for t in range(lines):
            for n in range(cross):
                r, c = pixel(t, n)
                value = lam[k, :, :, r, c] * x[:, :, r, c]
                for j in range(3):
                    if t % (chunk or lines) and 0 <= n + j - 1 < cross:
                        before_r, before_c = pixel(t - 1, n + j - 1)
                        value = value + gates[k, j, :, :, r, c] * h[k, :, :, before_r, before_c]
                h[k, :, :, r, c] = value
    return h


@chunks
@sizes
def test_the_reference_is_the_recurrence_step_by_step(size, chunk, agree):
    x, gates, lam = draw(*size, dtype=torch.float64)
    h = propagate(x, gates, lam, chunk=chunk, backend="reference")
    agree(h, step_by_step(x, gates, lam, DIRECTIONS, chunk), sum(size))


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("shared_gates", [False, True])
@pytest.mark.parametrize("per_direction", [False, True])
def test_gradients_of_the_reference_are_those_of_finite_differences(per_direction, shared_gates, chunk):
    x, gates, lam = draw(3, 4, batch=1, channels=2, dtype=torch.float64)
    x = torch.randn(4, *x.shape, dtype=torch.float64) if per_direction else x
    gates = gates[:, :, :, :1] if shared_gates else gates
    inputs = [t.clone().requires_grad_() for t in (x, gates, lam)]
    assert torch.autograd.gradcheck(lambda *t: propagate(*t, chunk=chunk, backend="reference"), inputs)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (2, 3)], ids=str)
def test_gradients_of_the_reference_hold_on_thin_maps_and_shared_lam(size):
    x, gates, lam = draw(*size, batch=1, channels=2, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, gates, lam[:, :, :1])]
    assert torch.autograd.gradcheck(lambda *t: propagate(*t, chunk=2, backend="reference"), inputs)


@chunks
@directions_one_by_one
@backends
def test_every_direction_is_left_right_on_a_flipped_or_transposed_map(backend, direction, chunk, agree):
    x, gates, lam = draw(6, 9, count=1)
    there, back = TO_LEFT_RIGHT[direction]
    own = propagate(x, gates, lam, directions=(direction,), chunk=chunk, backend=backend)
    carried = propagate(
        there(x), there(gates), there(lam), directions=("left_right",), chunk=chunk, backend=backend
    )  # fmt: skip
    agree(own, back(carried).double(), 15)


@backends
def test_gates_0_and_2_swap_when_the_cross_axis_is_mirrored(backend, agree):
    x, gates, lam = draw(6, 9, count=1)
    own = propagate(x, gates, lam, directions=("left_right",), backend=backend)
    mirrored = propagate(
        x.flip(-2), gates[:, [2, 1, 0]].flip(-2), lam.flip(-2), directions=("left_right",), backend=backend
    )  # fmt: skip
    agree(own, mirrored.flip(-2).double(), 15)


@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
@directions_one_by_one
@backends
def test_a_chunk_is_a_map_of_its_own_counted_from_where_the_direction_starts(backend, direction, chunk, agree):
    x, gates, lam = draw(7, 9, count=1)  # neither side is a multiple of 2, 4 or 5
    axis = -1 if direction in ("left_right", "right_left") else -2
    lines = x.shape[axis]
    starts = range(0, lines, chunk)
    if direction in ("right_left", "bottom_top"):
        pieces = [slice(max(0, lines - start - chunk), lines - start) for start in reversed(starts)]
    else:
        pieces = [slice(start, start + chunk) for start in starts]

    def cut(maps, piece):
        return maps[..., piece] if axis == -1 else maps[..., piece, :]

    apart = [
        propagate(cut(x, p), cut(gates, p), cut(lam, p), directions=(direction,), backend=backend) for p in pieces
    ]  # fmt: skip
    whole = propagate(x, gates, lam, directions=(direction,), chunk=chunk, backend=backend)
    agree(whole, torch.cat(apart, axis).double(), 15)


@backends
def test_one_call_for_four_directions_is_four_calls(backend):
    x, gates, lam = draw(6, 9)
    together = propagate(x, gates, lam, chunk=4, backend=backend)
    for k, direction in enumerate(DIRECTIONS):
        alone = propagate(x, gates[k : k + 1], lam[k : k + 1], directions=(direction,), chunk=4, backend=backend)
        assert torch.equal(together[k], alone[0])


@backends
def test_what_is_left_out_or_shared_is_what_it_stands_for(backend, agree):
    x, gates, lam = draw(6, 9)
    plain = propagate(x, gates, lam, backend=backend)
    assert torch.equal(propagate(x.expand(4, *x.shape), gates, lam, backend=backend), plain)
    assert torch.equal(propagate(x, gates, lam, chunk=9, backend=backend), plain)

    def full(t):
        return t.expand(*t.shape[:-3], 3, *t.shape[-2:])

    shared_gates, shared_lam = gates[:, :, :, :1], lam[:, :, :1]
    shared = propagate(x, shared_gates, shared_lam, backend=backend)
    assert torch.equal(shared, propagate(x, full(shared_gates), full(shared_lam), backend=backend))
    none = propagate(x, gates, backend=backend)
    agree(none, propagate(x, gates, torch.ones_like(lam), backend=backend).double(), 15)  # rounds at other places


@backends
def test_chunks_of_one_line_leave_only_lam_times_x(backend):
    x, gates, lam = draw(6, 9)
    assert torch.equal(propagate(x, gates, lam, chunk=1, backend=backend), lam * x)


@backends
def test_propagation_is_linear_in_x(backend, agree):
    x, gates, lam = draw(6, 9)
    y = torch.randn_like(x)

    def scan(source):
        return propagate(source, gates, lam, chunk=4, backend=backend)

    agree(scan(2 * x - 3 * y), 2 * scan(x).double() - 3 * scan(y).double(), 30)


@pytest.mark.parametrize("chunk", [None, 4])
@directions_one_by_one
@backends
def test_an_impulse_reaches_the_cone_ahead_of_it_and_nothing_else(backend, direction, chunk):
    size, (row, col) = (9, 11), (4, 5)
    x = torch.zeros(1, 1, *size)
    x[..., row, col] = 1
    gates = torch.full((1, 3, 1, 1, *size), 1 / 3)
    h = propagate(x, gates, directions=(direction,), chunk=chunk, backend=backend)[0, 0, 0]
    horizontal, backwards = direction in ("left_right", "right_left"), direction in ("right_left", "bottom_top")
    lines, line, place = (size[1], col, row) if horizontal else (size[0], row, col)
    for r in range(size[0]):
        for c in range(size[1]):
            there, cross = (c, r) if horizontal else (r, c)
            first, now = (lines - 1 - line, lines - 1 - there) if backwards else (line, there)
            ahead = now >= first and (chunk is None or now // chunk == first // chunk)
            assert (h[r, c] != 0) == (ahead and abs(cross - place) <= now - first)


def test_the_result_has_the_dtype_of_x_on_the_reference():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x, gates, lam = (t.to(dtype) for t in draw(3, 4))
        assert propagate(x, gates, lam, backend="reference").dtype == dtype
