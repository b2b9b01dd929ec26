"""Operations and least bytes: every kernel has a formula, and the formulas are those of kernels/README.md."""

import pytest

from kernels import costs
from kernels.attention.gpu_specs import CASES, NO_BIAS
from kernels.compiled import specs
from kernels.costs import Cost, cost, examples, ridge

N = costs.CHANNELS * 64 * 64  # values of a map of 64 x 64


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec["name"])
def test_every_kernel_has_a_formula(spec):
    found = cost(spec["op"], spec["name"])
    assert found is not None
    assert found.bytes > 0
    assert found.flops > 0 or "none" in spec["name"]  # the rule that leaves logits as they are
    assert found.intensity == found.flops / found.bytes


def test_an_unknown_kernel_has_no_cost():
    assert cost("propagation", "mix_of_tomorrow bf16 3 wide") is None
    assert cost("convolution", "scan_rows bf16 64 wide") is None


def test_the_examples_are_a_configuration_of_every_kernel():
    known = {(spec["op"], spec["name"]) for spec in specs()}
    assert set(examples()) <= known
    assert {name.split()[0] for _, name in examples()} == {name.split()[0] for _, name in known}


def test_a_scan_moves_x_gates_lambda_and_h_once():
    """7 operations and 5 values of each of two directions, and x, which they share."""
    assert cost("propagation", "scan_rows fp32 64 wide").flops == 7 * 2 * N
    assert cost("propagation", "scan_rows fp32 64 wide").bytes == 4 * N * (1 + 2 * 5)
    assert cost("propagation", "scan_columns bf16 256 wide").bytes == 2 * 16 * N * (1 + 2 * 5)
    assert cost("propagation", "adjoint_rows bf16 64 wide").bytes == N * 2 * (2 * 4 + 4)  # E is float32


def test_the_fused_mixer_reads_v_logits_lambda_u_and_skip_once_and_writes_y_once():
    values, k = costs.CHANNELS * 56 * 56, 4
    forward = cost("propagation", "mix_forward bf16 56 wide")
    assert forward.bytes == 2 * values * (2 + 3 * k + 3 * k)
    assert forward.flops == values * k * (12 + 3 * 3 + 3)
    shared = cost("propagation", "mix_forward bf16 64 wide shared")
    assert shared.bytes == 2 * (N * (2 + 3 * k) + 64 * 64 * 3 * k)
    assert cost("propagation", "mix_backward bf16 56 wide").bytes == 2 * values * (3 + 6 * k + 6 * k)


def test_attention_multiplies_each_pair_twice_forward():
    """4 N M D operations of each head, and four tensors, the logsumexp and the biases."""
    pairs = costs.PATTERNS["window"].count((56, 56)).sum()
    forward = cost("attention", "forward_kernel bf16 window 32")
    assert forward.flops == 4 * pairs * 32 * 3
    assert forward.bytes == 3 * (56 * 56 * (4 * 32 * 2 + 4) + 13 * 13 * 2)
    assert cost("attention", "forward_kernel bf16 full 32").flops == 4 * (56 * 56) ** 2 * 32 * 3


def test_the_patterns_are_those_that_are_compiled():
    assert {case.name: case.pattern for case in CASES} == costs.PATTERNS
    assert set(costs.BIASED) == {case.name for case in CASES if case.kernels != NO_BIAS}


def test_the_ridge_is_the_ratio_of_published_peaks_and_not_guessed():
    assert ridge("sm_90", "forward_kernel bf16 window 32") == pytest.approx(206, abs=0.1)
    assert ridge("sm_90", "forward_kernel fp32 window 32") == pytest.approx(13.96, abs=0.01)
    assert ridge("gfx942", "forward_kernel bf16 window 32") is None
    assert ridge("sm_90", "kernel without storage") is None


def test_intensity_is_operations_per_byte():
    assert Cost("a shape", 6, 4).intensity == 1.5
