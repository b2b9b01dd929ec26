"""The figures of a model's time layer by layer: their numbers, partial results, captions."""

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

import workbench.plots  # noqa: F401  (sets the Bokeh backend)
from workbench.plots.affinity import DECADES
from workbench.plots.latency_layers import (
    ACROSS,
    ELSE,
    PARTS,
    affinity_strip,
    bar_data,
    bar_names,
    bars_caption,
    layer_bars,
    roof_data,
    roofline,
    roofline_caption,
    roofline_data,
    spread_data,
    strip_array,
    strip_caption,
    strip_limits,
    strip_maps,
    strip_places,
)

NOT_YET = "not measured yet"


def result_of(grids=((4, 6), (4, 6), (2, 3)), covered=None, measured=None, mixing=1.0, layer=3.0, rest=6.0, **attrs):
    """A result with every mixing step of `mixing` ms and every layer of `layer` ms; `measured` layers are there."""
    count, measured = len(grids), len(grids) if measured is None else measured
    covered, known = covered or grids, np.arange(count) < (len(grids) if measured is None else measured)
    rng = np.random.default_rng(5)
    both = np.where(known[:, None], 1e-3 * np.array([[mixing, layer]]), np.nan)
    maps = np.full((count, *np.array(grids).max(0)), np.nan, np.float32)
    for one, (rows, cols) in zip(maps[:measured], grids, strict=False):
        one[:rows, :cols] = rng.random((rows, cols)) + 0.1
        one[0, 0] = 0
    over = ("layer", "part")
    complete = bool(known.all())
    known_attrs = {
        "complete": complete, "note": "", "image": "coffee", "direction": "forward", "batch": 1, "dtype": "float32",
        "backend": "cpu", "method": "torch.utils.benchmark", "device": "CPU, 2 threads", "processor": "some CPU",
        "spec": {"query": (0.5, 0.25)},
    }  # fmt: skip
    middle = [(rows // 2, cols // 4) for rows, cols in covered]
    return xr.Dataset(
        {
            "median": (over, both), "p20": (over, 0.9 * both), "p80": (over, 1.2 * both),
            "floor": (over, 0.5 * both), "bytes": (over, np.where(known[:, None], 1e6, np.nan) * [1, 2]),
            "flops": (over, np.where(known[:, None], 2e6, np.nan) * [1, 2]),
            "noisy": (over, np.zeros((count, 2), bool)),
            "model_median": 1e-3 * (count * layer + rest), "model_noisy": False,
            "rest": 1e-3 * rest if complete else np.nan, "bandwidth": 1e10, "matmul": 1e11,
            "kind": ("layer", ["propagation", *["attention"] * (count - 1)]),
            **{name: ("layer", [g[i] for g in grids]) for i, name in enumerate(("rows", "cols"))},
            **{name: ("layer", [g[i] for g in covered]) for i, name in enumerate(("covered_rows", "covered_cols"))},
            "position": (("layer", "axis"), np.where(known[:, None], middle, -1)),
            "affinity": (("layer", "row", "col"), maps),
            "affinity_note": ("layer", np.where(known, "", NOT_YET).astype(object)),
            "aggregation": ("layer", np.where(known, "mean of |.| over channels", "").astype(object)),
        },
        coords={"layer": [f"stage1.block{i + 1}" for i in range(count)], "part": ["mixing", "layer"]},
        attrs=known_attrs | attrs,
    )  # fmt: skip


def rendered(figure):
    return hv.render(figure, backend="bokeh")


# Bars


def test_the_bars_are_as_long_as_the_medians_and_together_as_long_as_the_model():
    data = bar_data(result_of())
    assert list(data) == list(PARTS)
    np.testing.assert_allclose(data["mixing step"]["ms"], [1, 1, 1])
    np.testing.assert_allclose(data["rest of the mixing layer"]["left"], [1, 1, 1])
    np.testing.assert_allclose(data["rest of the mixing layer"]["right"], [3, 3, 3])
    np.testing.assert_allclose(data[ELSE]["ms"], [6])
    np.testing.assert_allclose(sum(columns["ms"].sum() for columns in data.values()), 15)
    np.testing.assert_allclose(sum(columns["share"].sum() for columns in data.values()), 1)


def test_bars_follow_the_forward_pass_downwards_and_everything_else_is_last():
    result = result_of()
    middles = [(columns["bottom"] + columns["top"]) / 2 for columns in bar_data(result).values()]
    np.testing.assert_allclose(middles[0], [0, -1, -2])
    np.testing.assert_allclose(middles[2], [-3])
    assert bar_names(result) == [(0, "stage1.block1"), (-1, "stage1.block2"), (-2, "stage1.block3"), (-3, ELSE)]


def test_the_lines_of_a_bar_go_from_p20_to_p80_of_its_layer():
    data = spread_data(result_of())
    np.testing.assert_allclose(data["x0"], 2.7)
    np.testing.assert_allclose(data["x1"], 3.6)


def test_a_noisy_layer_says_so_at_its_bar():
    result = result_of()
    result["noisy"][1, 0] = True
    assert [name for _, name in bar_names(result)][:2] == ["stage1.block1", "stage1.block2, noisy"]


def test_a_partial_result_has_the_bars_of_its_layers_and_no_rest():
    data = bar_data(result_of(measured=1))
    assert [len(columns["left"]) for columns in data.values()] == [1, 1, 0]
    assert len(spread_data(result_of(measured=1))["x0"]) == 1


def test_a_layer_faster_than_its_mixing_step_and_a_negative_rest_are_no_boxes_to_the_left():
    data = bar_data(result_of(mixing=3.0, layer=2.0, rest=-1.0))
    for columns in data.values():
        assert (columns["right"] >= columns["left"]).all()
    np.testing.assert_allclose(data["rest of the mixing layer"]["ms"], 0)
    np.testing.assert_allclose(data[ELSE]["ms"], 0)


# Roofline


def test_a_dot_lies_at_the_operations_a_byte_and_a_second_of_its_mixing_step():
    data = roofline_data(result_of())
    assert list(data) == ["propagation", "attention"]
    assert list(data["attention"]["layer"]) == ["stage1.block2", "stage1.block3"]
    np.testing.assert_allclose(data["attention"]["intensity"], 2)
    np.testing.assert_allclose(data["propagation"]["reached"], 2e9)
    np.testing.assert_allclose(data["propagation"]["share"], 0.5)


def test_the_roof_bends_where_the_measured_rates_meet_and_spans_all_dots():
    roof = roof_data(result_of())
    np.testing.assert_allclose(roof["intensity"][1], 10)
    np.testing.assert_allclose(roof["reached"][1:], 1e11)
    np.testing.assert_allclose(roof["reached"][0], 1e10 * roof["intensity"][0])
    assert roof["intensity"][0] < 2 < roof["intensity"][2]


# Affinity pictures


def test_maps_are_in_units_of_an_even_share():
    result = result_of()
    for i, values in enumerate(strip_maps(result)):
        assert values.shape == (int(result["rows"][i]), int(result["cols"][i]))
        assert np.isnan(values[0, 0])  # carries nothing
        np.testing.assert_allclose(np.nansum(values), values.size, rtol=1e-5)


def test_every_picture_fills_its_place_whatever_its_grid():
    result = result_of()
    (height, width), places = strip_places(result)
    assert (height, width) == (4, 6)
    array, coarse = strip_array(result), strip_maps(result)[2]
    top, left = places[2]
    np.testing.assert_array_equal(
        array[top : top + height, left : left + width], coarse.repeat(2, axis=0).repeat(2, axis=1)
    )


def test_pictures_go_on_in_a_new_row_after_so_many():
    result = result_of(grids=((3, 3),) * (ACROSS + 1))
    _, places = strip_places(result)
    assert {top for top, _ in places[:ACROSS]} == {0}
    assert places[ACROSS][0] > 0
    assert places[ACROSS][1] == 0
    assert strip_array(result).shape[0] == places[ACROSS][0] + 3


def test_all_pictures_share_one_range_with_the_decades_of_other_affinities():
    result = result_of()
    low, high = strip_limits(result)
    assert high == pytest.approx(max(float(np.nanmax(values)) for values in strip_maps(result)))
    assert low == pytest.approx(high / 10**DECADES)


def test_tokens_of_padding_are_left_out_but_count_for_the_even_share():
    result = result_of(grids=((5, 5),), covered=((4, 4),))
    (values,) = strip_maps(result)
    assert values.shape == (4, 4)
    assert np.nansum(values) < 25
    assert "tokens of padding left out" in strip_caption(result)


# Figures and captions


@pytest.mark.parametrize("measured", [0, 1, 3])
@pytest.mark.parametrize("draw", [layer_bars, roofline, affinity_strip])
def test_every_figure_is_drawn_of_whole_and_partial_results(draw, measured):
    assert rendered(draw(result_of(measured=measured))).renderers


def test_the_bars_have_a_legend_of_their_parts_and_names_on_the_axis():
    figure = rendered(layer_bars(result_of()))
    assert [item.label.value for legend in figure.legend for item in legend.items] == list(PARTS)
    assert ELSE in figure.yaxis.major_label_overrides.values()


def test_the_photograph_lies_under_every_picture_and_nothing_between_them():
    photograph = np.full((8, 12, 3), 200, np.uint8)
    result = result_of()
    for figure, colour in ((affinity_strip(result, photograph), 200), (affinity_strip(result), 128)):
        behind, heat = list(figure)[:2]
        red, alpha = (behind.dimension_values(i, flat=False) for i in (2, 5))
        assert set(np.unique(red[alpha > 0.5])) <= {colour, colour / 255}
        assert 0 < (alpha > 0.5).mean() < 1
        assert behind.bounds.lbrt() == heat.bounds.lbrt()


def test_the_querys_cell_is_outlined_in_every_picture_that_has_one():
    result = result_of()
    result["affinity_note"][1] = "reads channels, not positions"
    boxes = list(affinity_strip(result))[2].data
    assert len(boxes) == 2
    left, bottom, right, top = (float(boxes.iloc[1, i]) for i in range(4))
    (_, (_, _, (down, across))) = strip_places(result)
    # of the 2 x 3 grid on 4 x 6 units: row 1, column 0
    assert (left, bottom, right, top) == (across, -(down + 4), across + 2, -(down + 2))


def test_captions_name_the_machine_the_rest_and_the_aggregation():
    result = result_of(note="the layers took longer")
    bars, roof, strip = bars_caption(result), roofline_caption(result), strip_caption(result)
    for words in (bars, roof):
        assert "forward, batch 1, float32, cpu backend, torch.utils.benchmark, CPU, 2 threads (some CPU)" in words
    assert "the model's median, 15 ms" in bars
    assert "the layers took longer." in bars
    assert "copies at 10 GB/s" in roof
    assert "products of matrices at 100 Gflop/s" in roof
    assert "at 50% of the height and 25% of the width" in strip
    assert "mean of |.| over channels" in strip
    assert "padding" not in strip
    assert "nothing measured yet" in strip_caption(result_of(measured=0))
