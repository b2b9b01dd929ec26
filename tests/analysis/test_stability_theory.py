"""The theorems and derivations about stability, each checked in numbers."""

import numpy as np
import pytest
import torch

from kernels.propagation import normalise_gates, propagate
from workbench.analysis.stability import stability
from workbench.analysis.stability_lines import gate_numbers, step_matrices
from workbench.analysis.stability_spec import StabilitySpec
from workbench.analysis.stability_steps import accumulate

ROW_STOCHASTIC = ("sigmoid", "softmax")
ONE = ("top_bottom",)


def random_gates(seed, lines, cross, rule="sigmoid", scale=2.0):
    """(1, 3, 1, 1, lines, cross) float64."""
    logits = scale * np.random.default_rng(seed).standard_normal((1, 3, 1, 1, lines, cross))
    return normalise_gates(torch.from_numpy(logits), ONE, rule=rule, backend="reference")


@pytest.mark.parametrize("rule", ROW_STOCHASTIC)
def test_theorem_1_every_accumulated_weight_is_row_stochastic_over_512_steps(rule):
    w = step_matrices(random_gates(1, 513, 24, rule)[0, :, 0, 0].numpy())
    accumulated = np.eye(24)
    product_from_each = [accumulated]
    for line in range(1, 513):
        accumulated = w[line] @ accumulated
        assert abs(accumulated.sum(1) - 1).max() < 1e-6
        assert accumulated.min() >= 0
        if line % 128 == 0:
            product_from_each.append(np.linalg.multi_dot(w[line : line - 100 : -1]))
    for product in product_from_each:  # from other lines than the first as well
        assert abs(product.sum(1) - 1).max() < 1e-6


@pytest.mark.parametrize("rule", ROW_STOCHASTIC)
def test_the_infinity_norm_of_the_accumulated_weight_is_1(rule):
    result = stability(StabilitySpec(rule, noise=3.0, cross=31, length=513, dtype="float64"))
    assert result.attrs["accumulated_steps"] == 512
    assert abs(result["norm_inf"] - 1).max() < 1e-6
    assert abs(result["accumulated_row_sum"] - 1).max() < 1e-6
    assert result["accumulated_row_sum_error"].max() < 1e-6
    assert result["verdict"].values.tolist() == [True, True, True]
    assert abs(result["gradient_norm"] - 1).max() < 1e-6  # lambda is 1


def test_the_linear_bound_on_h_is_never_violated_in_200_random_cases():
    random = np.random.default_rng(2)
    for case in range(200):
        lines, cross, channels = int(random.integers(1, 24)), int(random.integers(1, 12)), int(random.integers(1, 3))
        chunk = None if case % 3 else int(random.integers(1, lines + 1))
        gates = random_gates(case, lines, cross, ROW_STOCHASTIC[case % 2], scale=float(random.uniform(0, 5)))
        x = torch.from_numpy(random.standard_normal((1, channels, lines, cross)) * 10 ** random.uniform(-3, 3))
        lam = torch.from_numpy(random.standard_normal((1, 1, 1, lines, cross)))
        h = propagate(x, gates, lam, directions=ONE, chunk=chunk, backend="reference")[0, 0]
        each = (lam[0] * x).abs().amax((0, 1, 3)).numpy()
        bound = np.array([each[line - line % (chunk or lines) : line + 1].sum() for line in range(lines)])
        assert (h.abs().amax((0, 2)).numpy() <= bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("gain", [1.05, 0.97])
def test_without_normalisation_growth_is_exponential_at_the_rate_of_the_gain(gain):
    result = stability(StabilitySpec("none", gain=gain, noise=0.0, cross=128, length=385, dtype="float64"))
    assert float(result["growth_rate"]) == pytest.approx(np.log(gain), rel=0.01)
    radius = float(result["spectral_radius"][1:].mean())  # of three gates of g/3: g (1 + 2 cos(pi / (n + 1))) / 3
    assert radius == pytest.approx(gain * (1 + 2 * np.cos(np.pi / 129)) / 3, rel=1e-12)


def test_with_gain_1_05_the_largest_h_grows_at_the_predicted_rate():
    result = stability(StabilitySpec("none", gain=1.05, noise=0.0, cross=128, length=385, dtype="float64"))
    h = result["max_hidden"].values
    assert np.log(h[384] / h[256]) / 128 == pytest.approx(np.log(1.05), rel=0.01)
    assert result["verdict"].sel(condition="stable").item() is False
    assert (h <= result["general_bound"].values * (1 + 1e-12)).all()


def test_the_effective_width_of_equal_gates_is_the_root_of_two_thirds_of_the_steps():
    result = stability(StabilitySpec(noise=0.0, cross=129, length=200, dtype="float64"))
    steps = result["steps"].values
    assert result["effective_width"].values == pytest.approx(np.sqrt(2 * steps / 3), rel=0.01)


def test_context_fades_to_a_consensus_although_no_norm_is_lost():
    result = stability(StabilitySpec(noise=2.0, cross=9, length=1024, dtype="float64"))
    assert abs(result["norm_inf"] - 1).max() < 1e-6
    assert (np.diff(result["dobrushin"]) <= 1e-12).all()
    assert result["dobrushin"][-1] < 1e-6
    assert abs(result["accumulated"] - result["accumulated"][0]).max() < 1e-6  # rank one: all rows are alike
    assert result["gradient"][-1] < 1


def test_the_accumulated_weight_is_dense_only_after_a_step_less_than_the_line_has_positions():
    for cross in (2, 5, 16):
        gates = random_gates(3, 40, cross)[0, :, 0, 0].numpy()
        assert accumulate(gates, np.ones((1, cross))).dense_after == max(1, cross - 1)
    short = stability(StabilitySpec(cross=16, length=15))
    assert short["verdict"].sel(condition="dense").item() is False
    assert stability(StabilitySpec(cross=16, length=16))["verdict"].sel(condition="dense").item() is True


def test_rows_of_the_whole_operator_do_not_sum_to_1_but_to_the_number_of_lines():
    white = np.ones((6, 9))
    result = stability(StabilitySpec(cross=6, length=9, dtype="float64"), x=white)
    assert result["hidden"].values == pytest.approx(np.tile(np.arange(1.0, 10.0), (6, 1)))
    spn = stability(StabilitySpec("absolute", lam="complement", cross=6, length=9, dtype="float64"), x=white)
    assert spn["hidden"].values == pytest.approx(white)


def test_spn_gates_with_absolute_sums_up_to_1_never_exceed_the_bound_and_others_do():
    """A random search over 10,000 gate fields: those inside |g1| + |g2| + |g3| <= 1, and the same ones scaled up."""
    fields, lines, cross = 10_000, 12, 6
    random = np.random.default_rng(4)
    logits = torch.from_numpy(
        random.standard_normal((1, 3, 1, fields, lines, cross)) * random.uniform(0.1, 4, fields)[:, None, None]
    )
    x = torch.from_numpy(random.uniform(-1, 1, (1, fields, lines, cross)))
    inside = normalise_gates(logits, ONE, rule="absolute", backend="reference")
    assert inside.abs().sum(1).max() <= 1 + 1e-12
    bound = x.abs().amax(-1)[0].cumsum(-1)
    within = propagate(x, inside, directions=ONE, backend="reference")[0, 0].abs().amax(-1)
    assert (within > bound * (1 + 1e-12)).sum() == 0
    outside = propagate(x, 1.5 * inside, directions=ONE, backend="reference")[0, 0].abs().amax(-1)
    assert (outside > bound * (1 + 1e-12)).any(-1).sum() >= 1


def test_row_sums_of_bf16_gates_are_off_by_the_order_of_2_to_the_minus_8():
    errors = {}
    for dtype in ("bf16", "fp16", "fp32", "float64"):
        result = stability(StabilitySpec(noise=2.0, dtype=dtype))
        errors[dtype] = float(result["row_sum_error"].max())
        assert errors[dtype] <= result.attrs["tolerance"]
        assert result["verdict"].sel(condition="row_stochastic").item() is True
    assert 2**-9 <= errors["bf16"] <= 2**-6
    assert 2**-12 <= errors["fp16"] <= 2**-9
    assert 2**-25 <= errors["fp32"] <= 2**-22
    assert errors["float64"] <= 2**-50


def test_the_pixel_numbers_leave_out_neighbours_that_do_not_exist():
    gates = np.full((3, 4, 5), 0.5)
    read = np.ones((3, 5), bool)
    read[0, 0] = read[2, -1] = False
    pixel = gate_numbers(gates, read)
    assert pixel["sum"][0].tolist() == [1.0, 1.5, 1.5, 1.5, 1.0]
    assert pixel["smallest"].min() == 0.5
