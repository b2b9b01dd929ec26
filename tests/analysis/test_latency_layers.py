"""A model's time layer by layer: what is timed, the rest, affinity maps, cancelling. No time is asserted."""

import numpy as np
import pytest
import torch

from workbench.analysis import latency_layers as module
from workbench.analysis.affinity import AffinitySpec, affinity
from workbench.analysis.latency import layer_parts, measure, model_cost
from workbench.analysis.latency_layers import CHANNELS, LatencyLayersSpec, layer_latency
from workbench.images import load_image
from workbench.models import load_model
from workbench.operators import operator

RATES = {"bandwidth": 1e9, "matmul": 1e10}
NUMBERS = ["median", "p20", "p80", "floor", "bytes", "flops"]


@pytest.fixture(autouse=True)
def no_rates(monkeypatch):
    """The rates of the machine, given instead of measured: nothing here asks how fast it is."""
    monkeypatch.setattr(module, "machine_rates", lambda device: RATES)


@pytest.fixture
def clock(monkeypatch):
    """Given times in place of measured ones, one after the other; the last is kept."""

    class Clock:
        seconds = (1e-3,)
        calls = 0

        def __call__(self, run, device, seconds, most):
            run()
            self.calls += 1
            return np.full(4, self.seconds[min(self.calls, len(self.seconds)) - 1])

    chosen = Clock()
    monkeypatch.setattr(module, "time_runs", chosen)
    return chosen


@pytest.fixture(scope="module")
def image():
    return load_image("coffee", 64)


@pytest.fixture(scope="module", params=["gspn_nano", "swin_nano"])
def model(request):
    return load_model(request.param, device="cpu")


def test_every_layer_has_times_between_their_percentiles_and_the_costs_of_measure(model, image):
    result = layer_latency(model, image, seconds=0.01)
    assert list(result["layer"].values) == [layer.name for layer in model.layers(64)]
    assert list(result["part"].values) == ["mixing", "layer"]
    assert result.attrs["complete"]
    for prefix in ("", "model_"):
        median, p20, p80, n = (result[prefix + name] for name in ("median", "p20", "p80", "n"))
        assert bool(((p20 > 0) & (p20 <= median) & (median <= p80) & (n >= 1)).all())
    one = measure(model, image, "stage1.block2", seconds=0.01)
    for name in ("bytes", "flops"):
        np.testing.assert_array_equal(
            result[name].sel(layer="stage1.block2"), one[name].sel(part=["mixing", "layer"]).values
        )
        assert result[f"model_{name}"] == one[name].sel(part="model")
    by_rates = np.maximum(result["bytes"] / RATES["bandwidth"], result["flops"] / RATES["matmul"])
    np.testing.assert_allclose(result["floor"], by_rates)


def test_the_rest_is_what_the_model_takes_beyond_its_layers(model, image, clock):
    clock.seconds = (20e-3, *(1e-3, 3e-3) * 4)  # the model, then mixing and layer of each
    result = layer_latency(model, image)
    assert clock.calls == 9
    assert float(result["model_median"]) == 20e-3
    np.testing.assert_allclose(result["median"].sel(part="layer"), 3e-3)
    np.testing.assert_allclose(float(result["rest"]), 8e-3)
    assert result.attrs["note"] == ""


def test_layers_that_took_longer_than_the_model_are_noted(model, image, clock):
    result = layer_latency(model, image)  # all of one time
    np.testing.assert_allclose(float(result["rest"]), -3e-3)
    assert "4 ms together, more than the whole model's 1 ms" in result.attrs["note"]


def test_the_affinity_maps_are_those_of_the_affinity_page_at_the_query(model, image, clock):
    result = layer_latency(model, image, query=(0.25, 1.0))
    for name, layer in zip(result["layer"].values, model.layers(64), strict=True):
        rows, cols = layer.grid
        position = (rows // 4, cols - 1)
        one = result.sel(layer=name)
        assert tuple(one["position"].values) == position
        expected = affinity(operator(model, image, name), AffinitySpec(position))
        np.testing.assert_allclose(one["affinity"].values[:rows, :cols], expected["merged"], rtol=1e-5, atol=1e-7)
        assert one["aggregation"] == expected.attrs["aggregation"]
        assert one["affinity_note"] == ""
        assert np.isnan(one["affinity"].values[rows:]).all()
        assert np.isnan(one["affinity"].values[:, cols:]).all()
    assert list(result["rows"].values) == [32, 32, 16, 16]


def test_the_query_is_the_centre_unless_one_is_given(image, clock):
    result = layer_latency(load_model("gspn_nano", device="cpu"), image)
    assert result.attrs["spec"]["query"] == (0.5, 0.5)
    np.testing.assert_array_equal(result["position"], [[16, 16], [16, 16], [8, 8], [8, 8]])


def test_progress_comes_after_each_layer_with_what_is_there_and_keeps_it(model, image, clock):
    seen = []
    result = layer_latency(model, image, progress=lambda *told: seen.append(told))
    assert [(done, total) for _, done, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for so_far, done, _ in seen:
        measured = (so_far["n"] > 0).all("part").values
        assert list(measured) == [True] * done + [False] * (4 - done)
        for name in NUMBERS:
            assert np.isfinite(so_far[name].values[:done]).all()
            assert np.isnan(so_far[name].values[done:]).all()
        assert list(so_far["affinity_note"].values[done:]) == ["not measured yet"] * (4 - done)
        assert so_far.attrs["complete"] == (done == 4)
        assert np.isfinite(float(so_far["rest"])) == (done == 4)
    assert seen[-1][0].identical(result)


def test_a_cancelled_measurement_keeps_the_layers_that_were_done(model, image, clock):
    done = []
    result = layer_latency(model, image, cancelled=lambda: len(done) == 2, progress=lambda *told: done.append(told))
    assert list((result["n"] > 0).all("part").values) == [True, True, False, False]
    assert not result.attrs["complete"]
    assert np.isnan(float(result["rest"]))
    assert result["model_n"] >= 1


def test_the_attrs_say_what_was_timed_on_what(model, image, clock):
    attrs = layer_latency(model, image, seconds=0.3, query=(0.1, 0.9)).attrs
    expected = {
        "analysis": "latency_layers", "model": model.name, "weights_sha256": model.weights_sha256,
        "image_sha256": image.sha256, "size": (64, 64), "batch": 1, "direction": "forward", "dtype": "float32",
        "backend": "cpu", "method": "torch.utils.benchmark", "threads": torch.get_num_threads(), "device_type": "cpu",
    }  # fmt: skip
    assert expected.items() <= attrs.items()
    assert LatencyLayersSpec(**attrs["spec"]) == LatencyLayersSpec(0.3, (0.1, 0.9))
    assert {"torch", "numba"} <= set(attrs["versions"])
    assert attrs["hash"] != layer_latency(model, image, seconds=0.3).attrs["hash"]


def test_a_layer_that_attends_over_channels_is_timed_and_has_no_map(image, clock):
    result = layer_latency(load_model("davit_nano", device="cpu"), image)
    notes = dict(zip(result["layer"].values, result["affinity_note"].values, strict=True))
    assert notes["stage1.block1.channel"] == CHANNELS
    assert notes["stage1.block1.spatial"] == ""
    assert np.isnan(result["affinity"].sel(layer="stage1.block1.channel")).all()
    assert (result["n"] > 0).all()
    assert list(result["kind"].values) == ["attention", "channel"] * 2


def test_tokens_of_padding_are_told_apart_from_the_picture(clock):
    model = load_model("swin_nano", device="cpu", padding="keys", window=7)
    result = layer_latency(model, load_image("coffee", 64), query=(1.0, 1.0))
    assert list(result["rows"].values) == [35, 35, 21, 21]
    assert list(result["covered_rows"].values) == [32, 32, 16, 16]
    np.testing.assert_array_equal(result["position"], [[31, 31], [31, 31], [15, 15], [15, 15]])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seconds": 0.0}, "seconds must be a positive number; got 0.0."),
        ({"query": (0.5, 1.5)}, r"query must be \(row, col\) as shares of the picture from 0 to 1; got \(0.5, 1.5\)."),
        ({"query": (0.5,)}, "query must be"),
        ({"query": (float("nan"), 0.5)}, "query must be"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(model, image, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        layer_latency(model, image, **settings)


def test_an_image_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="sides are multiples of 4 pixels"):
        layer_latency(load_model("swin_nano", device="cpu"), load_image("coffee", 62))


def test_the_parts_are_those_that_the_forward_pass_runs(model, image):
    """The layer's part gives the layer's output, and the mixing step what the operator says it mixed to."""
    inputs = model.mixer_inputs(image.tensor)
    mixer = model.block("stage2.block1")[1]
    op = operator(model, image, "stage2.block1", inputs)
    with torch.no_grad():
        parts = layer_parts(mixer, inputs["stage2.block1"], op.state)
        torch.testing.assert_close(parts["mixing"].run()[0], op.output)
        torch.testing.assert_close(parts["layer"].run(), mixer(inputs["stage2.block1"]))
        assert parts["layer"].flops < model_cost(model, image.tensor, inputs)[1]
