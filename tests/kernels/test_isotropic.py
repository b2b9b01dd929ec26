"""Isotropic diffusion: the reference is the iteration written out, and the CPU path agrees with it.

All fresh memory is poisoned with NaN.
"""

import pytest
import torch

from kernels.backends import BackendUnavailable
from kernels.isotropic import NEIGHBOURS, diffuse, normalise_affinity

pytestmark = pytest.mark.usefixtures("poison")

#: (B, C, H, W): a single pixel, one line, fewer positions than a vector and more, and exactly as many.
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 6), (1, 2, 6, 1), (2, 2, 2, 3), (1, 3, 5, 7), (1, 2, 3, 16), (1, 2, 17, 33)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
both = pytest.mark.parametrize("backend", ["reference", "cpu"])


def draw(shape, shared=False, dtype=torch.float32):
    logits = torch.randn(shape[0], 8, 1 if shared else shape[1], *shape[2:], dtype=dtype)
    return torch.randn(shape, dtype=dtype), logits


def step_by_step(x, logits, steps):
    """The iteration, one position after the other, in float64; and the magnitudes that it sums, as a bound."""
    x, logits = x.double(), logits.double().expand(-1, -1, x.shape[1], -1, -1)
    height, width = x.shape[2:]
    h = x
    for _ in range(steps):
        following = torch.zeros_like(x)
        for r in range(height):
            for c in range(width):
                inside = [
                    (j, r + dr, c + dc)
                    for j, (dr, dc) in enumerate(NEIGHBOURS)
                    if 0 <= r + dr < height and 0 <= c + dc < width
                ]
                size = sum((logits[:, j, :, r, c].abs() for j, _, _ in inside), torch.zeros(()))
                value = x[:, :, r, c]
                for j, row, col in inside:
                    value = value + logits[:, j, :, r, c] / size * (h[:, :, row, col] - x[:, :, r, c])
                following[:, :, r, c] = value
        h = following
    return h


@shapes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_both_paths_are_the_iteration_step_by_step(shape, shared, steps, agree):
    x, logits = draw(shape, shared)
    expected = step_by_step(x, logits, steps) if shape[2] * shape[3] < 100 else None
    if expected is None:
        expected = diffuse(x.double(), logits.double(), steps=steps, backend="reference")
    for backend in ("reference", "cpu"):
        agree(diffuse(x, logits, steps=steps, backend=backend), expected, 9 * steps)


@shapes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 24])
@pytest.mark.parametrize("strided", [False, True])
def test_the_gradients_of_the_cpu_path_are_those_of_the_reference(shape, shared, steps, strided, agree):
    x, logits = draw(shape, shared)
    if strided:
        x, logits = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, logits))
    logits = logits + 0.3 * logits.sign()  # far from where a division by a small sum makes gradients large
    x, logits = x.requires_grad_(), logits.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, logits)]
    out, expected = (diffuse(x, logits, steps=steps, backend="cpu"), diffuse(*exact, steps=steps, backend="reference"))
    agree(out, expected, 9 * steps)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, logits), cotangent)
    wanted = torch.autograd.grad(expected, exact, cotangent.double())
    for gradient, exact_gradient in zip(found, wanted, strict=True):
        agree(gradient, exact_gradient, 18 * steps, scale=max(1, exact_gradient.abs().max().item()))


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_the_reference_are_those_of_finite_differences(shared):
    x, logits = draw((1, 2, 3, 2), shared, torch.float64)
    logits = logits + 0.3 * logits.sign()
    inputs = [x.requires_grad_(), logits.requires_grad_()]
    assert torch.autograd.gradcheck(lambda *t: diffuse(*t, steps=3, backend="reference"), inputs)


@shapes
def test_magnitudes_sum_to_1_over_the_neighbours_that_exist_and_signs_are_kept(shape):
    _, logits = draw(shape, dtype=torch.float64)
    kappa = normalise_affinity(logits)
    alone = shape[2] * shape[3] == 1
    torch.testing.assert_close(kappa.abs().sum(1), torch.full(shape, 0.0 if alone else 1.0).double())
    assert (kappa * logits >= 0).all()
    for j, (dr, dc) in enumerate(NEIGHBOURS):
        rows, cols = torch.arange(shape[2]) + dr, torch.arange(shape[3]) + dc
        inside = ((rows >= 0) & (rows < shape[2]))[:, None] & ((cols >= 0) & (cols < shape[3]))
        assert torch.equal(kappa[:, j] != 0, inside.expand(shape))


@both
@pytest.mark.parametrize("shared", [False, True])
def test_every_row_of_the_matrix_sums_to_1_whatever_the_signs(backend, shared, agree):
    _, logits = draw((2, 3, 5, 4), shared)
    ones = torch.ones(2, 3, 5, 4)
    agree(diffuse(ones, logits, backend=backend), ones.double(), 9 * 24)


@both
def test_where_all_logits_are_0_the_map_stays_as_it_is(backend):
    x, logits = draw((1, 2, 4, 5))
    logits = torch.zeros_like(logits).requires_grad_()
    out = diffuse(x, logits, backend=backend)
    assert torch.equal(out, x)
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    assert gradient.isfinite().all()


@both
def test_the_map_is_linear_in_x_and_reaches_as_far_as_there_are_steps(backend, agree):
    x, logits = draw((1, 2, 7, 9))

    def linear(v):
        return diffuse(v, logits, steps=2, backend=backend)

    y = torch.randn_like(x)
    agree(linear(2 * x - 3 * y), 2 * linear(x).double() - 3 * linear(y).double(), 60)
    one = torch.zeros(1, 1, 7, 9)
    one[..., 3, 4] = 1
    rows, cols = torch.meshgrid((torch.arange(7) - 3).abs(), (torch.arange(9) - 4).abs(), indexing="ij")
    reached = diffuse(one, logits[:, :, :1].abs(), steps=2, backend=backend)[0, 0]
    kept = torch.zeros(7, 9, dtype=torch.bool)
    kept[3, 4] = True  # its own value comes back by way of its neighbours
    assert torch.equal((reached != 0) | kept, torch.maximum(rows, cols) <= 2)


@both
def test_what_is_shared_is_what_it_stands_for_and_inputs_stay_as_they_were(backend, agree):
    x, logits = draw((2, 3, 4, 5), shared=True)
    kept = x.clone(), logits.clone()
    full = logits.expand(-1, -1, 3, -1, -1)
    agree(diffuse(x, logits, backend=backend), diffuse(x, full, backend=backend).double(), 9 * 24)
    diffuse(x, logits.requires_grad_(), backend=backend).sum().backward()
    assert diffuse(x, logits.detach(), backend=backend).grad_fn is None
    assert torch.equal(x, kept[0])
    assert torch.equal(logits, kept[1])


@both
def test_a_nan_reaches_its_neighbourhood_and_no_other_image_or_channel(backend):
    x, logits = draw((3, 2, 4, 7))
    clean = diffuse(x, logits, steps=2, backend=backend)
    x[0, 1, 1, 6] = torch.nan
    found = diffuse(x, logits, steps=2, backend=backend)
    assert torch.equal(found.isnan()[0, 1, :, 4:], torch.ones(4, 3, dtype=torch.bool))
    others = torch.ones_like(found, dtype=torch.bool)
    others[0, 1] = False
    assert torch.equal(found[others], clean[others])


def test_other_precisions_run_on_the_reference():
    x, logits = draw((1, 2, 3, 4))
    for dtype in (torch.float64, torch.bfloat16):
        assert diffuse(x.to(dtype), logits.to(dtype)).dtype == dtype


def test_there_is_no_triton_path_and_it_says_so():
    with pytest.raises(BackendUnavailable, match=r"diffuse, which has no Triton kernels: use backend='reference'"):
        diffuse(*draw((1, 1, 2, 2)), backend="triton")


X, LOGITS = torch.ones(2, 3, 4, 5), torch.ones(2, 8, 3, 4, 5)
WRONG = {
    "a map": ((X[0], LOGITS), {}, ValueError, "x must be (B, C, H, W) with no empty axis; got (3, 4, 5)."),
    "nine neighbours": ((X, torch.ones(2, 9, 3, 4, 5)), {}, ValueError, "logits must be (2, 8, 3, 4, 5), or (2, 8"),
    "whole numbers": ((X, LOGITS.int()), {}, TypeError, "logits must be a floating-point tensor; got torch.int32."),
    "another dtype": ((X, LOGITS.double()), {}, TypeError, "logits must have the dtype of x"),
    "0 steps": ((X, LOGITS), {"steps": 0}, ValueError, "steps must be at least 1; got 0."),
    "half a step": ((X, LOGITS), {"steps": 0.5}, TypeError, "steps must be a whole number; got float 0.5."),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "settings", "kind", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_answered_with_one_sentence(arguments, settings, kind, words):
    with pytest.raises(kind) as told:
        diffuse(*arguments, **settings)
    assert words in str(told.value)
    assert str(told.value).endswith(".")
    with pytest.raises(ValueError, match=r"^logits must be \(B, 8, C or 1, H, W\)"):
        normalise_affinity(torch.ones(2, 7, 1, 4, 5))
