"""Latency sweeps: what is timed, in which order, what is left out and why, and exponents. No time is asserted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import workbench as wb
from kernels.attention import attend, full
from workbench.analysis import latency_sweep as sweep_module
from workbench.analysis.latency import products_run
from workbench.analysis.latency_ops import OPERATORS, OnMaps, Shape, WholeModel
from workbench.analysis.latency_sweep import NUMBERS, PENDING, exponents, foretold, latency_sweep, summary

CPU = torch.device("cpu")
RATES = {"bandwidth": 1e9, "matmul": 1e10}
SHORT = {"budget": 0.01, "channels": 8, "device": "cpu"}


@pytest.fixture(autouse=True)
def no_rates(monkeypatch):
    """The rates of the machine, given instead of measured: nothing here asks how fast it is."""
    monkeypatch.setattr(sweep_module, "machine_rates", lambda device, dtype: RATES)


@pytest.fixture
def clock(monkeypatch):
    """Given times in place of measured ones; set `clock.seconds` to choose them, `clock.calls` counts."""

    class Clock:
        calls = 0
        seconds = (1e-3, 1e-3, 1e-3, 1e-3)

        def __call__(self, run, device, seconds, most):
            self.calls += 1
            run()
            return np.array(self.seconds)

    chosen = Clock()
    monkeypatch.setattr(sweep_module, "time_runs", chosen)
    return chosen


def maps(name, *, channels=8, backward=False, dtype=torch.float32):
    return OnMaps(OPERATORS[name], 2, channels, dtype, backward, CPU)


# What is timed


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("backward", [False, True])
def test_every_operator_gives_a_number_for_each_of_the_map_and_a_gradient_for_each_input(name, backward):
    side = 9
    work = maps(name, backward=backward)
    run, cost = work.prepare(side)
    found = run()
    if backward:
        assert [tuple(gradient.shape) for gradient in found] == OPERATORS[name].inputs(Shape(2, 8, side))
        assert all(gradient.isfinite().all() for gradient in found)
    else:
        assert found.numel() == 2 * 8 * side**2
        assert found.isfinite().all()
        assert not found.requires_grad
    assert cost == work.guess(side, None)


def test_backward_has_twice_the_operations_of_forward_and_moves_every_input_twice_more():
    forward, both = (maps("window attention", backward=backward).guess(14, None) for backward in (False, True))
    values = 2 * 8 * 14 * 14 * 4
    assert forward.bytes == 4 * values
    assert both.bytes == (3 * 3 + 2) * values
    assert both.flops == 3 * forward.flops
    assert both.held > forward.held


def test_the_operations_of_attention_are_those_of_its_pairs():
    n, c = 14 * 14, 2 * 8
    flops = {name: maps(name).guess(14, None).flops for name in OPERATORS}
    assert flops["full attention"] == 4 * n * n * c
    assert flops["window attention"] == flops["neighborhood attention"] == 4 * n * 49 * c
    assert flops["axial attention"] == 4 * n * (14 + 14) * c
    assert flops["gspn global"] == flops["gspn local"] == 4 * 20 * n * c


def test_full_attention_is_that_of_the_kernels_and_linear_attention_its_definition():
    q, k, v = torch.randn(3, 1, 2, 35, 4)
    tokens = [t.transpose(1, 2).reshape(1, 5, 7, 2, 4) for t in (q, k, v)]
    expected = attend(*tokens, full(), backend="reference").reshape(1, 35, 2, 4).transpose(1, 2)
    torch.testing.assert_close(OPERATORS["full attention"].run(q, k, v), expected)
    weights = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(OPERATORS["linear attention"].run(q, k, v), expected)


def test_axial_attention_lets_every_position_read_every_other():
    q, k = torch.randn(2, 1, 5, 7, 1, 4)
    v = torch.zeros(1, 5, 7, 1, 4)
    v[0, 2, 3] = 1
    assert (OPERATORS["axial attention"].run(q, k, v) > 0).all()


@pytest.mark.parametrize("name", ["gspn_nano", "swin_nano"])
def test_a_model_is_timed_whole_and_its_weights_get_gradients(name):
    forward, both = (WholeModel(name, 2, torch.float32, backward, CPU) for backward in (False, True))
    run, cost = forward.prepare(16)
    assert run().shape == (2, 10)
    gradients_of, dearer = both.prepare(16)
    gradients = gradients_of()
    assert len(gradients) == len(list(both.model.parameters()))
    assert dearer.flops == 3 * cost.flops
    assert dearer.bytes > 2 * cost.bytes
    guess = forward.guess(32, (16, cost))
    assert guess is not None
    assert guess.flops == pytest.approx(4 * cost.flops)
    assert forward.guess(32, None) is None


# The sweep


def test_results_come_one_by_one_from_the_smallest_size_on_and_are_not_changed_later(clock):
    seen = []
    result = latency_sweep(["full attention", "depthwise 7x7"], [8, 4, 8], progress=seen.append, **SHORT)
    assert [int((step["reason"] == "").sum()) for step in seen] == [0, 1, 2, 3, 4]
    assert list(seen[2]["reason"].sel(size=4).values) == ["", ""]
    assert (seen[2]["reason"].sel(size=8) == PENDING).all()
    assert [step.attrs["complete"] for step in seen] == [False] * 4 + [True]
    assert result["median"].dims == ("what", "size")
    assert list(result["size"].values) == [4, 8]
    assert clock.calls == 4
    xr.testing.assert_identical(result, seen[-1])


def test_measured_times_have_spread_runs_and_a_floor():
    result = wb.latency_sweep(["gspn local", "neighborhood attention"], [9], **SHORT)
    assert (result["p20"] <= result["median"]).all()
    assert (result["median"] <= result["p80"]).all()
    assert (result["n"] >= 1).all()
    by_bytes, by_flops = result["bytes"] / RATES["bandwidth"], result["flops"] / RATES["matmul"]
    np.testing.assert_allclose(result["floor"], np.maximum(by_bytes, by_flops))
    assert np.isnan(result["peak"]).all()
    assert all(np.isfinite(result[name]).all() for name in NUMBERS if name != "peak")
    attrs = result.attrs
    assert attrs["memory_method"] == "not on a CPU, where PyTorch counts no peak"
    assert attrs["method"] == "torch.utils.benchmark"
    assert attrs["device"].startswith("CPU")
    assert attrs["processor"]


def test_a_cancelled_sweep_has_what_was_measured_before(clock):
    result = latency_sweep(["depthwise 7x7"], [4, 8, 16], cancelled=lambda: clock.calls == 2, **SHORT)
    assert list(result["reason"].values[0]) == ["", "", PENDING]
    assert not result.attrs["complete"]
    assert clock.calls == 2


def test_a_size_that_a_pattern_or_a_model_does_not_take_is_left_out_with_its_sentence(clock):
    result = latency_sweep(["neighborhood attention", "swin_nano"], [5, 8], **SHORT)
    reasons = result["reason"].sel(size=5).values
    assert "needs a map of at least 7 rows" in reasons[0]
    assert "multiples of" in reasons[1]
    assert (result["reason"].sel(size=8) == "").all()
    assert np.isnan(result["median"].sel(size=5)).all()
    assert result.attrs["complete"]


def test_a_size_past_the_memory_is_left_out_without_being_tried(clock):
    result = latency_sweep(["full attention"], [4, 10**5], memory=2**20, **SHORT)
    assert result["reason"].values[0, 0] == ""
    assert result["reason"].values[0, 1].startswith("would hold about ")
    assert clock.calls == 1


def test_a_size_past_the_budget_is_left_out_without_being_tried(clock):
    clock.seconds = (0.008,) * 4
    result = latency_sweep(["full attention"], [32, 128], **SHORT)
    assert "the budget is 0.01 s" in result["reason"].values[0, 1]
    assert clock.calls == 1


def test_a_time_is_foretold_from_the_growth_of_the_last_two_and_is_never_under_the_floor():
    assert foretold([], 2.0) == 2.0
    assert foretold([(1.0, 3.0)], 4.0) == 12.0
    assert foretold([(1.0, 30.0), (4.0, 60.0)], 16.0) == pytest.approx(120.0)  # time grew as the root of the floor
    assert foretold([(1.0, 3.0), (2.0, 3.0)], 5.0) == 5.0
    assert foretold([(1.0, 3.0), (2.0, 30.0)], 4.0) == 60.0  # a noisy jump is not taken for a law


def test_wide_spread_or_few_runs_are_noisy():
    assert not summary(np.full(5, 2.0))["noisy"]
    assert summary(np.array([1.0, 1.0, 2.0, 3.0, 3.0]))["noisy"]
    assert summary(np.full(2, 2.0))["noisy"]
    assert summary(np.array([1.0, 2.0, 3.0]))["median"] == 2.0


def test_half_precision_halves_the_bytes():
    single, half = (maps("depthwise 7x7", dtype=dtype).guess(9, None) for dtype in (torch.float32, torch.bfloat16))
    assert single.bytes == 2 * half.bytes
    assert single.flops == half.flops


def test_a_dtype_whose_products_end_the_process_is_refused(monkeypatch, clock):
    asked = []
    monkeypatch.setattr(sweep_module, "products_run", asked.append)
    with pytest.raises(ValueError, match=r"^dtype='bfloat16' cannot be measured on this CPU, .* end the process\.$"):
        latency_sweep(["depthwise 7x7"], [4], dtype="bfloat16", **SHORT)
    assert asked == ["bfloat16"]
    assert clock.calls == 0


def test_products_are_tried_in_another_process():
    assert products_run("float32")
    assert not products_run("no_such_dtype")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"names": ["gspn globl"]}, "There is no operator or model named 'gspn globl'; did you mean gspn global"),
        ({"names": []}, "needs at least one name and one size"),
        ({"sizes": []}, "needs at least one name and one size"),
        ({"sizes": [0]}, "sizes must be whole numbers from 1; got 0."),
        ({"batch": 0}, "batch must be whole numbers from 1; got 0."),
        ({"channels": 40}, "channels must be a multiple of 32"),
        ({"dtype": "float64"}, "dtype must be one of float32, float16, bfloat16; got 'float64'."),
        ({"budget": 0}, "budget must be a positive number; got 0."),
        ({"memory": math.nan}, "memory must be a positive number; got nan."),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda'; got 'tpu'."),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(changed, sentence):
    arguments = {"names": ["gspn global"], "sizes": [4], **SHORT} | changed
    with pytest.raises(ValueError, match=r"\S") as raised:
        latency_sweep(arguments.pop("names"), arguments.pop("sizes"), **arguments)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_exponent_is_the_slope_over_pixels_and_the_residual_the_distance_from_the_line():
    sizes = np.array([32, 64, 96, 128])
    jump = np.array([1, -1, -1, 1]) * 0.1
    rows = [
        3e-9 * sizes**2.0,
        5e-12 * sizes**4.0,
        np.array([1e-3, np.nan, np.nan, np.nan]),
        1e-9 * sizes * np.exp(jump),
    ]
    median = xr.DataArray(
        np.array(rows), coords={"what": list("abcd"), "size": sizes}, dims=("what", "size"), name="median"
    )
    found = exponents(median)
    np.testing.assert_allclose(found["exponent"].values[:2], [1, 2])
    np.testing.assert_allclose(found["residual"].values[:2], 0, atol=1e-12)
    assert np.isnan(found["exponent"].values[2])
    assert 0.05 < found["residual"].values[3] <= 0.1
