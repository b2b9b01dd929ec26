"""The figures and words of the stability laboratory: what is drawn, what is clipped, and what is said about it."""

import holoviews as hv
import numpy as np
import pytest

from workbench.analysis.stability import stability
from workbench.analysis.stability_spec import PRESETS, StabilitySpec
from workbench.plots.stability import (
    NOT_FINITE,
    clipped_shares,
    exposures,
    is_signed,
    packed,
    pictures_figure,
    pixels,
    sums_data,
    weight_image,
    weight_limits,
    weights_figure,
)
from workbench.plots.stability_curves import FLOOR, PANELS, curve_figure, panel_data, panel_limits
from workbench.plots.stability_words import caption, curves_caption, explanation, place, weight_caption


def result_of(preset="GSPN", x=None, **changes):
    return stability(StabilitySpec(**(PRESETS[preset] | {"cross": 9, "length": 14} | changes)), x=x)


def overflow():
    return result_of("Half precision, overflow", gain=3.0)


def drawn(element):
    return hv.render(element, backend="bokeh")


@pytest.mark.parametrize("direction", ["left_right", "top_bottom", "right_left", "bottom_top"])
def test_row_stochastic_gates_leave_a_white_picture_white(direction):
    shape = (9, 14) if direction in ("left_right", "right_left") else (14, 9)
    result = result_of(dtype="float64", direction=direction, lam=0.7, chunk=5, x=np.ones(shape))
    assert exposures(result)[1] == pytest.approx(np.ones((*shape, 3)))
    spn = result_of("SPN", dtype="float64", direction=direction, x=np.ones(shape))
    assert exposures(spn)[1] == pytest.approx(np.ones((*shape, 3)))


def test_what_cannot_be_drawn_is_clipped_counted_and_coloured():
    shown = np.array([[[0.5] * 3, [2.0] * 3], [[-1.0] * 3, [np.inf, 0.0, np.nan]]])
    assert pixels(shown).tolist() == [[[128] * 3, [255] * 3], [[0] * 3, list(NOT_FINITE)]]
    assert clipped_shares(shown) == {"above": 0.25, "below": 0.25, "nonfinite": 0.25}
    assert pixels(exposures(overflow())[1])[4, -1].tolist() == list(NOT_FINITE)


def test_the_patch_of_a_picture_is_what_the_figure_draws():
    result = result_of()
    figure = drawn(pictures_figure(result))
    images = [r.data_source.data["image"][0] for r in figure.renderers if r.glyph.__class__.__name__ == "ImageRGBA"]
    for image, shown in zip(images, exposures(result), strict=True):
        assert np.array_equal(image, packed(pixels(shown)))


@pytest.mark.parametrize(("preset", "signed"), [("GSPN", False), ("Signed tanh", True)])
def test_the_weight_is_drawn_on_a_logarithm_or_about_zero(preset, signed):
    result = result_of(preset, length=6)
    assert is_signed(result) is signed
    low, high = weight_limits(result)
    assert (low == -high) is signed
    image = weight_image(result)
    assert np.isnan(image[result["accumulated"].values == 0]).all()
    assert np.nanmin(image) >= low
    mapper = next(r for r in drawn(weights_figure(result)).renderers if hasattr(r.glyph, "color_mapper"))
    assert mapper.glyph.color_mapper.__class__.__name__ == ("LinearColorMapper" if signed else "LogColorMapper")


def test_the_row_sums_are_steps_beside_their_rows():
    result = result_of()
    steps = sums_data(result)
    assert len(steps["x"]) == len(steps["y"]) == 18
    assert np.ptp(steps["x"]) < 1e-5  # all sums are 1
    assert steps["y"][[0, -1]].tolist() == [0.0, -1.0]


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("preset", ["GSPN", "Signed tanh", "One neighbour", "Half precision, overflow"])
def test_every_panel_holds_its_lines_within_its_axes(panel, preset):
    result = result_of(preset, gain=3.0) if "overflow" in preset else result_of(preset)
    columns = panel_data(result, panel)
    assert len(columns) == len(PANELS[panel].names)
    (left, right), (bottom, top) = panel_limits(result, panel)
    for each in columns:
        y = each["y"][np.isfinite(each["y"])]
        assert each["x"].shape == each["y"].shape
        assert ((each["x"] >= left) & (each["x"] <= right)).all()
        assert ((y >= bottom) & (y <= top)).all()
    figure = drawn(curve_figure(result, panel))
    assert figure.y_scale.__class__.__name__ == ("LogScale" if PANELS[panel].log else "LinearScale")
    assert [item.label.value for item in figure.legend[0].items] == list(PANELS[panel].names)


def test_row_sums_that_are_exact_are_drawn_on_the_lower_edge():
    result = result_of("One neighbour")
    assert (panel_data(result, "sums")[0]["y"] == result.attrs["tolerance"] / FLOOR).all()


def test_two_documents_do_not_share_a_tick_formatter():
    first, second = (drawn(curve_figure(result_of(), "growth")) for _ in range(2))
    assert first.yaxis[0].formatter is not second.yaxis[0].formatter


def test_the_captions_state_how_it_was_computed():
    text = caption(result_of("SPN", dtype="bf16"))
    for words in ("absolute", "1 - sum of the gates", "bfloat16", "reference backend", "cpu", "float64"):
        assert words in text
    assert "magenta: not finite" in caption(overflow())
    assert "it holds" in curves_caption(result_of())
    assert "is not claimed" in curves_caption(overflow())
    assert "log colours" in weight_caption(result_of())
    assert "linear colours about 0" in weight_caption(result_of("Signed tanh"))


def test_the_explanation_says_what_happened():
    line = overflow().attrs["overflow_line"]
    assert f"float16 holds at most 65504; h passed it at line {line}, and " in explanation(overflow())
    assert "Context fades all the same" in explanation(result_of(length=200))
    assert "still have nothing in common" in explanation(result_of("One neighbour"))
    assert "shrinks by 10 % a line" in explanation(result_of("Gain 0.9"))
    assert "Sums of |gates| reach 1.05, more than 1" in explanation(result_of("No normalisation, gain 1.05"))


def test_the_first_pixel_against_a_condition_is_named():
    assert place(result_of(), "stable") == "nowhere"
    assert place(result_of("No normalisation, gain 1.05"), "stable") == "line 1, pixel 1"
    assert place(result_of("One neighbour"), "dense") == "line 13, pixel 0 has not heard all"
