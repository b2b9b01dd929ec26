"""The passes behind a receptive field: they stop when cancelled, leave nothing behind, and are exact in any setting."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch import nn

from workbench.analysis.field_gradient import Cancelled, exact, unit_gradients
from workbench.analysis.receptive_field import receptive_field, resolve, stream
from workbench.images import load_image
from workbench.models import load_model

SIZE = (18, 24)


@pytest.fixture
def x():
    return torch.randn(2, 3, *SIZE)


class Slow(torch.autograd.Function):
    """The identity, which tells when each of its passes has run."""

    @staticmethod
    def forward(ctx, x, ran, name):
        ctx.ran, ctx.name = ran, name
        ran.append(f"forward {name}")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.ran.append(f"backward {ctx.name}")
        return gradient.clone(), None, None


class Told(nn.Module):
    """A layer that writes down when it runs."""

    def __init__(self, ran, name):
        super().__init__()
        self.ran, self.name = ran, name

    def forward(self, x):
        return Slow.apply(x, self.ran, self.name)


@pytest.fixture
def ran():
    return []


@pytest.fixture
def net(ran):
    return nn.Sequential(*(Told(ran, n) for n in range(4)))


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


FORWARD = [f"forward {n}" for n in range(4)]
BACKWARD = [f"backward {n}" for n in reversed(range(4))]


@pytest.mark.parametrize("last", [*FORWARD[:-1], *BACKWARD[:-1]])
def test_a_cancel_stops_inside_either_pass_and_leaves_no_hook(net, ran, x, last):
    spec = resolve(net, size=SIZE)
    ran.clear()
    fields = list(stream(net, x, spec, cancelled=lambda: last in ran))
    assert fields == []
    assert ran == [*FORWARD, *BACKWARD][: len(ran)]
    assert ran[-1] == last
    assert hooks_of(net) == 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_cancel_between_units_and_between_batches_keeps_what_is_whole(net, ran, x):
    with pytest.raises(Cancelled):
        unit_gradients(net, x, "", [(0, 0), (1, 1)], SIZE, cancelled=lambda: "backward 0" in ran)
    assert ran.count("backward 0") == 1
    ran.clear()
    done = []
    for field in stream(net, x, resolve(net, size=SIZE, batch=1), cancelled=lambda: bool(done)):
        done.append(field)
    (field,) = done
    assert (field.count, field.complete, field.planned) == (1, False, 2)
    assert not field.result().attrs["complete"]


def test_a_cancel_before_the_first_batch_gives_an_empty_result(net, x):
    result = receptive_field(net, x, cancelled=lambda: True)
    assert int(result["count"]) == result.attrs["images"] == 0
    assert not result.attrs["complete"]
    assert not result["map"].any()
    assert np.isnan(result["r"]).all()


@pytest.mark.parametrize("name", ["gspn_nano", "maxvit_nano"])
def test_a_model_is_cancelled_within_a_part_of_its_passes(name):
    model = load_model(name, device="cpu")
    image = load_image("coffee", 64)
    spec = resolve(model, size=64)
    polled = []
    list(stream(model, image, spec, cancelled=lambda: polled.append(0)))
    parts = sum(1 for _ in model.modules())
    assert len(polled) > parts  # after most modules in the forward pass, and before them in the backward pass
    answers = iter([False] * (len(polled) * 2 // 3))
    assert list(stream(model, image, spec, cancelled=lambda: next(answers, True))) == []
    assert hooks_of(model) == 0


def test_polling_changes_no_bit():
    in_place = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.Identity(), nn.Conv2d(8, 4, 3))
    for model in (load_model("swin_nano", device="cpu"), in_place):
        free, polled = (
            receptive_field(model, "brick", size=64, unit="1x2", cancelled=c)["map"].values
            for c in (None, lambda: False)
        )
        assert np.array_equal(free, polled)


def convolutions(dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5), nn.Conv2d(8, 6, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return net.to(dtype)


@pytest.mark.parametrize(("name", "rounds"), [("swin_nano", 2), (None, 20)])
def test_threads_have_the_same_model_at_once_and_one_may_cancel(name, rounds):
    model = load_model(name, device="cpu") if name else convolutions().eval()
    image = load_image("coffee", 64)
    x = image.tensor
    layers = [layer.name for layer in model.layers(64)] if name else ["0", "1", "4"]
    alone = {layer: receptive_field(model, image, layer)["map"].values for layer in layers}
    logits, found, cancelled, spec = model(x), {}, [], resolve(model, size=64)

    def fields():
        for layer in layers * rounds:
            found.setdefault(layer, []).append(
                receptive_field(model, image, layer, cancelled=lambda: False)["map"].values
            )

    def cancelling():
        for _ in range(4 * rounds):
            answers = iter([False] * 6)
            cancelled.extend(stream(model, image, spec, cancelled=lambda a=answers: next(a, True)))

    threads = [threading.Thread(target=fields), threading.Thread(target=fields), threading.Thread(target=cancelling)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        plain = [model(x) for _ in range(5 * rounds)]
    for thread in threads:
        thread.join()
    assert cancelled == []
    assert all(torch.equal(each, logits.detach()) for each in plain)
    assert all(np.array_equal(each, alone[layer]) for layer in layers for each in found[layer])
    assert [len(found[layer]) for layer in layers] == [2 * rounds] * len(layers)
    assert hooks_of(model) == 0


def test_many_units_share_one_forward_pass(x):
    net, calls = convolutions().eval(), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    spec = resolve(net, unit="3x4", size=SIZE)
    calls.clear()
    (field,) = stream(net, x, spec)
    assert len(calls) == 1
    assert field.result().sizes["unit"] == 12


@pytest.mark.parametrize(
    "setting", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_what_the_caller_has_set_changes_nothing(x, setting):
    net = convolutions()
    expected = receptive_field(net, x)
    with setting():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        found = receptive_field(net, x.clone())
        after = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert after == before != (True, False, False)
    assert np.array_equal(found["map"].values, expected["map"].values)


def test_a_coarser_matrix_precision_is_set_aside_and_put_back(net, x):
    seen = []
    net.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")
    try:
        receptive_field(net, x, "3")
        receptive_field(net, x)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


@pytest.fixture
def named_precisions():
    """Single operations whose precision has been set by name, after which torch's older switches raise."""
    backends = torch.backends
    operations = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [operation.fp32_precision for operation in operations]
    backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision = "tf32", "ieee"
    yield lambda: [operation.fp32_precision for operation in operations]
    for operation, precision in zip(operations, before, strict=True):
        operation.fp32_precision = precision


def test_precisions_that_were_set_by_name_are_set_aside_and_put_back(net, x, named_precisions):
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    found, seen = named_precisions(), []
    net.register_forward_hook(lambda *_: seen.append(named_precisions()[:2]))
    receptive_field(net, x)
    assert seen == [["ieee", "ieee"]] * len(seen) != []
    assert named_precisions() == found


@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")
def test_cudnn_is_exact_and_repeatable_however_its_precision_was_set(named_precisions):
    cudnn, found = torch.backends.cudnn, named_precisions()
    flags = cudnn.benchmark, cudnn.deterministic
    with exact(torch.device("cuda")):
        assert named_precisions() == ["ieee"] * 4
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert named_precisions() == found
    assert (cudnn.benchmark, cudnn.deterministic) == flags
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"  # the older switch answers again
    with exact(torch.device("cuda")):
        assert named_precisions()[2:] == ["ieee", "ieee"]
        assert not cudnn.allow_tf32
    assert named_precisions()[2:] == ["tf32", "tf32"]


def test_a_module_may_change_what_it_is_given(x):
    conv = nn.Conv2d(3, 4, 3)
    fields = [receptive_field(nn.Sequential(nn.ReLU(inplace), conv), x) for inplace in (False, True)]
    assert np.array_equal(fields[0]["map"], fields[1]["map"])
    assert fields[0]["map"].values.any()


def test_training_mode_is_left_for_the_run_and_restored(x):
    net = convolutions()
    net[1].eval()
    modes, mean = [module.training for module in net.modules()], net[1].running_mean.clone()
    first, second = receptive_field(net, x), receptive_field(net, x)
    assert np.array_equal(first["map"].values, second["map"].values)  # no dropout
    assert torch.equal(net[1].running_mean, mean)
    assert [module.training for module in net.modules()] == modes
    with contextlib.suppress(ValueError):
        receptive_field(net, x, channels="channel 99")
    assert [module.training for module in net.modules()] == modes
    assert np.array_equal(first["map"].values, receptive_field(net.eval(), x)["map"].values)


def test_parameters_that_want_gradients_get_none(x):
    net = convolutions().requires_grad_(True)
    receptive_field(net, x, unit="2x2")
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_a_model_in_16_bits_is_computed_in_32_and_stays_as_it_is(x):
    net = convolutions(torch.bfloat16)
    found = receptive_field(net, x)
    assert np.array_equal(found["map"].values, receptive_field(convolutions(torch.bfloat16).float(), x)["map"].values)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    assert found.attrs["dtype"] == "float32"
    model = load_model("swin_nano", device="cpu").to(torch.bfloat16)
    result = receptive_field(model, load_image("coffee", 64))
    assert result.attrs["backend"] == "cpu"
    assert float(result["map"].sum()) == pytest.approx(1)


def test_64_bits_may_be_asked_for(x):
    single, double = (receptive_field(convolutions(), x, dtype=dtype)["map"].values for dtype in ("float32", "float64"))
    assert not np.array_equal(single, double)
    assert single == pytest.approx(double, abs=1e-6 * double.max())
    model = load_model("gspn_nano", device="cpu")
    assert receptive_field(model, "brick", size=32, dtype="float64").attrs["backend"] == "reference"
    assert next(model.parameters()).dtype == torch.float32


class Without(nn.Module):
    """A map that does not depend on the picture: `detached` cut off from it, `constant` made of other numbers."""

    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(4, 5, 6))

    def forward(self, x):
        return x[:, :, :5, :6].detach() if self.how == "detached" else self.weight.expand(len(x), -1, -1, -1)


@pytest.mark.parametrize("how", ["detached", "constant"])
def test_a_unit_that_the_picture_does_not_move_has_an_empty_map_and_says_so(x, how):
    result = receptive_field(Without(how), x, unit="1x2")
    assert not result["map"].any()
    assert int(result["count"]) == 2
    assert result.attrs["gradient_mass"] == [0, 0]
    assert "zero everywhere: its value does not depend on the picture" in result.attrs["note"]
    for name in ("r", "r_ranked", "share_square", "share_ranked", "share_radial", "centre_of_mass", "sigma_major"):
        assert np.isnan(result[name]).all(), name


def test_a_sum_that_a_norm_keeps_constant_counts_as_zero(x):
    net = nn.Sequential(convolutions(), nn.GroupNorm(1, 6))
    over_positions = receptive_field(net, x, channels="sum")  # normalised over positions too: not constant
    assert over_positions["map"].any()

    class ChannelNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net[1] = ChannelNorm(6)
    for channels in ("sum", "mean"):
        result = receptive_field(net, x, channels=channels)
        assert not result["map"].any()
        assert "constant but for rounding" in result.attrs["note"]
    other = receptive_field(net, x)
    assert other["map"].any()
    assert other.attrs["note"] == ""
