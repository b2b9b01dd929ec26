"""Every method on small models whose attributions are known on paper, and how attributions are brought to -1..1."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from captum.attr import visualization
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import nn

from workbench.analysis.attribution import BASELINES, METHODS, NOISES, RULED, SIGNS, attribute, displayed, refusal
from workbench.analysis.attribution_baselines import baseline_of
from workbench.analysis.attribution_result import warning
from workbench.images import MEAN, STD

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")

ROWS, COLS, CLASSES = 6, 9, 4


@pytest.fixture
def x():
    return torch.randn(1, 3, ROWS, COLS)


@pytest.fixture
def linear():
    """A model with logits W x + b."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * ROWS * COLS, CLASSES))


def weight_of(model, target):
    return model[1].weight[target].detach().view(3, ROWS, COLS).double()


def values(result):
    return torch.from_numpy(result["attribution"].values)


@pytest.mark.parametrize("target", range(CLASSES))
def test_the_saliency_of_a_linear_model_is_the_magnitude_of_its_weights(linear, x, target, agree):
    agree(values(attribute(linear, x, "saliency", target)), weight_of(linear, target).abs(), 1)
    agree(values(attribute(linear, x, "saliency", target, absolute=False)), weight_of(linear, target), 1)


def test_without_a_target_the_class_with_the_highest_score_is_explained(linear, x, agree):
    logits = linear(x)[0].detach()
    result = attribute(linear, x, "saliency")
    assert result.attrs["spec"]["target"] == int(logits.argmax())
    assert result.attrs["explains"] == f"class {int(logits.argmax())}, the one with the highest score"
    assert float(result["score"]) == pytest.approx(float(logits.max()), rel=1e-6)
    agree(values(result), weight_of(linear, int(logits.argmax())).abs(), 1)


def test_input_times_gradient_of_a_linear_model_is_weight_times_input(linear, x, agree):
    agree(values(attribute(linear, x, "input_x_gradient", 1)), weight_of(linear, 1) * x[0].double(), 2)


@pytest.mark.parametrize("baseline", BASELINES)
def test_integrated_gradients_of_a_linear_model_are_weight_times_difference_and_complete(linear, x, baseline, agree):
    result = attribute(linear, x, "integrated_gradients", 2, baseline=baseline)
    start = baseline_of(x, baseline, result.attrs["spec"]["blur"])
    agree(values(result), weight_of(linear, 2) * (x - start)[0].double(), 16)
    assert float(result["completeness_gap"]) < 1e-4
    assert float(result["baseline_score"]) == pytest.approx(float(linear(start)[0, 2].detach()), rel=1e-4, abs=1e-5)
    total = float(result["attribution"].sum()) - float(result["score"] - result["baseline_score"])
    assert float(result["convergence_delta"]) == pytest.approx(total, abs=1e-5)
    assert (result.attrs["steps"], result.attrs["warning"]) == (64, "")


class Ridge(nn.Module):
    """One score, g(w . x): the gradient always points along w, so that IG = w (x - x0) change / (w . (x - x0))."""

    def __init__(self, curve):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, ROWS, COLS) / 10)
        self.curve = curve

    def forward(self, x):
        return self.curve((x * self.weight).sum((1, 2, 3))).unsqueeze(1)


def jump(x, steepness):
    """A ridge whose score rises from 0 to 1 at 0.37 of the path from 0 to x, on about 4 / steepness of it."""
    ridge = Ridge(lambda inner: inner)
    total = float(ridge(x).detach())
    ridge.curve = lambda inner: torch.sigmoid(steepness * (inner / total - 0.37))
    return ridge


@pytest.mark.parametrize(("steepness", "more"), [(4, False), (300, True), (10_000, True)])
def test_integrated_gradients_follow_a_score_that_changes_abruptly_on_the_path(x, steepness, more):
    ridge = jump(x, steepness)
    told = []
    result = attribute(
        ridge, x, "integrated_gradients", 0, baseline="zero", progress=lambda *counts: told.append(counts)
    )
    along = (ridge.weight.detach() * x[0]).double()
    change = float(result["score"] - result["baseline_score"])
    assert float(result["completeness_gap"]) < 0.005
    torch.testing.assert_close(values(result).double(), along * change / along.sum(), rtol=0.006, atol=1e-6)
    assert (result.attrs["steps"] > 64) == more
    assert result.attrs["warning"] == ""
    assert told[0] == (1, 74)
    assert any(74 < done < planned for done, planned in told) == more
    assert told[-1] == (result.attrs["passes"],) * 2


def test_a_gap_that_remains_is_pointed_out(x):
    result = attribute(jump(x, 10_000), x, "integrated_gradients", 0, baseline="zero", steps=16, limit=16)
    assert result.attrs["steps"] == 16
    assert float(result["completeness_gap"]) > 0.01
    assert result.attrs["warning"].startswith("The attributions miss the change of the score")


def test_a_picture_that_is_its_own_baseline_has_no_attributions_and_no_gap(linear):
    result = attribute(linear, torch.zeros(1, 3, ROWS, COLS), "integrated_gradients", 0, baseline="zero")
    assert float(abs(result["attribution"]).max()) == 0
    assert float(result["completeness_gap"]) == 0


def test_a_baseline_with_the_same_score_is_said_to_leave_nothing(linear, x):
    flat = torch.full_like(x, 0.3)
    result = attribute(linear, flat, "integrated_gradients", 0, baseline="blurred", blur=2.0)  # the same but rounding
    assert abs(float(result["score"] - result["baseline_score"])) < 1e-5
    told = "there is no change to attribute"
    assert (told in result.attrs["warning"]) == (float(result["completeness_gap"]) > 0.01)
    assert told in warning("deep_lift", {"score": ((), 2.0), "baseline_score": ((), 2.00001)} | gap_of(3.0))
    assert told not in warning("deep_lift", {"score": ((), 2.0), "baseline_score": ((), 2.1)} | gap_of(3.0))


def gap_of(gap):
    return {"attribution": ((), np.zeros(1)), "completeness_gap": ((), gap)}


def test_baselines_are_colours_or_the_blurred_picture(x):
    def shown(name):
        return baseline_of(x, name)[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)

    torch.testing.assert_close(shown("zero"), torch.tensor(MEAN).view(3, 1, 1).expand(3, ROWS, COLS))
    torch.testing.assert_close(shown("black"), torch.zeros(3, ROWS, COLS), atol=1e-6, rtol=0)
    torch.testing.assert_close(shown("white"), torch.ones(3, ROWS, COLS))
    even = torch.full((1, 3, ROWS, COLS), 0.7)
    torch.testing.assert_close(baseline_of(even, "blurred", 2.0), even)
    dot = torch.zeros(1, 3, 41, 31)
    dot[0, 1, 20, 15] = 1
    spread = baseline_of(dot, "blurred", 2.0)[0, 1]
    assert float(spread.sum()) == pytest.approx(1, rel=1e-5)
    assert float(spread[20, 17] / spread[20, 15]) == pytest.approx(math.exp(-0.5), rel=1e-4)
    assert float((spread * (torch.arange(41.0).view(-1, 1) - 20) ** 2).sum()) == pytest.approx(4, rel=0.05)


def test_deep_lift_gives_each_activation_the_slope_between_baseline_and_picture(x, agree):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * ROWS * COLS, 20), nn.ReLU(), nn.Linear(20, CLASSES))
    result = attribute(model, x, "deep_lift", 3)
    first, last = model[1].weight.detach().double(), model[3].weight[3].detach().double()
    start = baseline_of(x, "black")
    bias = model[1].bias.detach().double()
    at, before = (first @ p.flatten().double() + bias for p in (x, start))
    slope = (at.relu() - before.relu()) / (at - before)
    expected = ((last * slope) @ first).view(3, ROWS, COLS) * (x - start)[0].double()
    torch.testing.assert_close(values(result).double(), expected, rtol=1e-4, atol=1e-5)
    assert float(result["completeness_gap"]) < 1e-4
    assert result.attrs["warning"] == ""
    assert not hasattr(model[2], "input")


class Mixed(nn.Module):
    """An activation that DeepLIFT knows, and after it one that is a function; `again` uses the first a second time."""

    def __init__(self, again=False):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(3 * ROWS * COLS, 20), nn.ReLU(), nn.Linear(20, CLASSES)
        self.again = again

    def forward(self, x):
        inner = self.relu(self.first(x.flatten(1)))
        return self.last(self.relu(inner - 0.1) if self.again else F.gelu(5 * inner - 1).square())


def test_deep_lift_says_what_it_misses_where_it_has_no_rule(x):
    result = attribute(Mixed(), x, "deep_lift", 0)
    assert float(result["completeness_gap"]) > 0.01
    assert "non-linearities for which DeepLIFT has no rule" in result.attrs["warning"]


def test_deep_lift_refuses_modules_that_are_used_twice_and_models_that_it_has_no_rule_for(linear, x):
    with pytest.raises(ValueError, match="uses each activation module once"):
        attribute(Mixed(again=True), x, "deep_lift", 0)
    reason = refusal(linear, "deep_lift")
    assert "and Sequential has none of them" in reason
    with pytest.raises(ValueError, match="has none of them"):
        attribute(linear, x, "deep_lift", 0)
    assert refusal(Mixed(), "deep_lift") is None
    assert set(RULED) == set(SUPPORTED_NON_LINEAR)


@pytest.mark.parametrize(("window", "stride"), [((2, 3), (2, 3)), (3, 2), ((6, 9), 1), ((4, 2), (3, 1)), (1, 1)])
@pytest.mark.parametrize("batch", [1, 5])
def test_occluding_a_linear_model_takes_away_the_windows_share(linear, x, window, stride, batch):
    options = {"window": window, "stride": stride, "batch": batch}
    result = attribute(linear, x, "occlusion", 1, baseline="white", **options)
    share = (weight_of(linear, 1) * (x - baseline_of(x, "white"))[0].double()).sum(0)
    (wr, wc), (sr, sc) = (pair if isinstance(pair, tuple) else (pair, pair) for pair in (window, stride))
    total, count = torch.zeros(2, ROWS, COLS, dtype=torch.float64)
    tops, lefts = (range(0, size - w + s, s) for size, w, s in ((ROWS, wr, sr), (COLS, wc, sc)))
    for top in tops:
        for left in lefts:
            place = slice(top, top + wr), slice(left, left + wc)
            total[place] += share[place].sum()
            count[place] += 1
    torch.testing.assert_close(values(result).double(), (total / count).expand(3, -1, -1), rtol=1e-4, atol=1e-5)
    assert result.attrs["windows"] == len(tops) * len(lefts)


def test_smoothgrad_of_a_linear_model_has_no_noise(linear, x, agree):
    w = weight_of(linear, 0)
    agree(values(attribute(linear, x, "noise_tunnel", 0, samples=6)), w, 6)
    agree(values(attribute(linear, x, "noise_tunnel", 0, samples=6, absolute=True)), w.abs(), 6)
    agree(values(attribute(linear, x, "noise_tunnel", 0, samples=6, noise="smoothgrad_sq")), w.square(), 6)
    variance = values(attribute(linear, x, "noise_tunnel", 0, samples=6, noise="vargrad"))
    agree(variance, torch.zeros_like(w), 12, scale=float(w.square().max()))


class Changing(nn.Module):
    """A linear model of 3 (x - 0.5) that changes the tensor it is given."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.sub_(0.5).mul_(3))


@pytest.mark.parametrize(
    "method", ["saliency", "input_x_gradient", "integrated_gradients", "occlusion", "noise_tunnel"]
)
def test_a_model_may_change_the_tensor_that_it_is_given(linear, x, method, agree):
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(3 * ROWS * COLS, CLASSES))
    with torch.no_grad():
        scaled[1].weight.copy_(3 * linear[1].weight)
        scaled[1].bias.copy_(linear[1].bias - 1.5 * linear[1].weight.sum(1))
    given = x.clone()
    found, expected = (attribute(model, x, method, 1) for model in (Changing(linear), scaled))
    agree(values(found), values(expected).double(), 60)
    assert torch.equal(x, given)


class Squares(nn.Module):
    """Half the sum of squares, whose gradient is the picture."""

    def forward(self, x):
        return 0.5 * x.square().sum((1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_noise_is_a_share_of_the_pictures_range_and_comes_from_the_seed(x, noise, batch):
    options = {"samples": 7, "sigma": 0.2, "seed": 5, "batch": batch}
    result = attribute(Squares(), x, "noise_tunnel", 0, noise=noise, **options)
    deviation = 0.2 * float(x.max() - x.min())
    assert result.attrs["noise_deviation"] == pytest.approx(deviation)
    generator = torch.Generator().manual_seed(5)
    noisy = torch.cat([x + deviation * torch.randn(x.shape, generator=generator) for _ in range(7)]).double()
    expected = {"smoothgrad": noisy.mean(0), "smoothgrad_sq": noisy.square().mean(0), "vargrad": noisy.var(0, False)}
    torch.testing.assert_close(values(result).double(), expected[noise], rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    """A convolution, its positive parts as the map of 5 channels, their means classified."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


def test_grad_cam_weights_the_channels_with_the_mean_gradient_of_the_score(x, agree):
    model = Small()
    result = attribute(model, x, "layer_grad_cam", 2, layer="act")
    features = model.act(model.conv(x))[0].detach().double()
    assert features.shape == (5, 3, 5)
    cam = (model.head.weight[2].detach().double().view(5, 1, 1) / 15 * features).sum(0)
    agree(torch.from_numpy(result["layer_attribution"].values), cam, 10)
    assert result["layer_attribution"].dims == ("layer_row", "layer_col")
    large = F.interpolate(cam[None, None], (ROWS, COLS), mode="bilinear")[0, 0]
    agree(torch.from_numpy(result["attribution"].values), large, 10)
    assert result["attribution"].dims == ("row", "col")


def test_grad_cam_of_a_unit_shows_the_map_of_an_earlier_layer(x, agree):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3))
    result = attribute(model, x, "layer_grad_cam", layer="1", unit=(1, 2), channel=1, cam_layer="0")
    features = model[0](x)[0].detach().double()
    weights = model[1].weight[1].detach().double().sum((1, 2)) / (ROWS * COLS)
    agree(torch.from_numpy(result["layer_attribution"].values), (weights.view(4, 1, 1) * features).sum(0), 10)
    with pytest.raises(ValueError, match="shows the map of an earlier layer than '1': give cam_layer"):
        attribute(model, x, "layer_grad_cam", layer="1", unit=(1, 2))
    with pytest.raises(ValueError, match="'1' is not on the way to what is explained: name an earlier layer"):
        attribute(model, x, "layer_grad_cam", layer="0", unit=(1, 2), cam_layer="1")


def placed(kernel, row, col):
    """A kernel (3, 3, 3) of a convolution with stride 2 and padding 1, on the picture of a unit."""
    picture = torch.zeros(3, ROWS + 2, COLS + 2, dtype=torch.float64)
    picture[:, 2 * row : 2 * row + 3, 2 * col : 2 * col + 3] = kernel.detach().double()
    return picture[:, 1:-1, 1:-1]


@pytest.mark.parametrize("unit", [(0, 0), (1, 3), (2, 4), "centre"])
def test_the_gradient_of_a_unit_of_a_convolution_is_its_kernel(x, unit, agree):
    model = Small()
    row, col = (1, 2) if unit == "centre" else unit
    result = attribute(model, x, "neuron_gradient", layer="conv", unit=unit, channel=3)
    agree(values(result), placed(model.conv.weight[3], row, col), 1)
    assert float(result["score"]) == pytest.approx(float(model.conv(x)[0, 3, row, col].detach()), rel=1e-5)
    assert result.attrs["explains"] == f"unit ({row}, {col}) of conv, channel 3"
    positive = model.conv(x)[0, :, row, col] > 0
    summed = attribute(model, x, "neuron_gradient", layer="conv", unit=unit)
    agree(values(summed), placed(model.conv.weight[positive].sum(0), row, col), 5)
    assert "sum of the positive parts" in summed.attrs["explains"]


def test_other_methods_explain_a_unit_as_well(x, agree):
    model, place = Small(), {"layer": "conv", "unit": (1, 1), "channel": 2}
    kernel = placed(model.conv.weight[2], 1, 1)
    agree(values(attribute(model, x, "saliency", **place)), kernel.abs(), 1)
    agree(values(attribute(model, x, "input_x_gradient", **place)), kernel * x[0].double(), 2)
    agree(values(attribute(model, x, "noise_tunnel", samples=3, **place)), kernel, 3)
    change = kernel * (x - baseline_of(x, "black"))[0].double()
    agree(values(attribute(model, x, "integrated_gradients", **place)), change, 16)
    covered = attribute(model, x, "occlusion", window=(ROWS, COLS), baseline="black", **place)
    agree(values(covered), change.sum().expand(3, ROWS, COLS), 60)


def captums(attribution, sign, outlier_perc):
    """What Captum draws, read from its figure."""
    shown = np.moveaxis(attribution, 0, 2) if attribution.ndim == 3 else attribution[..., None]
    figure, _ = visualization.visualize_image_attr(
        shown, method="heat_map", sign=sign, outlier_perc=outlier_perc, use_pyplot=False
    )
    return np.asarray(figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("outlier_perc", [0, 2, 2.5, 30, 99])
@pytest.mark.parametrize("dims", [("colour", "row", "col"), ("row", "col")])
def test_attributions_are_displayed_as_captum_does(sign, outlier_perc, dims):
    values = torch.randn((3, 17, 13)[-len(dims) :]).numpy() ** 3
    shown = displayed(xr.DataArray(values, dims=dims), sign, outlier_perc)
    np.testing.assert_allclose(shown, captums(values, sign, outlier_perc), rtol=1e-5, atol=1e-6)
    assert shown.dims == ("row", "col")
    low = -1 if sign == "all" else 0
    assert low <= float(shown.min()) <= float(shown.max()) <= 1


def test_displaying_nothing_shows_nothing_and_a_wrong_name_or_share_is_refused():
    zero = xr.DataArray(np.zeros((3, 4, 5), np.float32), dims=("colour", "row", "col"))
    for sign in SIGNS:
        assert float(abs(displayed(zero, sign)).max()) == 0
    one = xr.DataArray(np.array([[0.0, -3.0], [0.5, 0.0]]), dims=("row", "col"))
    assert displayed(one, "all", 100).values.tolist() == [[0, -1], [1, 0]]
    with pytest.raises(ValueError, match="no sign named 'positiv'; did you mean positive"):
        displayed(zero, "positiv")
    for share in (-1, 101, "2", math.nan):
        with pytest.raises(ValueError, match="outlier_perc must be a number from 0 to 100"):
            displayed(zero, "all", share)


def test_every_method_says_what_it_is_and_where_it_comes_from():
    for name, method in METHODS.items():
        assert method.title, name
        assert len(method.words) > 10, name
        assert "arXiv" in method.source, name
