"""The stability laboratory: its Dataset, both sources of gates, overflow, and what it refuses."""

import warnings

import numpy as np
import pytest
import torch

import workbench as wb
from kernels.propagation import propagate
from workbench.analysis.export import load_result, save
from workbench.analysis.stability_export import curves_csv
from workbench.analysis.stability_latency import scan_latency
from workbench.analysis.stability_lines import spectral_radii, step_matrices
from workbench.analysis.stability_scan import synthetic, synthetic_gates
from workbench.analysis.stability_spec import PRESETS, StabilitySpec
from workbench.analysis.stability_steps import accumulate, dobrushin, effective_width, norms_2, sampled_steps

CONTRACT = {
    "row_sum_error": "line", "min_gate": "line", "norm_inf": "steps", "norm_2": "steps", "spectral_radius": "line",
    "dobrushin": "steps", "effective_width": "steps", "max_hidden": "line", "bound": "line", "gradient": "distance",
    "verdict": "condition",
}  # fmt: skip

OVERFLOW = {"normalisation": "none", "gain": 1.5, "noise": 0.0}


@pytest.fixture(scope="module")
def layer():
    """A layer whose directions, channels and chunk differ."""
    model = wb.load_model("gspn_nano")
    image = wb.load_image("coffee", size=model.input_size)
    return wb.operator(model, image, model.layers()[0].name), image


def small(**changes):
    return StabilitySpec(**({"cross": 7, "length": 12} | changes))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_whole_dataset(preset):
    result = wb.stability(StabilitySpec(**(PRESETS[preset] | {"cross": 9, "length": 20})))
    for name, dimension in CONTRACT.items():
        assert result[name].dims == (dimension,)
    assert result["condition"].values.tolist() == ["row_stochastic", "stable", "dense"]
    assert result["first_violation"].dims == ("condition", "axis")
    assert result.attrs["spec"]["gain"] == PRESETS[preset].get("gain", 1.0)
    holds = result["verdict"].values
    assert ((result["first_violation"].values == -1).all(1) == holds).all()


@pytest.mark.parametrize("direction", ["left_right", "top_bottom", "right_left", "bottom_top"])
def test_the_picture_is_propagated_along_the_direction(direction):
    x = np.random.default_rng(0).random((5, 8, 2))
    cross, length = (5, 8) if direction in ("left_right", "right_left") else (8, 5)
    spec = StabilitySpec("softmax", cross=cross, length=length, direction=direction, lam=0.5, chunk=3, dtype="float64")
    result = wb.stability(spec, x=x)
    scan = synthetic(spec, x)
    assert result["given"].values == pytest.approx(x)
    start = {"left_right": x[:, 0], "right_left": x[:, -1], "top_bottom": x[0], "bottom_top": x[-1]}[direction]
    assert pytest.approx(start) == scan.x[:, 0].numpy().T  # line 0 is where the direction starts
    first = {"left_right": np.s_[:, 0], "right_left": np.s_[:, -1], "top_bottom": np.s_[0], "bottom_top": np.s_[-1]}
    assert result["propagated"].values[first[direction]] == pytest.approx(0.5 * start)
    assert result["hidden"].values == pytest.approx(result["propagated"].values.mean(2))


def test_a_layer_is_propagated_as_the_model_does_it(layer):
    op, _ = layer
    state = op.state
    h = propagate(state.value, state.gates, state.lam, directions=state.groups, chunk=state.chunk, backend="reference")
    for k, direction in enumerate(op.groups):
        result = wb.stability(op, direction=direction, channel=5)
        assert result["hidden"].values == pytest.approx(h[k, 0, 5].numpy(), rel=1e-5, abs=1e-6)
        assert (result["max_hidden"] <= result["bound"] * (1 + 1e-5)).all()
        assert result["verdict"].values.tolist() == [True, True, True]


def test_a_released_merge_is_measured_in_the_frame_of_its_scan():
    model = wb.load_model("gspn_nano", merge="released")
    op = wb.operator(model, wb.load_image("coffee", size=model.input_size), model.layers()[0].name)
    result = wb.stability(op, direction="bottom_top", channel=0)
    value = op.value[0].T.flip(-1)
    scanned = propagate(
        value[None, None], op.state.gates[3:4, :, :1, :1], op.state.lam[3:4, :1, :1],
        directions=("left_right",), chunk=op.state.chunk, backend="reference",
    )  # fmt: skip
    assert result["hidden"].values == pytest.approx(scanned[0, 0, 0].numpy(), rel=1e-5, abs=1e-6)


def test_the_worst_channel_is_the_one_whose_row_sums_are_furthest_from_1(layer):
    op, image = layer
    worst = wb.stability(op, direction="top_bottom", x=image)
    channel = worst.attrs["spec"]["channel"]
    assert worst.attrs["spec"]["chosen"] == "worst"
    error = (op.state.gates[1, :, 0].sum(0) - 1).abs().amax((1, 2))
    assert error[channel] == error.max()
    assert worst["given"].shape == (*op.grid, 3)


def test_overflow_is_counted_named_and_raises_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = wb.stability(StabilitySpec(**OVERFLOW, dtype="fp16", cross=16, length=48))
        line = result.attrs["overflow_line"]
        assert 0 < line < 48
        assert (result["nonfinite"][:line] == 0).all()
        assert (result["nonfinite"][line:] > 0).all()
        assert np.isnan(result["max_hidden"][line:]).all()
        assert np.isfinite(result["max_hidden"][:line]).all()
        assert result["nonfinite"].sum() == (~np.isfinite(result["propagated"])).sum()
        assert np.isfinite(result["accumulated"]).all()
        deep = wb.stability(StabilitySpec(**OVERFLOW | {"gain": 3.0}, dtype="float64", cross=8, length=1024))
    assert deep.attrs["accumulated_steps"] < 1023  # W overflowed as well
    assert np.isnan(deep["gradient"].values[deep.attrs["accumulated_steps"] + 1 :]).all()
    assert np.isfinite(deep["accumulated"]).all()


def test_chunks_start_afresh_and_end_the_accumulated_weight():
    result = wb.stability(StabilitySpec(**OVERFLOW, dtype="fp16", cross=16, length=48, chunk=12))
    assert result.attrs["overflow_line"] == -1
    assert result["steps"].values.tolist() == list(range(1, 12))
    assert result["bound"][12] <= 1
    whole = wb.stability(StabilitySpec(cross=16, length=24, chunk=12))
    assert whole["white"].values.tolist() == [*range(1, 13)] * 2


def test_the_first_violation_is_the_first_pixel_in_the_order_of_the_scan():
    result = wb.stability(small(normalisation="tanh", noise=1.0, dtype="float64"))
    gates = synthetic_gates(small(normalisation="tanh", noise=1.0, dtype="float64"))[0, :, 0, 0].numpy()
    bad = np.abs(gates).sum(0) > 1
    bad[0] = False  # the first line reads nothing
    line, cross = np.unravel_index(np.argmax(bad), bad.shape)
    assert result["first_violation"].sel(condition="stable").values.tolist() == [line, cross]


def test_one_neighbour_reads_its_own_index_only():
    for rule in ("sigmoid", "softmax", "absolute", "tanh", "none"):
        gates = synthetic_gates(small(normalisation=rule, neighbours=1))
        assert (gates[:, [0, 2]] == 0).all()
    result = wb.stability(small(neighbours=1))
    assert result["min_gate"].values.tolist() == [1.0] * 12
    assert result["effective_width"].values.tolist() == [0.0] * 11


def test_a_longer_field_begins_with_the_lines_of_a_shorter_one():
    assert torch.equal(synthetic_gates(small(length=20))[..., :12, :], synthetic_gates(small()))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("cross", [2, 3, 11])
def test_spectral_radii_are_those_of_the_dense_matrices(cross, signed):
    gates = np.random.default_rng(cross).standard_normal((3, 6, cross))
    gates = gates if signed else np.abs(gates)
    dense = np.abs(np.linalg.eigvals(step_matrices(gates))).max(1)
    radii = spectral_radii(gates)
    known = np.isfinite(radii)
    assert known.any()
    assert radii[known] == pytest.approx(dense[known], rel=1e-9)


def test_the_measures_of_a_matrix_are_their_definitions():
    w = np.random.default_rng(1).random((2, 6, 6))
    w /= w.sum(2, keepdims=True)
    assert norms_2(w) == pytest.approx(np.linalg.norm(w, 2, axis=(1, 2)))
    least = min(np.minimum(a, b).sum() for a in w[0] for b in w[0])
    assert dobrushin(w[0]) == pytest.approx(1 - least)
    assert effective_width(np.array([0.0, -1.0, 0.0, 1.0, 0.0])) == pytest.approx(1.0)
    assert np.isnan(effective_width(np.zeros(4)))


def test_the_accumulated_weight_is_the_product_and_the_gradient_that_of_autograd():
    spec = small(noise=2.0, dtype="float64", lam=-0.5)
    result = wb.stability(spec)
    scan = synthetic(spec)
    w = step_matrices(scan.gates.numpy())
    assert result["accumulated"].values == pytest.approx(np.linalg.multi_dot(w[:0:-1]))
    assert result["step_matrix"].values == pytest.approx(w[1])
    x = torch.zeros(1, 1, 12, 7, dtype=torch.float64)

    def last_line(first):
        source = torch.cat([first[None, None, None], x[:, :, 1:]], 2)
        return propagate(
            source, scan.gates[None, :, None, None], scan.lam[None, None], directions=("top_bottom",),
            backend="reference",
        )[0, 0, 0, -1]  # fmt: skip

    jacobian = torch.autograd.functional.jacobian(last_line, x[0, 0, 0]).numpy()
    assert result["gradient"][-1] == pytest.approx(np.abs(jacobian).max())
    assert result["gradient_norm"][-1] == pytest.approx(np.abs(jacobian).sum(1).max())


def test_steps_are_all_of_few_and_a_sample_of_many():
    assert sampled_steps(32, 64).tolist() == list(range(1, 33))
    many = sampled_steps(2047, 64)
    assert many[0] == 1
    assert many[-1] == 2047
    assert len(many) <= 32
    gates = np.full((3, 5, 200), 1 / 3)
    assert len(accumulate(gates, np.ones((1, 200))).sampled) == 4


def test_a_result_goes_to_files_and_comes_back(tmp_path):
    result = wb.stability(small(dtype="fp16", **OVERFLOW))
    back = load_result(save(result, tmp_path / "stability.nc"))
    assert back.equals(result)
    assert StabilitySpec(**back.attrs["spec"]) == small(dtype="fp16", **OVERFLOW)
    rows = [row.split(",") for row in curves_csv(result).splitlines()]
    assert ["bound", "line", "0"] in [row[:3] for row in rows]
    assert sum(row[0] == "norm_2" for row in rows) == 11


def test_the_scan_is_timed_beside_its_floor():
    result = scan_latency(small(dtype="bf16"), seconds=0.01)
    assert result["backend"].values.tolist() == ["reference"]
    assert (result["median"] > 0).all()
    assert result["bytes"] == 2 * (3 * 84 * 2 + 3 * 84 + 84)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalisation": "relu"}, "normalisation must be one of sigmoid"),
        ({"dtype": "int8"}, "dtype must be one of float64"),
        ({"direction": "up"}, "direction must be one of left_right"),
        ({"image": "cofee"}, "coffee"),
        ({"neighbours": 2}, "neighbours must be 3, or 1"),
        ({"length": 2049}, "length must be a whole number from 2 to 2048; got 2049"),
        ({"cross": True}, "cross must be a whole number"),
        ({"chunk": 1}, "chunk must be a whole number from 2"),
        ({"gain": float("nan")}, "gain must be a finite number of at least 0"),
        ({"noise": -1}, "noise must be a finite number of at least 0"),
        ({"lam": "two"}, 'lam must be "one", "complement" or a number'),
    ],
)
def test_a_spec_refuses_what_does_not_fit_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        StabilitySpec(**changes)


def test_what_is_neither_a_spec_nor_a_propagation_is_refused(layer):
    op, _ = layer
    with pytest.raises(TypeError, match="takes a StabilitySpec or an operator; got str"):
        wb.stability("gspn_nano")
    with pytest.raises(ValueError, match="choose gates of a layer"):
        wb.stability(StabilitySpec(), channel=0)
    with pytest.raises(ValueError, match="left_right"):
        wb.stability(op, direction="left_rigth")
    with pytest.raises(ValueError, match="channel must be from 0 to"):
        wb.stability(op, channel=10_000)
    with pytest.raises(ValueError, match=r"x must be \(7, 12\)"):
        wb.stability(small(), x=np.zeros((12, 7)))
    with pytest.raises(ValueError, match="x must be finite"):
        wb.stability(small(), x=np.full((7, 12), np.nan))
    swin = wb.load_model("swin_nano")
    attention = wb.operator(swin, wb.load_image("coffee", size=swin.input_size), swin.layers()[0].name)
    with pytest.raises(ValueError, match="does not propagate lines"):
        wb.stability(attention)
