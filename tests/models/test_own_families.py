"""The families of our own architecture: which keys their blocks read, their settings, and their files."""

import pytest
import torch
import torch.nn.functional as F

from workbench.models import load_model
from workbench.models.checkpoint import read, save
from workbench.models.fixed import FixedAttention
from workbench.models.hilo import HiLoAttention
from workbench.models.positions import PositionEncoding
from workbench.models.power import RotaryAttention
from workbench.models.registry import variant
from workbench.models.states import JoinedState, PooledState
from workbench.models.twins import ReducedAttention

OWN = ("axial_nano", "disc_nano", "gna_nano", "halonet_nano", "hilo_nano", "power_nano", "twins_nano")

READINGS = {
    "axial_nano": ["axial, own column", "axial, own row"],
    "disc_nano": ["disc of radius 5"] * 2,
    "gna_nano": ["neighborhood 7x7 stride 2x2"] * 2,
    "halonet_nano": ["halo 8x8 + 3x3"] * 2,
    "hilo_nano": ["block 2x2 | all keys, pooled over 2x2 positions"] * 2,
    "power_nano": ["power, blocks of 32, window 2, sink 1"] * 2,
    "twins_nano": ["block 8x8", "all keys, pooled over {0}x{0} positions"],
}


def frozen(model, size=(64, 64)):
    """The state of every layer at a random image."""
    received = model.mixer_inputs(torch.randn(1, 3, *size))
    return {name: mixer.freeze(received[name]) for name, (_, mixer) in model.blocks().items()}


@pytest.mark.parametrize("name", OWN)
def test_a_nano_has_about_300_000_parameters_and_grids_of_32_and_16(name):
    model = variant(name).build({})
    assert 250_000 < sum(p.numel() for p in model.parameters()) < 350_000
    assert [layer.grid for layer in model.layers()] == [(32, 32)] * 2 + [(16, 16)] * 2
    assert model.input_size == 64


@pytest.mark.parametrize("name", OWN)
def test_heads_have_16_channels(name):
    config = variant(name).defaults()
    assert [channels // heads for channels, heads in zip(config["dims"], config["heads"], strict=True)] == [16, 16]


@pytest.mark.parametrize("name", OWN)
def test_the_blocks_of_a_stage_read_the_keys_of_their_pattern_in_turn(name):
    readings = [state.reading for state in frozen(load_model(name, device="cpu")).values()]
    assert readings[:2] == [reading.format(4) for reading in READINGS[name]]
    assert readings[2:] == [reading.format(2) for reading in READINGS[name]]


SETTINGS = {
    "halonet_nano": [
        ({"block": 0}, "block must be at least 1; got 0."),
        ({"halo": -1}, "halo must be at least 0; got -1."),
        ({"border": "zero"}, "border must be 'crop' or 'clamp'; got 'zero'."),
    ],
    "gna_nano": [
        ({"kernel": 0}, "kernel must be a whole number of at least 1; got 0."),
        ({"stride": 8}, "stride must be from 1 to the kernel 7; got 8."),
        ({"stride": 2.0}, "stride must be a whole number of at least 1; got 2.0."),
    ],
    "disc_nano": [({"radius": 0}, "radius must be a whole number of at least 1; got 0.")],
    "power_nano": [
        ({"block": 0}, "block must be a whole number of at least 1; got 0."),
        ({"local": 0}, "local must be a whole number of at least 1; got 0."),
        ({"sink": -1}, "sink must be at least 0; got -1."),
    ],
    "twins_nano": [
        ({"block": 0}, "window must be at least 1 position a side; got 0."),
        ({"sr_ratios": (4,)}, "dims and sr_ratios must name the same number of stages; got dims (48, 80), "),
        ({"sr_ratios": (4, 0)}, "sr_ratios[1] must be a whole number of at least 1; got 0."),
    ],
    "hilo_nano": [
        ({"alpha": 1}, "alpha must be a number between 0 and 1, the share of Lo-Fi heads; got 1."),
        ({"alpha": "half"}, "alpha must be a number between 0 and 1, the share of Lo-Fi heads; got 'half'."),
        ({"alpha": 0.1}, "alpha must leave each stage at least one head of each kind; got 0.1 for 2 heads."),
        ({"heads": (1, 6)}, "alpha must leave each stage at least one head of each kind; got 0.5 for 1 head."),
        ({"cell": 0}, "cell must be a whole number of at least 1; got 0."),
    ],
    "axial_nano": [({"heads": (5, 6)}, "heads must divide the channels of each stage; got dims (48, 96) and heads")],
}


@pytest.mark.parametrize(
    ("name", "config", "sentence"), [(name, *case) for name, cases in SETTINGS.items() for case in cases]
)
def test_a_wrong_setting_is_answered_with_one_sentence(name, config, sentence):
    with pytest.raises(ValueError, match="must") as error:
        load_model(name, **config)
    assert str(error.value).startswith(sentence)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "config", "least"),
    [("gna_nano", {}, 28), ("halonet_nano", {"border": "clamp"}, 56), ("halonet_nano", {}, 1), ("disc_nano", {}, 1)],
)
def test_a_pattern_that_needs_a_map_of_some_size_says_how_large_images_must_be(name, config, least):
    model = load_model(name, device="cpu", **config)
    smallest = max(least, model.size_multiple)
    assert model(torch.randn(1, 3, smallest, smallest + 4)).isfinite().all()
    if least > 1:
        with pytest.raises(ValueError, match=f"multiples of 4 pixels, at least {least}; got {least - 4} x 64"):
            model.layers((least - 4, 64))


def test_reduced_keys_are_the_projected_convolution_of_the_map_filled_up_with_zeros(randomise):
    mixer = ReducedAttention(channels=6, heads=2, sr=2).double()
    randomise(mixer, seed=2)
    x = torch.randn(1, 5, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        state = mixer.freeze(x)
        filled = torch.cat([x, torch.zeros(1, 1, 4, 6, dtype=torch.float64)], 1)
        for i, j in ((0, 0), (1, 1), (2, 0)):
            cell = filled[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            reduced = torch.einsum("ocrs,rsc->o", mixer.sr.weight, cell) + mixer.sr.bias
            k, v = mixer.kv(mixer.norm(reduced)).chunk(2)
            torch.testing.assert_close(state.k[0, i, j].flatten(), k)
            torch.testing.assert_close(state.v[0, i, j].flatten(), v)
        q = mixer.q(x)[0, 4, 3].view(2, 3)
        weights = (3**-0.5 * torch.einsum("hd,rchd->hrc", q, state.k[0])).flatten(1).softmax(1)
        mixed = torch.einsum("hn,nhd->hd", weights, state.v[0].flatten(0, 1)).flatten()
        torch.testing.assert_close(mixer(x)[0, 4, 3], mixer.proj(mixed))


def test_low_frequency_keys_are_the_projections_of_the_averaged_map(randomise):
    mixer = HiLoAttention(channels=6, heads=(1, 2), cell=2).double()
    randomise(mixer, seed=3)
    x = torch.randn(1, 5, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        state = mixer.freeze(x)
        assert isinstance(state, JoinedState)
        _, across = state.parts
        assert isinstance(across, PooledState)
        means = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=True).permute(0, 2, 3, 1)
        k, v = mixer.low_kv(means).chunk(2, -1)
        torch.testing.assert_close(across.k.flatten(3), k)
        torch.testing.assert_close(across.v.flatten(3), v)
        torch.testing.assert_close(mixer(x), mixer.proj(state.mix(state.value).permute(0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("alpha", "split"), [(0.5, [(1, 1), (3, 3)]), (0.25, [(1, 1), (4, 2)]), (0.6, [(1, 1), (2, 4)])]
)
def test_alpha_is_the_share_of_low_frequency_heads(alpha, split):
    model = variant("hilo_nano").build({"alpha": alpha})
    assert [mixer.heads for _, mixer in model.blocks().values()][::2] == split


def test_rotated_queries_and_keys_see_the_offset_between_them_and_nothing_else(randomise):
    reads = load_model("power_nano", device="cpu").block("stage1.block1")[1].reads
    mixer = RotaryAttention(channels=16, heads=2, reads=reads).double()
    randomise(mixer, seed=4)
    x = torch.randn(1, 1, 1, 16, dtype=torch.float64).expand(1, 6, 7, 16)  # the same token everywhere
    with torch.no_grad():
        state = mixer.freeze(x)
    logits = torch.einsum("rchd,ijhd->hrcij", state.q[0], state.k[0])
    torch.testing.assert_close(logits[:, :-2, :-1, :-2, :-1], logits[:, 2:, 1:, 2:, 1:])
    assert logits[:, 0, 0].std() > 0.01
    plain = FixedAttention.freeze(mixer, x)
    torch.testing.assert_close(state.q.norm(dim=-1), plain.q.norm(dim=-1))
    torch.testing.assert_close(state.k[:, 0, 0], plain.k[:, 0, 0])
    assert torch.equal(state.v, plain.v)


def test_positions_are_told_apart_by_their_neighbours_and_the_border(randomise):
    encoding = PositionEncoding(4).double()
    randomise(encoding, seed=5)
    x = torch.ones(1, 5, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        found = encoding(x)
        inside = 1 + encoding.proj.weight.sum((1, 2, 3)) + encoding.proj.bias
        corner = 1 + encoding.proj.weight[:, :, 1:, 1:].sum((1, 2, 3)) + encoding.proj.bias
    torch.testing.assert_close(found[0, 2, 3], inside)
    torch.testing.assert_close(found[0, 0, 0], corner)


@pytest.mark.parametrize("name", ["axial_nano", "hilo_nano", "twins_nano"])
def test_only_the_position_encoding_tells_a_map_from_the_same_map_moved_by_whole_cells(name):
    model = load_model(name, device="cpu").double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    moved = x.roll((16, 16), (2, 3))
    assert (model(x) - model(moved)).abs().max() > 1e-3
    for encoding in model.positions:
        encoding.proj.weight.zero_()
    torch.testing.assert_close(model(x), model(moved))


CHANGED = {
    "axial_nano": {"dims": (24, 40), "depths": (1, 3), "heads": (3, 5)},
    "disc_nano": {"radius": 3, "heads": (2, 4)},
    "gna_nano": {"kernel": 5, "stride": 3, "heads": (6, 2)},
    "halonet_nano": {"block": (2, 4), "halo": 1, "border": "clamp"},
    "hilo_nano": {"alpha": 0.7, "heads": (2, 6), "cell": 3},
    "power_nano": {"block": 7, "local": 1, "sink": 2, "patch": 4},
    "twins_nano": {"block": 5, "sr_ratios": (1, 3)},
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("changed", [False, True])
def test_a_saved_model_is_read_again_with_its_settings(name, changed, tmp_path, randomise):
    model = load_model(name, device="cpu", num_classes=7, **(CHANGED[name] if changed else {}))
    randomise(model, seed=6)
    path = tmp_path / "ours.safetensors"
    save(model, path)
    again = load_model(name, weights=path, device="cpu")
    assert again.config == model.config
    assert again.layout == f"workbench, {len(model.state_dict())} keys"
    x = torch.randn(1, 3, 64, 72)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", OWN)
def test_a_file_is_of_its_own_family_and_of_no_other(name, tmp_path):
    path = tmp_path / "w.safetensors"
    save(load_model(name, device="cpu"), path)
    assert read(path).layout.family == variant(name).model.family
    for other in (*OWN, "swin_nano"):
        if other != name:
            with pytest.raises(ValueError, match=f"not one for {other}: load it as {name}"):
                load_model(other, weights=path)
