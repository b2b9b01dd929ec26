"""Slice-by-slice convolution: the reference is the recurrence written out, and the CPU path agrees with it.

All fresh memory is poisoned with NaN.
"""

import pytest
import torch

from kernels.backends import BackendUnavailable
from kernels.propagation import DIRECTIONS
from kernels.slice_convolution import ORDER, activity, slice_convolve

pytestmark = pytest.mark.usefixtures("poison")

#: (B, C, H, W) and k: lines of one, channels that fill no block of 8 and more than one, and more than one vector.
SHAPES = [
    ((1, 1, 1, 1), 1), ((1, 2, 1, 5), 3), ((2, 3, 5, 1), 3), ((1, 4, 6, 7), 9), ((2, 9, 4, 5), 5), ((1, 8, 3, 16), 3),
    ((1, 3, 17, 33), 3), ((2, 5, 7, 4), 1),
]  # fmt: skip
shapes = pytest.mark.parametrize(("shape", "size"), SHAPES, ids=str)
both = pytest.mark.parametrize("backend", ["reference", "cpu"])


def draw(shape, size, count=4, dtype=torch.float32):
    """A map, and weights that keep its size: rows of a pass's matrix have a norm of 1."""
    channels = shape[1]
    weight = torch.randn(count, channels, channels, size, dtype=dtype) / (channels * size) ** 0.5
    return torch.randn(shape, dtype=dtype), weight


def step_by_step(x, weight, directions):
    """The recurrence, one position after the other, and where the ReLU is active."""
    active = torch.zeros(len(directions), *x.shape, dtype=torch.bool)
    for k, direction in enumerate(directions):
        horizontal, backwards = direction in ("left_right", "right_left"), direction in ("right_left", "bottom_top")
        lines, cross = (x.shape[3], x.shape[2]) if horizontal else (x.shape[2], x.shape[3])

        def place(t, n, horizontal=horizontal, backwards=backwards, lines=lines):
            line = lines - 1 - t if backwards else t
            return (n, line) if horizontal else (line, n)

        x, half = x.clone(), weight.shape[3] // 2
        for t in range(1, lines):
            for n in range(cross):
                value = torch.zeros(x.shape[:2], dtype=x.dtype)
                for j in range(weight.shape[3]):
                    if 0 <= n + j - half < cross:
                        r, c = place(t - 1, n + j - half)
                        value += x[:, :, r, c] @ weight[k, :, :, j].T
                r, c = place(t, n)
                active[k, :, :, r, c] = value > 0
                x[:, :, r, c] += value.relu()
    return x, active


def scale_of(*tensors):
    return max(t.abs().max().item() for t in tensors)


@shapes
def test_the_reference_is_the_recurrence_step_by_step(shape, size, agree):
    x, weight = draw(shape, size, dtype=torch.float64)
    expected, active = step_by_step(x, weight, ORDER)
    agree(slice_convolve(x, weight, backend="reference"), expected, 4 * sum(shape) * size)
    assert torch.equal(activity(x, weight, backend="reference"), active)


@shapes
@pytest.mark.parametrize("strided", [False, True])
def test_the_cpu_path_agrees_with_the_reference_in_values_and_gradients(shape, size, strided, agree):
    x, weight = draw(shape, size)
    if strided:
        x, weight = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, weight))
    active = activity(x, weight, backend="cpu")  # the same units in both, whatever the rounding of those near 0
    x, weight = x.requires_grad_(), weight.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    terms = 4 * (shape[2] + shape[3] + shape[1] * size)
    out, expected = slice_convolve(x, weight, backend="cpu"), slice_convolve(*exact, active, backend="reference")
    assert out.is_contiguous()
    agree(out, expected, terms)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, weight), cotangent)
    wanted = torch.autograd.grad(expected, exact, cotangent.double(), materialize_grads=True)
    for gradient, exact_gradient in zip(found, wanted, strict=True):
        assert gradient.is_contiguous() or strided
        agree(gradient, exact_gradient, terms * shape[0] * 8, scale=max(1, scale_of(exact_gradient)))


def test_gradients_of_the_reference_are_those_of_finite_differences():
    for shape, size in (((1, 2, 3, 4), 3), ((2, 1, 1, 3), 1)):
        x, weight = draw(shape, size, dtype=torch.float64)
        inputs = [x.requires_grad_(), weight.requires_grad_()]
        assert torch.autograd.gradcheck(lambda *t: slice_convolve(*t, backend="reference"), inputs)
        active = torch.rand(4, *shape) < 0.5
        assert torch.autograd.gradcheck(lambda *t, a=active: slice_convolve(*t, a, backend="reference"), inputs)


@both
def test_activity_is_where_the_relu_is_not_0_and_makes_the_map_linear(backend, agree):
    x, weight = draw((2, 3, 5, 6), 3)
    active = activity(x, weight, backend=backend)
    assert active.dtype == torch.bool
    assert active.shape == (4, 2, 3, 5, 6)
    assert 0.2 < active.float().mean() < 0.8
    assert not active[0, :, :, 0].any()
    assert not active[3, :, :, :, -1].any()
    out = slice_convolve(x, weight, backend=backend)
    assert torch.equal(slice_convolve(x, weight, active, backend=backend), out)
    agree(slice_convolve(3.5 * x, weight, backend=backend), 3.5 * out.double(), 60)  # no bias: homogeneous
    v, w = torch.randn_like(x), torch.randn_like(x)

    def linear(map_):
        return slice_convolve(map_, weight, active, backend=backend)

    agree(linear(2 * v - 3 * w), 2 * linear(v).double() - 3 * linear(w).double(), 200)


@both
def test_the_map_with_activity_given_is_the_derivative(backend, agree):
    x, weight = draw((1, 3, 4, 5), 3)
    active = activity(x, weight, backend=backend)
    v, g = torch.randn_like(x), torch.randn_like(x)
    (back,) = torch.autograd.grad(slice_convolve(x.requires_grad_(), weight, backend=backend), x, g)
    forth = slice_convolve(v, weight, active, backend=backend)
    agree((forth * g).sum(), (v * back).sum().double(), 200, scale=(forth.norm() * g.norm()).item())


@both
def test_activity_of_one_image_serves_all_images_of_a_batch(backend, agree):
    x, weight = draw((3, 2, 4, 5), 3)
    active = activity(x[:1], weight, backend=backend)
    together = slice_convolve(x, weight, active, backend=backend)
    for b in range(3):
        agree(together[b : b + 1], slice_convolve(x[b : b + 1], weight, active, backend=backend).double(), 30)


@both
def test_passes_run_one_after_the_other_in_the_order_given(backend, agree):
    x, weight = draw((1, 2, 5, 4), 3)
    for order in (ORDER, ("left_right", "left_right", "bottom_top", "top_bottom")):
        one_by_one = x
        for k, direction in enumerate(order):
            one_by_one = slice_convolve(one_by_one, weight[k : k + 1], directions=(direction,), backend=backend)
        agree(slice_convolve(x, weight, directions=order, backend=backend), one_by_one.double(), 60)


@pytest.mark.parametrize("direction", DIRECTIONS)
@both
def test_an_impulse_reaches_the_cone_ahead_of_it_that_the_kernel_opens(backend, direction):
    x, weight = torch.zeros(1, 1, 6, 7), torch.full((1, 1, 1, 5), 0.2)
    x[..., 2, 3] = 1
    out = slice_convolve(x, weight, directions=(direction,), backend=backend)[0, 0]
    rows, cols = torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij")
    ahead = {"left_right": cols - 3, "right_left": 3 - cols, "top_bottom": rows - 2, "bottom_top": 2 - rows}[direction]
    aside = (rows - 2).abs() if direction in ("left_right", "right_left") else (cols - 3).abs()
    assert torch.equal(out != 0, (ahead >= 0) & (aside <= 2 * ahead))


@both
def test_only_what_asks_for_gradients_gets_them_and_inputs_stay_as_they_were(backend):
    x, weight = draw((1, 2, 4, 3), 3)
    kept = x.clone(), weight.clone()
    out = slice_convolve(x, weight.clone().requires_grad_(), backend=backend)
    out.sum().backward()
    assert slice_convolve(x, weight, backend=backend).grad_fn is None
    assert torch.equal(x, kept[0])
    assert torch.equal(weight, kept[1])
    single = slice_convolve(x, weight[:1, ..., 1:2].contiguous(), directions=("top_bottom",), backend=backend)
    single += 1  # a result of its own, which shares no memory with what was kept for gradients
    assert torch.equal(x, kept[0])


def test_half_precision_runs_on_the_reference():
    x, weight = draw((1, 2, 3, 4), 3)
    for dtype in (torch.float64, torch.bfloat16):
        assert slice_convolve(x.to(dtype), weight.to(dtype)).dtype == dtype


def test_there_is_no_triton_path_and_it_says_so():
    x, weight = draw((1, 2, 3, 4), 3)
    for call in (slice_convolve, activity):
        with pytest.raises(BackendUnavailable, match=r"has no Triton kernels: use backend='reference'"):
            call(x, weight, backend="triton")


X, WEIGHT = torch.ones(2, 3, 4, 5), torch.ones(4, 3, 3, 3)
WRONG = {
    "a map": ((X[0], WEIGHT), {}, ValueError, "x must be (B, C, H, W) with no empty axis; got (3, 4, 5)."),
    "a list": (([1.0], WEIGHT), {}, TypeError, "x must be a tensor; got list."),
    "an even kernel": ((X, WEIGHT[..., :2]), {}, ValueError, "an odd k, for 4 directions and 3 channels; got (4"),
    "other channels": ((X, WEIGHT[:, :, :2]), {}, ValueError, "weight must be (K, C, C, k) = (4, 3, 3)"),
    "too few passes": ((X, WEIGHT[:3]), {}, ValueError, "for 4 directions and 3 channels; got (3, 3, 3, 3)."),
    "weights in float64": ((X, WEIGHT.double()), {}, TypeError, "weight must have the dtype of x"),
    "no direction": ((X, WEIGHT), {"directions": ()}, ValueError, "directions must be one or more of left_right"),
    "an unknown one": ((X, WEIGHT), {"directions": ("up",)}, ValueError, "bottom_top; got ('up',)."),
    "activity in numbers": ((X, WEIGHT, torch.ones(4, 2, 3, 4, 5)), {}, TypeError, "active must be a bool tensor"),
    "activity of a map": (
        (X, WEIGHT, torch.ones(4, 3, 4, 5).bool()), {}, ValueError, "active must be (4, 2, 3, 4, 5), or (4, 1, 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "settings", "kind", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_answered_with_one_sentence(arguments, settings, kind, words):
    with pytest.raises(kind) as told:
        slice_convolve(*arguments, **settings)
    assert words in str(told.value)
    assert str(told.value).endswith(".")
