"""The latency analysis: what it states beside each time. No assertion compares a time with another machine's."""

import math

import numpy as np
import pytest
import torch

from workbench.analysis.affinity import AffinitySpec
from workbench.analysis.latency import LatencySpec, machine_rates, measure, mixing_cost, time_runs
from workbench.analysis.spec import record
from workbench.images import load_image
from workbench.models import load_model

FLOAT = 4  # bytes
PARTS = ["mixing", "layer", "model"]


@pytest.fixture(scope="module", params=["gspn_nano", "swin_nano"])
def model(request):
    return load_model(request.param, device="cpu")


@pytest.fixture(scope="module")
def measured(model):
    """The measurement and the names of the parts in the order in which they were announced."""
    announced = []
    result = measure(model, load_image("coffee", 64), "stage1.block2", seconds=0.02, progress=announced.append)
    return result, announced


def test_every_part_has_a_median_between_its_percentiles_and_a_number_of_runs(measured):
    result, announced = measured
    assert list(result["part"].values) == announced == PARTS
    assert (result["p20"] > 0).all()
    assert (result["p20"] <= result["median"]).all()
    assert (result["median"] <= result["p80"]).all()
    assert (result["n"] >= 1).all()


def test_the_floor_is_what_the_bytes_or_the_operations_need_at_the_measured_rates(measured):
    result, _ = measured
    by_bytes, by_flops = result["bytes"] / result["bandwidth"], result["flops"] / result["matmul"]
    np.testing.assert_allclose(result["floor"], np.maximum(by_bytes, by_flops))
    assert (result["floor"] > 0).all()
    assert result["bandwidth"] > 0
    assert result["matmul"] > 0


def test_a_layer_does_more_than_its_mixing_step_and_the_model_more_than_a_layer(measured):
    flops = dict(zip(PARTS, measured[0]["flops"].values, strict=True))
    assert flops["mixing"] < flops["layer"] < flops["model"]


def test_the_mixing_step_has_the_bytes_and_operations_of_the_formula(model, measured):
    result, _ = measured
    side = 32
    positions = side * side
    if model.name == "gspn_nano":
        channels, directions = 60, 4  # 1.5 times 40
        # v in, y out; for each direction three gates, lambda, u and D
        expected_bytes = FLOAT * channels * positions * (2 + 6 * directions)
        # three sigmoids, their sum, three divisions; lambda x; three gates times, plus; u h + D v; times m, plus
        expected_flops = channels * positions * directions * (3 + 2 + 3 + 1 + 6 + 3 + 2)
    else:
        channels, heads, window = 48, 3, 8
        expected_bytes = FLOAT * (4 * channels * positions + heads * (2 * window - 1) ** 2)
        # shifted by 4, a side of 32 is cut into 4, 8, 8, 8 and 4; every query of a window reads all of it
        pairs = (4**2 + 8**2 + 8**2 + 8**2 + 4**2) ** 2
        expected_flops = pairs * channels * (2 + 2)
    mixing = result.sel(part="mixing")
    assert mixing["bytes"] == expected_bytes
    assert mixing["flops"] == expected_flops


def test_the_first_layer_has_whole_windows(model):
    image = load_image("coffee", 64)
    layer = "stage1.block1"
    state = model.block(layer)[1].freeze(model.mixer_inputs(image.tensor)[layer])
    pairs = (4 * 8**2) ** 2
    expected = 60 * 32 * 32 * 4 * 20 if model.name == "gspn_nano" else pairs * 48 * 4
    assert mixing_cost(state)[1] == expected


def test_the_layer_and_the_model_count_their_weights_and_maps_once(model, measured):
    result, _ = measured
    _, mixer = model.block("stage1.block2")
    channels = {"gspn_nano": 40, "swin_nano": 48}[model.name]
    weights = sum(p.numel() for p in mixer.parameters())
    assert result["bytes"].sel(part="layer") == FLOAT * (weights + 2 * channels * 32 * 32)
    everything = sum(p.numel() for p in model.parameters())
    assert result["bytes"].sel(part="model") == FLOAT * (everything + 3 * 64 * 64 + 10)


def test_the_attrs_say_what_was_timed_and_how(model, measured):
    attrs = measured[0].attrs
    spec = LatencySpec("stage1.block2", 0.02)
    assert attrs["analysis"] == "latency"
    assert LatencySpec(**attrs["spec"]) == spec
    expected = {
        "model": model.name, "layer": "stage1.block2", "size": (64, 64), "batch": 1, "dtype": "float32",
        "backend": "cpu", "method": "torch.utils.benchmark", "direction": "forward", "threads": torch.get_num_threads(),
    }  # fmt: skip
    assert expected.items() <= attrs.items()
    assert attrs["device"].startswith("CPU")
    assert attrs["hash"] != record("latency", LatencySpec("stage1.block1", 0.02), {})["hash"]
    assert attrs["hash"] != record("affinity", AffinitySpec((0, 0)), {})["hash"]


def test_other_settings_weights_or_images_make_another_result(model, measured):
    other = {"gspn_nano": {"chunk": 5}, "swin_nano": {"window": 4}}[model.name]
    results = [
        measure(load_model(model.name, device="cpu", **settings), load_image(image, 64), "stage1.block2", seconds=0.02)
        for settings, image in ((other, "coffee"), ({"seed": 1}, "coffee"), ({}, "text"))
    ]
    hashes = {result.attrs["hash"] for result in [measured[0], *results]}
    assert len(hashes) == 4


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_operations_of_a_layer_do_not_depend_on_the_backend(model, measured, backend):
    other = load_model(model.name, device="cpu", backend=backend)
    result = measure(other, load_image("coffee", 64), "stage1.block2", seconds=0.02)
    assert result.attrs["backend"] == backend
    np.testing.assert_array_equal(result["flops"], measured[0]["flops"])


def test_timed_runs_are_warmed_up_and_each_is_a_positive_time():
    calls = []
    times = time_runs(lambda: calls.append(len(calls)), torch.device("cpu"), 0.01)
    assert len(times) >= 1
    assert (times > 0).all()
    assert len(calls) > len(times)


def test_the_rates_of_a_machine_are_measured_once():
    first = machine_rates("cpu")
    assert machine_rates("cpu") is first
    assert all(math.isfinite(rate) and rate > 0 for rate in first.values())
    assert set(first) == {"bandwidth", "matmul"}


def test_an_unknown_layer_is_answered_with_the_near_matches(model):
    with pytest.raises(ValueError, match=r"no layer named 'stage1.block7' .*did you mean stage1.block"):
        measure(model, load_image("coffee", 64), "stage1.block7")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_channel_attention_counts_its_products_in_the_layer_and_the_model(backend):
    model = load_model("davit_nano", device="cpu", backend=backend)
    result = measure(model, load_image("coffee", 64), "stage1.block1.channel", seconds=0.02)
    positions, channels, width = 32 * 32, 48, 16
    mixing, layer = (result.sel(part=part) for part in ("mixing", "layer"))
    # the matrices of three heads times every position
    assert mixing["flops"] == 2 * positions * channels * width
    assert mixing["bytes"] == FLOAT * (2 * positions * channels + 3 * width**2)
    # the projections, the products that make the matrices, and the mixing
    assert layer["flops"] == 2 * positions * channels * 4 * channels + 2 * 2 * positions * channels * width
    assert result.attrs["backend"] == "torch"


@pytest.mark.parametrize("name", ["maxvit_nano", "cswin_nano", "hilo_nano", "twins_nano"])
def test_layers_of_every_kind_of_state_have_a_cost(name):
    model, image = load_model(name, device="cpu"), load_image("coffee", 64)
    for layer, x in model.mixer_inputs(image.tensor).items():
        state = model.block(layer)[1].freeze(x)
        least, flops = mixing_cost(state)
        assert least >= FLOAT * 2 * state.value.numel()
        assert flops >= 4 * state.value.numel()


def test_windows_and_grids_of_one_size_cost_the_same():
    model, image = load_model("maxvit_nano", device="cpu"), load_image("coffee", 64)
    received = model.mixer_inputs(image.tensor)
    costs = {layer: mixing_cost(mixer.freeze(received[layer])) for layer, (_, mixer) in model.blocks().items()}
    assert costs["stage1.block1.window"] == costs["stage1.block1.grid"]
    assert costs["stage1.block1.window"][1] == 32 * 32 * 8 * 8 * 48 * 4
