"""The figure of an attribution: its colours follow the sign, its words say what was explained and what is missing."""

from dataclasses import asdict

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from workbench.analysis.attribution import METHODS, SIGNS, AttributionSpec, attribute, displayed
from workbench.images import load_image
from workbench.models import load_model
from workbench.plots.affinity import DIVERGING, SEQUENTIAL
from workbench.plots.attribution import (
    PARTS,
    attribution_figure,
    caption,
    cell_data,
    colour_range,
    map_data,
    title,
)
from workbench.plots.receptive_field_parts import block_areas, block_side

SIZE = (20, 30)


def result_of(method="integrated_gradients", size=SIZE, seed=0, warning="", baseline_score=None, numbers=None, **spec):
    """A result in the layout of `attribute`, with random attributions."""
    values = np.random.default_rng(seed).normal(size=(3, *size)).astype(np.float32)
    data = {"attribution": (("colour", "row", "col"), values), "score": 2.5}
    if method == "layer_grad_cam":
        data["attribution"] = (("row", "col"), values[0])
    if baseline_score is not None:
        delta = 0.02
        data |= {"baseline_score": baseline_score, "convergence_delta": delta}
        data["completeness_gap"] = abs(delta / (2.5 - baseline_score))
    whole = AttributionSpec(method, size, **({"target": 7} if "unit" not in spec else {}) | spec)
    attrs = {
        "spec": asdict(whole), "model": "toy", "weights": "random", "seed": 4, "weights_sha256": "0f" * 32,
        "image": "coffee", "backend": "cpu", "dtype": "float32", "device": "cpu", "captum": "0.9.0",
        "explains": "class 7, the one with the highest score", "warning": warning,
    }  # fmt: skip
    return xr.Dataset(data, attrs=attrs | (numbers or {}))


def options(element, group):
    return hv.Store.lookup_options("bokeh", element, group).kwargs


@pytest.mark.parametrize("sign", SIGNS)
def test_signs_get_a_diverging_map_around_0_and_magnitudes_a_sequential_one_from_0(sign):
    result = result_of()
    shown = displayed(result["attribution"], sign).values
    heat = list(attribution_figure(result, shown, None, sign))[PARTS["map"]]
    low, top = options(heat, "plot")["clim"]
    assert (low, top) == colour_range(sign)
    assert shown.min() >= low
    assert shown.max() == top
    cmap = options(heat, "style")["cmap"]
    assert cmap == (DIVERGING if sign == "all" else SEQUENTIAL)
    assert low == (-top if sign == "all" else 0)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (600, 515)], ids=str)
def test_the_map_holds_what_is_displayed_and_the_attributions_summed_over_colours(size):
    result = result_of(size=size)
    shown = displayed(result["attribution"], "all").values
    columns = map_data(result, shown)
    drawn, raw = (np.flipud(columns[name][0]) for name in ("image", "attribution"))
    side = block_side(size)
    np.testing.assert_allclose((drawn * block_areas(size, side)).sum(), shown.sum(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose((raw * block_areas(size, side)).sum(), result["attribution"].sum(), rtol=1e-3, atol=1e-3)
    if side == 1:
        np.testing.assert_allclose(drawn, shown)
        np.testing.assert_allclose(raw, result["attribution"].sum("colour"), atol=1e-6)


def test_a_map_without_colours_is_drawn_as_it_is():
    result = result_of("layer_grad_cam", cam_layer="stage2")
    columns = map_data(result, displayed(result["attribution"], "positive").values)
    np.testing.assert_array_equal(np.flipud(columns["attribution"][0]), result["attribution"])


def test_the_figure_blends_the_map_over_the_picture_and_a_patch_has_its_columns():
    results = [result_of(seed=seed) for seed in (1, 2)]
    picture = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)
    for result in results:
        shown = displayed(result["attribution"]).values
        figure = attribution_figure(result, shown, picture, opacity=0.3)
        photo, heat, cell = figure
        assert photo.bounds.lbrt() == heat.bounds.lbrt() == (0, -20, 30, 0)
        assert options(heat, "style")["alpha"] == 0.3
        assert len(cell) == 0
        drawn = hv.render(figure, backend="bokeh")
        source = drawn.renderers[PARTS["map"]].data_source.data
        for name, (values,) in map_data(result, shown).items():
            np.testing.assert_array_equal(source[name][0], values)
        assert drawn.title.text == title(result)


def test_the_cell_of_an_explained_unit_is_outlined_where_its_grid_is_known():
    result = result_of("neuron_gradient", unit=(1, 2), layer="stage2.block1")
    assert cell_data(result, (4, 5)) == {"left": [12], "right": [18], "bottom": [-10], "top": [-5]}
    assert cell_data(result, None)["left"] == []
    assert cell_data(result_of(), (4, 5))["left"] == []
    cell = list(attribution_figure(result, np.zeros(SIZE), None, grid=(4, 5)))[PARTS["cell"]]
    assert [tuple(box) for box in cell.array()] == [(12, -10, 18, -5)]


def test_the_title_names_model_method_weights_and_what_is_explained():
    assert title(result_of("occlusion")) == "toy  Occlusion  (random weights, seed 4)\nclass 7"
    unit = result_of("neuron_gradient", unit=(1, 2), layer="stage2.block1", channel=5)
    assert title(unit).endswith("\nunit (1, 2) of stage2.block1, channel 5")


def test_the_caption_says_method_target_scores_options_colours_and_where_it_was_computed():
    result = result_of(
        baseline_score=0.5, baseline="blurred", blur=2.5, steps=64, tolerance=0.005, limit=512, batch=8,
        numbers={"steps": 80, "pieces": 10},
    )  # fmt: skip
    text = caption(result, "all", 2.0)
    for words in (
        METHODS["integrated_gradients"].words, METHODS["integrated_gradients"].source,
        "explains class 7, the one with the highest score", "score 2.5; 0.5 at the baseline",
        "under a Gaussian blur of 2.5 pixels", "steps 64, tolerance 0.005, limit 512",
        "80 gradients on 10 pieces of the path", "sum to 2.02, the score changes by 2: off by 0.02, 1 % of the change",
        "summed over the colours, with sign", "red positive and blue negative", "98 % of their sum",
        "20 x 30 pixels of coffee", "random weights, seed 4", "SHA-256 0f0f0f0f0f0f", "cpu backend, float32, cpu",
        "Captum 0.9.0",
    ):  # fmt: skip
        assert words in text
    assert "batch" not in text


@pytest.mark.parametrize("sign", [sign for sign in SIGNS if sign != "all"])
def test_the_caption_of_one_sign_says_which_and_how_much_is_cut(sign):
    text = caption(result_of("saliency", absolute=False), sign, 10)
    assert f", {SIGNS[sign]}; linear colours;" in text
    assert "hold 90 % of their sum" in text
    assert "absolute False" in text
    assert "baseline" not in text
    assert "red positive" not in text


def test_a_warning_of_the_method_ends_the_caption():
    warning = "The attributions miss the change of the score."
    assert caption(result_of(warning=warning), "all", 2).endswith(f". {warning}")
    assert "map of stage2" in caption(result_of("layer_grad_cam", cam_layer="stage2"), "positive", 2)


@pytest.mark.parametrize("given", [{"method": "integrated_gradients", "steps": 8}, {"method": "layer_grad_cam"}])
def test_a_result_of_a_real_model_is_drawn(given):
    image = load_image("coffee", (32, 48))
    result = attribute(load_model("swin_nano"), image, **given)
    shown = displayed(result["attribution"], "all").values
    drawn = hv.render(attribution_figure(result, shown, image.rgb, "all"), backend="bokeh")
    np.testing.assert_allclose(np.flipud(drawn.renderers[PARTS["map"]].data_source.data["image"][0]), shown)
    text = caption(result, "all", 2)
    assert result.attrs["explains"] in text
    assert ("off by" in text) == ("completeness_gap" in result)
