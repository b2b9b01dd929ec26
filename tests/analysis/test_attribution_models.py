"""Attribution of the registered models: every method runs or says why not, and leaves the model as it was."""

import gc
import json
import subprocess
import sys
import threading
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from workbench.analysis.attribution import METHODS, OPTIONS, AttributionSpec, Cancelled, attribute, refusal
from workbench.analysis.attribution_model import stand_in
from workbench.images import load_image
from workbench.models import list_models, load_model
from workbench.models.base import VisionModel

NANO = list_models("*_nano")

#: Few passes for each method.
QUICK = {
    "integrated_gradients": {"steps": 8, "limit": 8},
    "occlusion": {"window": 32, "stride": 32},
    "noise_tunnel": {"samples": 2},
}
RUNNING = [method for method in METHODS if method != "deep_lift"]


@pytest.fixture
def image():
    return load_image("coffee", 64)


@pytest.fixture(scope="module")
def swin():
    return load_model("swin_nano", device="cpu")


def values(result):
    return result["attribution"].values


@pytest.mark.parametrize("name", NANO)
def test_every_method_runs_on_every_model_or_says_why_not(name, image):
    model = load_model(name, device="cpu")
    for method in METHODS:
        reason = refusal(model, method)
        if reason is not None:
            assert (method, name in reason, reason.count(".")) == ("deep_lift", True, 1)
            with pytest.raises(ValueError, match="DeepLIFT has rules for modules of ReLU"):
                attribute(model, image, method)
            continue
        result = attribute(model, image, method, **QUICK.get(method, {}))
        found = values(result)
        assert np.isfinite(found).all(), method
        assert found.any(), method
        assert found.shape == ((64, 64) if method == "layer_grad_cam" else (3, 64, 64))
        assert result.attrs["model"] == name


@pytest.mark.parametrize("name", NANO)
def test_grad_cam_is_that_of_the_map_of_any_layer(name, image):
    model = load_model(name, device="cpu")
    layer = model.layers(64)[1].name
    caught = []

    def hook(module, args, output):
        caught.append(output.detach().requires_grad_())
        return caught[0]

    handle = model.block(layer)[0].register_forward_hook(hook)
    score = model(image.tensor)[0, 3]
    handle.remove()
    gradient = model.as_map(torch.autograd.grad(score, caught[0])[0])[0].double()
    cam = (gradient.mean((1, 2), keepdim=True) * model.as_map(caught[0].detach())[0]).sum(0)
    found = attribute(model, image, "layer_grad_cam", 3, layer=layer)["layer_attribution"].values
    np.testing.assert_allclose(found, cam, rtol=1e-3, atol=1e-4 * float(cam.abs().max()))
    by_gradient = attribute(model, image, "layer_grad_cam", unit="centre")
    assert by_gradient.attrs["spec"]["cam_layer"] == list(model.blocks())[-2]
    assert by_gradient["attribution"].values.any()


@pytest.mark.parametrize("name", NANO)
def test_a_stand_in_computes_the_same_with_modules_of_its_own_and_the_same_memory(name, image):
    model = load_model(name, device="cpu")
    copy = stand_in(model)
    assert torch.equal(copy(image.tensor), model(image.tensor))
    originals = {id(module) for module in model.modules()}
    for module in copy.modules():
        assert id(module) not in originals
        assert not any(isinstance(held, nn.Module) and id(held) in originals for held in vars(module).values())
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in copy.parameters()} == memory


@pytest.mark.parametrize("name", ["gspn_nano", "swin_nano"])
def test_integrated_gradients_are_complete_to_one_per_cent_as_they_come(name):
    result = attribute(load_model(name, device="cpu"), load_image("coffee", 32))
    assert float(result["completeness_gap"]) < 0.01
    change = float(result["score"] - result["baseline_score"])
    assert float(result["attribution"].sum()) == pytest.approx(change, rel=0.01)
    assert result.attrs["warning"] == ""


@pytest.mark.parametrize("layer", ["stage1.block1", "stage2.block2"])
def test_the_gradient_of_a_unit_is_that_of_the_models_features(swin, image, layer):
    x = image.tensor.clone().requires_grad_()
    unit = swin.features(x, layer)[0, :, 5, 2]
    (gradient,) = torch.autograd.grad(unit.relu().sum(), x, retain_graph=True)
    summed = attribute(swin, image, "neuron_gradient", layer=layer, unit=(5, 2))
    np.testing.assert_allclose(values(summed), gradient[0], rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(unit[7], x)
    single = attribute(swin, image, "saliency", layer=layer, unit=(5, 2), channel=7, absolute=False)
    np.testing.assert_allclose(values(single), gradient[0], rtol=1e-4, atol=1e-6)


class Noisy(nn.Module):
    """Dropout, batch norm and an activation that DeepLIFT knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.drop(self.act(self.norm(self.conv(x))).mean((2, 3))))


def state_of(model):
    """All that an attribution might leave behind on the modules."""
    dictionaries = [
        {k: len(v) if isinstance(v, dict) else v for k, v in vars(m).items() if k != "_buffers"}
        for m in model.modules()
    ]
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    return dictionaries, tensors, [(p.requires_grad, p.grad) for p in model.parameters()]


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_training_is_explained_as_in_evaluation_and_stays_as_it_was(method):
    model, x = Noisy().train(), torch.randn(1, 3, 9, 7)
    options = {"occlusion": {"window": 3}}.get(method, QUICK.get(method, {}))
    if METHODS[method].unit or method == "layer_grad_cam":
        options = {"layer": "conv"}
    before, state = state_of(model), torch.get_rng_state()
    found = attribute(model, x, method, **options)
    after = state_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert after[0] == before[0]
    assert all(torch.equal(after[1][name], tensor) for name, tensor in before[1].items())
    assert after[2] == before[2] == [(True, None)] * 6
    np.testing.assert_array_equal(values(found), values(attribute(model.eval(), x, method, **options)))


@pytest.mark.parametrize("method", RUNNING)
def test_callers_gradient_modes_make_no_difference(swin, image, method):
    options = QUICK.get(method, {})
    expected = values(attribute(swin, image, method, **options))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        np.testing.assert_array_equal(values(attribute(swin, image, method, **options)), expected)
    with torch.inference_mode():
        inside = load_image("coffee", 64)
        np.testing.assert_array_equal(values(attribute(swin, inside, method, **options)), expected)
        assert torch.is_inference_mode_enabled()


def test_weights_of_16_bits_are_explained_in_32():
    model, x = Noisy().eval().half(), torch.randn(1, 3, 9, 7)
    found = attribute(model, x, "saliency")
    assert found.attrs["dtype"] == "float32"
    np.testing.assert_array_equal(values(found), values(attribute(model.float(), x, "saliency")))


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_a_coarser_matrix_precision_is_set_aside_and_put_back(image, method):
    model, seen = Noisy(), []
    model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")
    try:
        attribute(model, image, method, **QUICK.get(method, {}))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


class Own(Noisy):
    """Attributes by the names of a model of the registry that are something else, and a buffer in 64 bits."""

    def __init__(self):
        super().__init__()
        self.config, self.weights, self.seed = object(), [1], object()
        self.register_buffer("places", torch.zeros(2, dtype=torch.float64))


def test_a_plain_module_is_told_by_its_weights_whatever_its_attributes(image):
    model = Own()
    result = attribute(model, image, "saliency")
    a = result.attrs
    assert (a["model"], a["weights"], a["seed"]) == ("Own", "as given", None)
    assert (a["backend"], a["dtype"]) == ("torch", "float32")
    assert json.loads(json.dumps(a)) is not None
    assert attribute(model, image, "saliency").attrs["hash"] == a["hash"]
    model.head.bias.data += 1
    assert attribute(model, image, "saliency").attrs["hash"] != a["hash"]


def test_threads_explain_one_model_at_the_same_time_and_the_model_runs_meanwhile(swin, image):
    expected = {method: values(attribute(swin, image, method, **QUICK.get(method, {}))) for method in RUNNING}
    logits, found, ran = swin(image.tensor), {}, []

    def explain(method):
        found[method] = values(attribute(swin, image, method, **QUICK.get(method, {})))

    threads = [threading.Thread(target=explain, args=(method,)) for method in RUNNING]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ran.append(swin(image.tensor))
    assert all(torch.equal(each, logits) for each in ran)
    assert not any(each.requires_grad for each in ran)
    for method in RUNNING:
        np.testing.assert_array_equal(found[method], expected[method])


@pytest.mark.parametrize("noise", ["smoothgrad", "vargrad"])
def test_a_seed_gives_the_same_noise_again_and_another_seed_another(swin, image, noise):
    def run(seed):
        torch.manual_seed(int(time.time()))
        return values(attribute(swin, image, "noise_tunnel", noise=noise, samples=3, seed=seed))

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


@pytest.mark.parametrize("method", RUNNING)
def test_a_cancel_ends_it_within_a_second_and_leaves_nothing(method, image):
    model = load_model("gspn_nano", device="cpu")
    attribute(model, image, method, **QUICK.get(method, {}))  # compiles the kernels
    asked, first = [], 40

    def cancelled():
        asked.append(time.perf_counter())
        return len(asked) >= first

    with pytest.raises(Cancelled):
        attribute(model, image, method, cancelled=cancelled)
    assert len(asked) == first
    assert np.diff(asked).max() < 1
    assert all(not module._forward_hooks for module in model.modules())
    assert attribute(model, image, "saliency")["attribution"].values.any()


def test_a_cancel_is_heard_inside_the_backward_pass(image):
    model = load_model("gspn_nano", device="cpu")
    passed, polls = [], []
    with pytest.raises(Cancelled):
        attribute(model, image, "saliency", progress=lambda *_: passed.append(1), cancelled=lambda: late(passed, polls))
    assert len(passed) == 2
    assert len(polls) == 5


def late(passed, polls):
    """Cancel at the fifth question after both forward passes are done."""
    polls.extend([1] if len(passed) == 2 else [])
    return len(polls) == 5


@pytest.mark.parametrize("method", RUNNING)
def test_progress_counts_the_images_that_pass_and_knows_in_advance(swin, image, method):
    told = []
    options = QUICK.get(method, {})
    result = attribute(swin, image, method, progress=lambda *counts: told.append(counts), **options)
    done, planned = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert planned == (planned[0],) * len(planned)
    assert done[-1] == planned[-1] == result.attrs["passes"]
    expected = {"integrated_gradients": 11, "occlusion": 7, "noise_tunnel": 3}
    assert planned[0] == expected.get(method, 2)


def test_nothing_of_a_run_stays_in_memory(swin, image):
    def stand_ins():
        gc.collect()
        return sum(issubclass(type(each), VisionModel) for each in gc.get_objects())

    attribute(swin, image, "saliency")
    before = stand_ins()
    attribute(swin, image, "layer_grad_cam", cancelled=lambda: False)
    assert stand_ins() == before


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("salience", {}, "There is no method named 'salience'; did you mean saliency?"),
        ("saliency", {"target": 10}, "target must be a whole number from 0 to 9, one of 10 classes; got 10."),
        ("saliency", {"target": "cat"}, "target must be a whole number from 0 to 9, one of 10 classes; got 'cat'."),
        ("saliency", {"target": 1, "unit": (0, 0)}, "explains a class or a unit: give target or unit, not both."),
        ("saliency", {"layer": "stage1.block1"}, "layer is the layer of a unit: give unit=(row, col)"),
        ("saliency", {"channel": 1}, "channel is a channel of a unit"),
        ("saliency", {"layer": "stage3.block1", "unit": (0, 0)}, "There is no layer named 'stage3.block1' in swin"),
        ("saliency", {"unit": (16, 0)}, "unit must be a cell of the layer's 16 rows and 16 columns; got (16, 0)."),
        ("saliency", {"unit": "middle"}, "unit is 'centre' or a cell (row, col); got 'middle'."),
        ("saliency", {"unit": (0, 0), "channel": 96}, "channel must be a whole number from 0 to 95"),
        ("saliency", {"steps": 3}, "saliency has no option 'steps': its options are absolute."),
        ("input_x_gradient", {"steps": 3}, "input_x_gradient has no option 'steps': it has none."),
        ("neuron_gradient", {"target": 1}, "neuron_gradient explains a unit"),
        ("integrated_gradients", {"baseline": "grey"}, "There is no baseline named 'grey'"),
        ("integrated_gradients", {"blur": 2.0}, "blur is for baseline='blurred'; got it with 'black'."),
        ("integrated_gradients", {"steps": 0}, "steps must be a whole number of at least 1; got 0."),
        ("integrated_gradients", {"limit": 8}, "limit must be at least steps, 64; got 8."),
        ("integrated_gradients", {"tolerance": 0}, "tolerance must be a positive number; got 0."),
        ("occlusion", {"window": 65}, "window must fit into the picture of 64 x 64 pixels; got (65, 65)."),
        ("occlusion", {"window": 4, "stride": 5}, "stride must not pass over pixels: at most the window, (4, 4)"),
        ("occlusion", {"window": 0}, "window is a whole number of pixels, or (rows, cols) of them; got 0."),
        ("occlusion", {"stride": 0}, "stride is a whole number of pixels, or (rows, cols) of them; got 0."),
        ("occlusion", {"window": (4, 0)}, "window is a whole number of pixels, or (rows, cols) of them; got (4, 0)."),
        ("noise_tunnel", {"noise": "smoothgrid"}, "There is no noise named 'smoothgrid'; did you mean smoothgrad"),
        ("noise_tunnel", {"sigma": -1}, "sigma must be a positive number; got -1."),
        ("noise_tunnel", {"seed": -1}, "seed must be a whole number from 0 to 2 ** 63 - 1; got -1."),
        ("layer_grad_cam", {"layer": "stage1.block1", "cam_layer": "stage1.block2"}, "Without a unit, layer and"),
        ("layer_grad_cam", {"unit": (0, 0), "layer": "stage1.block1"}, "shows the map of an earlier layer"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_sentence(swin, image, method, arguments, sentence):
    with pytest.raises(ValueError, match=r"\.$") as caught:
        attribute(swin, image, method, **arguments)
    assert sentence in str(caught.value)


def test_images_and_models_that_cannot_be_explained_are_refused(swin, image):
    with pytest.raises(ValueError, match="multiples of 4 pixels; got 63 x 63"):
        attribute(swin, load_image("coffee", 63), "saliency")
    with pytest.raises(ValueError, match="An attribution is of one image; got 2"):
        attribute(swin, image.tensor.repeat(2, 1, 1, 1), "saliency")
    with pytest.raises(ValueError, match=r"gives \(1, 8, 62, 62\): give unit"):
        attribute(nn.Conv2d(3, 8, 3), image, "saliency")
    for method in ("layer_grad_cam", "neuron_gradient"):
        assert "names none of its own: give layer" in refusal(Noisy(), method)
        assert refusal(Noisy(), method, layer="conv") is None
    tuples = Noisy()
    tuples.head.register_forward_hook(lambda module, args, output: (output,))
    with pytest.raises(ValueError, match=r"gives \(B, classes\); this one gives tuple: give unit"):
        attribute(tuples, image, "saliency")
    with pytest.raises(ValueError, match=r"must give a map \(B, C, h, w\); 'head' gives \(1, 4\)"):
        attribute(Noisy(), image, "saliency", layer="head", unit=(0, 0))
    assert refusal(lambda x: x, "saliency") == "Attribution needs a torch.nn.Module; got function."


def test_the_attrs_hold_a_complete_spec_whose_equals_have_one_hash(swin, image):
    first = attribute(swin, image, "occlusion", window=32)
    spec = AttributionSpec(**first.attrs["spec"])
    assert (spec.window, spec.stride, spec.baseline, spec.size) == ((32, 32), (16, 16), "zero", (64, 64))
    assert spec.target == int(swin(image.tensor).argmax())
    explicit = attribute(swin, image.tensor, "occlusion", spec.target, window=(32, 32), stride=16)
    np.testing.assert_array_equal(values(explicit), values(first))
    assert explicit.attrs["spec"] == first.attrs["spec"]
    again = attribute(swin, "coffee", "occlusion", spec.target, window=(32, 32), stride=16)
    assert again.attrs["hash"] == first.attrs["hash"]
    assert attribute(swin, image, "occlusion", window=32, stride=32).attrs["hash"] != first.attrs["hash"]
    assert first.attrs["weights_sha256"] == swin.weights_sha256
    assert (first.attrs["image"], first.attrs["backend"], first.attrs["analysis"]) == ("coffee", "cpu", "attribution")


def test_captum_is_imported_only_once_something_is_attributed():
    program = "import sys, workbench.analysis.attribution; sys.exit('captum' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_option_is_a_field_of_the_spec_and_is_described():
    known = {field.name for field in fields(AttributionSpec)}
    used = {name for method in METHODS.values() for name in method.options}
    assert used == set(OPTIONS)
    assert used <= known
