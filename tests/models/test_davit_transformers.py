"""DaViT against an independent implementation: the vision backbone of Florence-2 in transformers, which is a DaViT.

Its channel attention is softmax(N ** -0.5 Q^T K) V^T for N positions; ours, as in the paper's released models, is
softmax(d ** -0.5 K^T V) Q^T. So its query, key and value take our key, value and query, scaled for the grid.
"""

import math

import pytest
import torch
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from workbench.models import load_model


def same_weights_in_transformers(model, size):
    """The backbone with the weights of ours, for images of `size` pixels a side."""
    config = model.config
    stages = len(config["dims"])
    theirs = Florence2VisionBackbone(
        Florence2VisionConfig(
            depths=config["depths"],
            patch_size=(2 * config["patch"] - 1, *[2] * (stages - 1)),
            patch_stride=(config["patch"], *[2] * (stages - 1)),
            patch_padding=(config["patch"] - 1, *[0] * (stages - 1)),
            patch_prenorm=(False, *[True] * (stages - 1)),
            embed_dim=config["dims"],
            num_heads=config["heads"],
            num_groups=config["heads"],
            window_size=config["window"],
            drop_path_rate=0.0,
        )
    )
    theirs.eval().double()
    ours = model.state_dict()
    taken = {name: ours[our_name(name)] for name in theirs.state_dict()}
    for name in taken:
        if ".channel_attn.qkv." in name:
            stage = int(name.split(".")[1])
            positions = math.prod(model.stage_grid(stage, size, size))
            width = config["dims"][stage] // config["heads"][stage]
            query, key, value = taken[name].chunk(3)
            taken[name] = torch.cat([key * (positions / width) ** 0.5, value, query])
    theirs.load_state_dict(taken)
    assert {our_name(name) for name in taken} == {n for n in ours if not n.startswith(("norms.", "head."))}
    return theirs


def our_name(name):
    """Our name for a tensor of transformers."""
    part, stage, *rest = name.split(".")
    if part == "convs":
        return f"patch_embeds.{stage}.{'proj' if rest[0] == 'conv' else 'norm'}.{rest[-1]}"
    block, half, *rest = rest
    half = {"spatial_block": 0, "channel_block": 1}[half]
    inner = {"conv1": "cpe.0.proj", "conv2": "cpe.1.proj", "window_attn": "attn", "channel_attn": "attn", "ffn": "mlp"}
    return ".".join(["main_blocks", stage, block, str(half), inner.get(rest[0], rest[0]), *rest[1:]])


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("davit_tiny", {}, 224),
        ("davit_nano", {}, 64),
        # 20 x 20 and 10 x 10 positions: windows of 8 that are filled up with tokens of padding.
        ("davit_nano", {"padding": "keys"}, 40),
    ],
)
def test_the_features_are_those_of_transformers(name, config, size, randomise):
    model = load_model(name, device="cpu", **config)
    randomise(model, 4)
    model.double()
    theirs = same_weights_in_transformers(model, size)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    last = model.layers(size)[-1].name
    with torch.no_grad():
        features, expected = model.features(x, last), theirs(x).last_hidden_state
    assert (features - expected).abs().max() <= 1e-9 * expected.abs().max()
    with torch.no_grad():
        single = model.float().features(x.float(), last)
    assert (single - expected).abs().max() <= 1e-4 * expected.abs().max()
