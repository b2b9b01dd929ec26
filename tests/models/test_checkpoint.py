"""Checkpoints: every layout loads back to the same logits, and every refusal is one sentence."""

import argparse
import json
import os
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from workbench.models import checkpoint, load_model
from workbench.models.checkpoint import save

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def as_official_swin(model):
    """With the buffers of the official files: an index in every block, a mask in every shifted one."""
    tensors = model.state_dict()
    for name in list(tensors):
        if name.endswith("relative_position_bias_table"):
            prefix = name.removesuffix("relative_position_bias_table")
            tensors[f"{prefix}relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    for i, depth in enumerate(model.config["depths"][:-1]):
        for j in range(1, depth, 2):
            tensors[f"layers.{i}.blocks.{j}.attn_mask"] = torch.zeros(4, 49, 49)
    return tensors


def as_timm_swin(model):
    return {timm_name(name): tensor for name, tensor in model.state_dict().items()}


def timm_name(name):
    name = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    return re.sub(r"^head\.", "head.fc.", name)


def as_old_gspn(model):
    """The names of early files, and linear weights as 1 x 1 convolutions."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        linear = re.search(r"(in_proj|out_proj|fc1|fc2)\.weight$", name)
        name = re.sub(r"blocks\.(\d+)\.norm\.", r"blocks.\1.ln_1.", name).replace(".op.", ".self_attention.")
        name = name.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        name = name.removeprefix("classifier.")
        tensors[name] = tensor[:, :, None, None] if linear else tensor
    return tensors


def as_is(model):
    return model.state_dict()


LAYOUTS = [
    ("swin_tiny", as_official_swin, "official Swin, 190 keys"),
    ("swin_tiny", as_timm_swin, "timm Swin, 173 keys"),
    ("swin_tiny", as_is, "official Swin, 173 keys"),
    ("gspn_tiny", as_is, "GSPN release, 297 keys"),
    ("gspn_tiny", as_old_gspn, "GSPN release, 297 keys"),
]


@pytest.mark.parametrize(("name", "layout", "found"), LAYOUTS)
@pytest.mark.parametrize("form", ["bare.pth", "bare.safetensors", "model.pt", "state_dict.pth", "parallel.pth"])
def test_a_file_of_each_layout_and_form_gives_the_same_logits(name, layout, found, form, small, randomise, tmp_path):
    released = {"merge": "released"} if name.startswith("gspn") else {}
    original = small(name, **released)
    randomise(original, seed=1)
    path = tmp_path / form
    write(path, layout(original))
    model = load_model(name, weights=path, device="cpu")
    torch.testing.assert_close(model(X), original(X), rtol=0, atol=0)
    assert (model.layout, model.weights, model.seed) == (found, form, None)
    assert model.weights_sha256 == checkpoint.fingerprint(original.state_dict())


def write(path, tensors):
    wrapper = path.name.split(".")[0]
    if path.suffix == ".safetensors":
        return save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    if wrapper == "parallel":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    elif wrapper != "bare":
        tensors = {wrapper: tensors, "epoch": 299}
    return torch.save(tensors, path)


@pytest.mark.parametrize("config", [{}, {"merge": "released", "chunk": 3}])
def test_a_file_that_we_write_brings_its_settings_along(config, tmp_path):
    original = load_model("gspn_nano", seed=4, **config)
    save(original, tmp_path / "ours.safetensors")
    model = load_model("gspn_nano", weights=tmp_path / "ours.safetensors")
    assert model.config == original.config
    assert model.layout == "workbench, 100 keys"
    assert torch.equal(model(X), original(X))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("swin_nano", {"heads": (6, 12), "window": 5, "padding": "keys"}),
        ("cswin_nano", {"heads": (4, 12), "split": (3, 3)}),
        ("dinat_nano", {"heads": (6, 12), "dilations": (2, 1), "kernel": 5}),
        ("davit_nano", {"heads": (6, 12), "window": 5}),
    ],
)
def test_heads_and_windows_come_from_the_shapes_or_from_the_note_where_no_shape_tells_them(name, config, tmp_path):
    original = load_model(name, seed=4, **config)
    save(original, tmp_path / "ours.safetensors")
    model = load_model(name, weights=tmp_path / "ours.safetensors")
    assert model.config == original.config
    assert torch.equal(model(X), original(X))


def test_a_released_gspn_file_is_merged_as_released_unless_told_otherwise(tmp_path):
    torch.save(load_model("gspn_nano").state_dict(), tmp_path / "w.pth")
    assert load_model("gspn_nano", weights=tmp_path / "w.pth").config["merge"] == "released"
    assert load_model("gspn_nano", weights=tmp_path / "w.pth", merge="aligned").config["merge"] == "aligned"


def test_the_shapes_of_the_file_decide_the_sizes_of_the_model(tmp_path):
    sizes = {"dims": (12, 20, 36, 40), "depths": (1, 2, 8, 1), "d_state": 5, "ratio": 1.25, "num_classes": 7}
    torch.save(load_model("gspn_small", **sizes).state_dict(), tmp_path / "small.pth")
    model = load_model("gspn_small", weights=str(tmp_path / "small.pth"))
    assert {key: model.config[key] for key in sizes} == sizes
    assert [mixer.chunk for _, mixer in model.blocks().values()] == [2] * 11 + [None]
    sizes = {"dims": (16, 32), "depths": (2, 4), "heads": (2, 4), "window": 5, "patch": 8, "num_classes": 3}
    torch.save(load_model("swin_base", **sizes).state_dict(), tmp_path / "base.pth")
    model = load_model("swin_base", weights=tmp_path / "base.pth")
    assert {key: model.config[key] for key in sizes} == sizes


def test_half_precision_weights_are_loaded_in_float32(tmp_path):
    original = load_model("swin_nano").half()
    torch.save(original.state_dict(), tmp_path / "w.pth")
    model = load_model("swin_nano", weights=tmp_path / "w.pth")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.weight, original.head.weight.float())


@pytest.mark.parametrize(("own", "average"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_of_weights_and_their_average_the_weights_are_taken_unless_told_otherwise(own, average, tmp_path):
    first, second = load_model("swin_nano", seed=1), load_model("swin_nano", seed=2)
    torch.save({own: first.state_dict(), average: second.state_dict()}, tmp_path / "both.pth")
    model = load_model("swin_nano", weights=tmp_path / "both.pth")
    assert (model.weights_sha256, model.layout) == (
        first.weights_sha256,
        "official Swin, 63 keys, EMA weights also in the file",
    )
    model = load_model("swin_nano", weights=tmp_path / "both.pth", ema=True)
    assert (model.weights_sha256, model.layout) == (second.weights_sha256, "official Swin, 63 keys, EMA weights")
    torch.save({own: first.state_dict()}, tmp_path / "one.pth")
    with refusal(r"one.pth has no EMA weights \(no entry model_ema or state_dict_ema\): load it without ema=True"):
        load_model("swin_nano", weights=tmp_path / "one.pth", ema=True)


# Refusals


def refusal(message):
    """A ValueError of one sentence that contains the message."""
    return pytest.raises(ValueError, match=rf"(?s)^(?!.*\n).*{message}.*\.$")


class RunsCode:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_file_that_would_run_code_is_refused_with_the_way_out(tmp_path):
    torch.save({"model": {}, "config": argparse.Namespace(size=224)}, tmp_path / "config.pth")
    torch.save({"model": RunsCode(tmp_path / "ran")}, tmp_path / "hostile.pth")
    for file, asked in (("config.pth", "argparse.Namespace"), ("hostile.pth", "posix.mkdir")):
        with refusal(rf"{file} can only be opened by running code .*asks for {asked}.*safetensors.torch.save_file"):
            load_model("gspn_tiny", weights=tmp_path / file)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("hello" * 20)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello" * 20)
    torch.save(torch.randn(100), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    whole = bytearray((tmp_path / "whole.pth").read_bytes())
    whole[whole.rindex(b"PK\1\2")] = 0  # the table of contents
    (tmp_path / "spoilt.pth").write_bytes(whole)
    for file in ("text.pth", "empty.pth", "cut.pth", "spoilt.pth"):
        with refusal(f"{file} is not a checkpoint that PyTorch can read"):
            load_model("gspn_tiny", weights=tmp_path / file)
    with refusal("text.safetensors is not a .safetensors checkpoint"):
        load_model("gspn_tiny", weights=tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "w.pth holds no weights, neither bare nor under model, model_ema, .*: it is empty"),
        ({"model": {}}, "w.pth holds no weights, .*: it is empty"),
        ({"epoch": 3, "loss": 0.1}, "w.pth holds no weights, .*: its entries are epoch, loss"),
        ([torch.ones(1)], "w.pth holds a list, not a dictionary of weights"),
        ({"a": torch.ones(1), "epoch": 3}, "w.pth is not a state dict: its entry epoch is not an ordinary tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "its entry a is not an ordinary tensor"),
        ({1: torch.ones(1)}, "its entry 1 is not an ordinary tensor"),
        (
            {"conv1.weight": torch.ones(1)},
            r"w.pth has none of the known layouts \(GSPN .*\); it begins with conv1.weight",
        ),
        (
            {"features.1.0.attn.relative_position_bias_table": torch.ones(1)},
            r"w.pth is a torchvision Swin checkpoint \(1 keys\), a layout that is known but not read",
        ),
        (
            {"swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table": torch.ones(1)},
            "w.pth is a transformers Swin checkpoint",
        ),
        ({"in_blocks.0.spn.x_conv_down.weight": torch.ones(1)}, "w.pth is a GSPN diffusion model checkpoint"),
        ({"a": torch.ones(1).expand(2 * 10**9)}, "w.pth holds 8.0 GB, and checkpoints of over 4 GB are refused"),
    ],
)
def test_content_that_is_no_known_state_dict_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with refusal(message):
        load_model("gspn_tiny", weights=tmp_path / "w.pth")


def test_files_that_are_too_large_or_of_another_kind_are_refused_unopened(tmp_path):
    with open(tmp_path / "large.pth", "wb") as file:
        file.truncate(5 * 10**9)  # a hole: takes no space on the disk
    with refusal("large.pth holds 5.0 GB, and checkpoints of over 4 GB are refused"):
        load_model("gspn_tiny", weights=tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abcde":
            archive.writestr(name, bytes(10**6))
            archive.infolist()[-1].file_size = 10**9  # what the file claims to unpack to
    with refusal("bomb.pth holds 5.0 GB, and checkpoints of over 4 GB are refused"):
        load_model("gspn_tiny", weights=tmp_path / "bomb.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with refusal(r"Weights are read from .safetensors, .pth, .pt files; got w.onnx"):
        load_model("gspn_tiny", weights=tmp_path / "w.onnx")
    for missing in (tmp_path, tmp_path / "none.pth"):
        with refusal("There is no weights file "):
            load_model("gspn_tiny", weights=missing)
    torch.save({f"a{i}": torch.ones(1) for i in range(10_001)}, tmp_path / "many.pth")
    with refusal("many.pth holds 10001 entries, and checkpoints of over 10000 are refused"):
        load_model("gspn_tiny", weights=tmp_path / "many.pth")


def test_a_file_of_another_family_or_variant_is_recognised_and_named(small, tmp_path):
    torch.save(as_timm_swin(small("swin_tiny")), tmp_path / "swin.pth")
    with refusal(
        r"swin.pth is .*another family \(timm Swin, 173 keys\), not one for gspn_tiny: load it as swin_base, "
    ):
        load_model("gspn_tiny", weights=tmp_path / "swin.pth")
    torch.save(load_model("gspn_nano", num_classes=3).state_dict(), tmp_path / "nano.pth")
    with refusal("nano.pth has the shapes of gspn_nano, not of gspn_tiny: load it as that"):
        load_model("gspn_tiny", weights=tmp_path / "nano.pth")


def test_a_file_that_does_not_fit_names_what_differs(tmp_path):
    tensors = load_model("gspn_nano").state_dict()
    tensors["classifier.head.bias"] = torch.zeros(11)
    del tensors["patch_embed.0.bias"]
    tensors |= {"extra.weight": torch.zeros(2), "more.weight": torch.zeros(2)}
    torch.save(tensors, tmp_path / "w.pth")
    with refusal(
        r"w.pth does not fit gspn_nano: patch_embed.0.bias \(20,\) is missing; "
        r"classifier.head.bias is \(11,\) where \(10,\) is expected; extra.weight is not part of the model; and 1 more"
    ):
        load_model("gspn_nano", weights=tmp_path / "w.pth")


def test_a_setting_that_contradicts_the_file_names_what_differs(tmp_path):
    torch.save(load_model("swin_nano").state_dict(), tmp_path / "w.pth")
    with refusal(r"w.pth does not fit swin_nano: head.weight is \(10, 96\) where \(1000, 96\) is expected"):
        load_model("swin_nano", weights=tmp_path / "w.pth", num_classes=1000)


def test_whole_numbers_are_not_taken_for_weights(tmp_path):
    tensors = load_model("swin_nano").state_dict()
    torch.save(tensors | {"head.bias": torch.zeros(10, dtype=torch.long)}, tmp_path / "w.pth")
    with refusal("head.bias holds torch.int64 where numbers with a fraction are expected"):
        load_model("swin_nano", weights=tmp_path / "w.pth")


def test_a_note_cannot_ask_for_more_than_the_file_holds(tmp_path):
    model = load_model("gspn_nano")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = tmp_path / "w.safetensors"
    save_file(tensors, path, {"gspn_workbench": json.dumps({"config": {"dims": [10**9], "depths": [10**9]}})})
    assert load_model("gspn_nano", weights=path).config == model.config | {"merge": "released"}
    for note, message in (("{", "damaged note 'gspn_workbench'"), ('{"config": {"evil": 1}}', "has no setting 'evil'")):
        save_file(tensors, path, {"gspn_workbench": note})
        with refusal(message):
            load_model("gspn_nano", weights=path)


def test_a_file_that_was_saved_under_another_name_of_the_same_shapes_is_refused(tmp_path):
    save(load_model("nat_nano"), tmp_path / "w.safetensors")
    with refusal("w.safetensors was saved as nat_nano, not dinat_nano: load it as that"):
        load_model("dinat_nano", weights=tmp_path / "w.safetensors")
