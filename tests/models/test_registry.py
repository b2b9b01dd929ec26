"""Models by name: what there is, how weights are drawn, and what is said when a name is wrong."""

import json
import re

import pytest
import torch

from workbench.models import list_models, load_model, registry, unknown
from workbench.models.checkpoint import fingerprint, save


def test_models_are_listed_by_pattern_and_in_order():
    assert {"gspn_tiny", "gspn_small", "gspn_base", "gspn_nano"} <= set(list_models("gspn*"))
    assert {"swin_tiny", "swin_small", "swin_base", "swin_nano"} == set(list_models("swin_*"))
    assert {"nat_mini", "nat_tiny", "nat_nano"} == set(list_models("nat_*"))
    assert list_models() == sorted(list_models())
    assert list_models("nothing*") == []


def test_a_seed_gives_the_same_weights_and_another_seed_gives_others():
    first, again, other = (load_model("swin_nano", seed=seed).state_dict() for seed in (1, 1, 2))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_drawing_weights_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    load_model("gspn_nano", seed=9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", list_models("*_nano"))
def test_random_weights_keep_the_scale_of_the_image(name):
    model = load_model(name, seed=2)
    x = torch.randn(1, 3, model.input_size, model.input_size)
    for layer in model.layers():
        assert 0.3 < model.features(x, layer.name).std() < 10
    assert 0.1 < model(x).std() < 10


def test_random_gates_and_attention_follow_the_image():
    x = torch.randn(1, 3, 64, 64)
    gspn, swin = load_model("gspn_nano"), load_model("swin_nano")
    gates = gspn.block("stage2.block2")[1].freeze(gspn.mixer_inputs(x)["stage2.block2"]).gates
    assert gates[:, :, :, :, 1:-1, 1:-1].std(dim=(-1, -2)).mean() > 0.03
    row = swin.block("stage2.block2")[1].freeze(swin.mixer_inputs(x)["stage2.block2"]).row((8, 8))
    assert row.amax(dim=(1, 2)).mean() > 2 / 64


def test_a_loaded_model_says_what_it_is():
    model = load_model("gspn_nano", seed=7, device="cpu", backend="reference", num_classes=3)
    assert (model.name, model.weights, model.seed, model.layout) == ("gspn_nano", "random", 7, "")
    assert (model.backend, model.device.type, model.training) == ("reference", "cpu", False)
    assert re.fullmatch("[0-9a-f]{64}", model.weights_sha256)
    assert model.config["num_classes"] == 3
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", list_models("*_nano"))
def test_the_recorded_settings_build_the_model_again(name):
    model = load_model(name, num_classes=4)
    settings = json.loads(json.dumps(model.config))
    again = load_model(model.name, seed=model.seed, **settings)
    assert again.weights_sha256 == model.weights_sha256
    assert [layer.grid for layer in again.layers()] == [layer.grid for layer in model.layers()]


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_default_device_is_the_gpu_if_there_is_one(available, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert registry._device(None).type == expected


def test_trained_weights_are_those_that_ship_or_a_sentence_that_lists_them(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match=r"No trained weights of gspn_nano ship with the workbench \(shipped: none\)"):
        load_model("gspn_nano", weights="trained")
    shipped = load_model("gspn_nano", seed=5)
    save(shipped, tmp_path / "gspn_nano.safetensors")
    model = load_model("gspn_nano", weights="trained")
    assert (model.weights, model.weights_sha256, model.seed) == ("trained", shipped.weights_sha256, None)
    assert (model.config, model.layout) == (shipped.config, f"workbench, {len(shipped.state_dict())} keys")
    with pytest.raises(ValueError, match=r"No trained weights of swin_nano .*\(shipped: gspn_nano\)"):
        load_model("swin_nano", weights="trained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gspn_tinny"}, "no model named 'gspn_tinny'; did you mean gspn_tiny"),
        ({"name": "resnet"}, r"no model named 'resnet'. Known: [a-z_]+, .* and \d+ more"),
        (
            {"name": "gspn_nano", "merg": "aligned"},
            "gspn_nano has no setting 'merg': its settings are dims, .*, merge, ",
        ),
        (
            {"name": "swin_nano", "merge": "aligned"},
            "swin_nano has no setting 'merge': its settings are dims, .*window",
        ),
        ({"name": "gspn_nano", "backend": "cudnn"}, "no backend named 'cudnn'.* Known: auto, reference, cpu, triton"),
        ({"name": "gspn_nano", "device": "gpuu"}, "device must be 'cpu', 'cuda' or a torch.device; got 'gpuu'"),
        ({"name": "gspn_nano", "seed": "x"}, "seed must be a whole number from 0 to 2 .* 63 - 1; got 'x'"),
        ({"name": "gspn_nano", "ema": True}, "ema=True chooses between the weights of a file"),
        ({"name": "gspn_nano", "weights": "randm"}, "no weights file 'randm': give 'random', 'trained' or a "),
    ],
)
def test_a_wrong_argument_is_answered_with_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(**arguments)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device='cuda' needs a GPU that PyTorch can use, and there is none"):
        load_model("gspn_nano", device="cuda")


def test_unknown_is_the_sentence_of_all_rooms():
    assert unknown("model", "a", ["b"]) == "There is no model named 'a'. Known: b."
