"""The map of a receptive field: blocks that keep the mass, regions that hold what they say, honest words, patches."""

import re

import holoviews as hv
import numpy as np
import pytest
from bokeh.models import DataRange1d, HoverTool
from matplotlib.path import Path

from workbench.plots.affinity import PADDING, QUERY
from workbench.plots.receptive_field import (
    DECADES,
    PARTS,
    caption,
    colour_range,
    contour_data,
    line_data,
    map_data,
    map_figure,
    numbers,
    one_unit,
    patches,
    shares,
    title,
)
from workbench.plots.receptive_field_parts import (
    LEAST,
    MOST,
    PATCH,
    PIXELS,
    axes,
    block_areas,
    block_means,
    block_side,
    cell_box,
    contour,
    contour_side,
    held_by_rank,
    labels,
    line_parts,
    outline,
    region,
)

SIZES = [(1, 1), (2, 3), (7, 5), (33, 64), (64, 33), (129, 70), (70, 200)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def inside(lines, points):
    """Whether each point (col, row) lies inside closed lines: inside an odd number of them."""
    count = sum(Path(line).contains_points(points).astype(int) for line in lines)
    return np.zeros(len(points), bool) if isinstance(count, int) else count % 2 == 1


def block_centres(size, side):
    """(col, row) of the centres of all blocks, row by row."""
    rows, cols = ((np.arange(0, n, side) + np.minimum(np.arange(0, n, side) + side, n)) / 2 for n in size)
    return np.stack([np.tile(cols, len(rows)), np.repeat(rows, len(cols))], axis=1)


def sources(figure):
    """The columns of every element of a figure, in order."""
    return [renderer.data_source.data for renderer in hv.render(figure, backend="bokeh").renderers]


def same(columns, data):
    """Whether a source has these columns with these values."""
    for name, values in columns.items():
        pairs = zip(values, data[name], strict=True)
        assert all(np.array_equal(a, b, equal_nan=not isinstance(a, str)) for a, b in pairs), name
    return True


@sizes
@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_the_means_of_blocks_times_their_areas_keep_the_mass_also_at_cut_borders(size, side, speckled):
    values = speckled(size)
    means, areas = block_means(values, side), block_areas(size, side)
    assert means.shape == areas.shape == tuple(-(-n // side) for n in size)
    assert areas.sum() == size[0] * size[1]
    np.testing.assert_allclose((means * areas).sum(), values.sum(), rtol=1e-12)
    np.testing.assert_allclose(means[0, 0], values[:side, :side].mean())
    np.testing.assert_allclose(
        means[-1, -1], values[(size[0] - 1) // side * side :, (size[1] - 1) // side * side :].mean()
    )


def test_blocks_are_the_smallest_with_which_a_map_is_as_small_as_wanted():
    assert [block_side((n, 10), 512) for n in (10, 512, 513, 1024, 1025)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("size", "side"), [((1, 1), 1), ((31, 8), 1), ((64, 64), 4), ((224, 128), 4), ((257, 9), 5), ((1024, 750), 16)]
)
def test_contours_are_drawn_of_blocks_of_a_patch_or_more_but_of_enough_of_them(size, side):
    assert contour_side(size) == max(1, side)
    blocks = -(-max(size) // side)
    assert blocks <= MOST
    assert side == 1 or blocks >= LEAST
    assert side >= PATCH or max(size) < PATCH * LEAST


@sizes
def test_each_block_is_told_what_all_blocks_as_high_hold(size, speckled):
    values, areas = speckled(size) + 0.5, block_areas(size, 1)
    held = held_by_rank(values, areas)
    for place in np.random.default_rng(1).integers(0, values.size, 20):
        assert held.flat[place] == pytest.approx(values[values >= values.flat[place]].sum() / values.sum())
    assert held.max() == pytest.approx(1)


@sizes
@pytest.mark.parametrize("share", [0.3, 0.5, 0.95, 1.0])
def test_a_region_is_the_fewest_of_the_highest_blocks_that_hold_the_share(size, share, speckled):
    values = speckled(size)
    areas = np.random.default_rng(2).integers(1, 4, size)
    found = region(values, areas, share)
    mass = values * areas
    if not values.any():
        assert not found.any()
        return
    assert mass[found].sum() >= share * mass.sum() * (1 - 1e-9)
    assert values[found].min() > values[~found].max(initial=0)
    higher = values > values[found].min()
    assert mass[higher].sum() < share * mass.sum()


@sizes
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_contour_surrounds_the_blocks_of_the_region_and_no_other(size, share, speckled, field_of):
    values = speckled(size, 3) + np.random.default_rng(3).random(size)
    result = field_of(values, (0, 0), (1, 1))
    side = contour_side(size)
    wanted = region(block_means(values, side), block_areas(size, side), share)
    np.testing.assert_array_equal(inside(contour(result, share), block_centres(size, side)), wanted.ravel())
    for line in contour(result, share):
        assert np.array_equal(line[0], line[-1])
        assert (line >= 0).all()
        assert (line <= (size[1], size[0])).all()


def test_a_map_that_is_the_same_everywhere_has_the_border_of_the_picture_as_its_contour(field_of):
    lines = contour(field_of(np.ones((5, 9))), 0.5)
    assert len(lines) == 1
    assert lines[0].min(0).tolist() == [0, 0]
    assert lines[0].max(0).tolist() == [9, 5]


@sizes
def test_an_outline_runs_along_the_border_of_a_mask(size):
    mask = np.random.default_rng(4).random(size) < 0.6
    np.testing.assert_array_equal(inside(outline(mask), block_centres(size, 1)), mask.ravel())
    box = np.zeros((9, 12), bool)
    box[2:5, 3:10] = True
    (line,) = outline(box)
    assert (line.min(0).tolist(), line.max(0).tolist()) == ([3, 2], [10, 5])


@pytest.mark.parametrize("degrees", [-60, -20, 0, 35, 90])
def test_the_axes_lie_along_the_mass_one_standard_deviation_to_each_side_of_its_centre(degrees, blob, field_of):
    major, minor = axes(field_of(blob((161, 201), (80.0, 100.0), (14, 6), degrees)))
    np.testing.assert_allclose(major.mean(0), (100.5, 80.5), atol=1e-6)
    across, down = (major[1] - major[0]) / 2
    assert np.hypot(across, down) == pytest.approx(14, rel=1e-3)
    assert abs(np.sin(np.arctan2(-down, across) - np.radians(degrees))) < 1e-4
    assert np.hypot(*(minor[1] - minor[0])) == pytest.approx(12, rel=1e-3)
    assert abs((major[1] - major[0]) @ (minor[1] - minor[0])) < 1e-6


def test_a_map_that_is_as_wide_everywhere_has_its_axes_along_rows_and_columns(blob, field_of):
    result = field_of(blob((41, 41), (20.0, 20.0), (3, 3)))
    assert np.isnan(result["orientation"])
    major, minor = axes(result)
    assert np.ptp(major, axis=0)[1] == pytest.approx(0)
    assert np.ptp(minor, axis=0)[0] == pytest.approx(0)


@pytest.mark.parametrize(("unit", "grid"), [((0, 0), (4, 4)), ((2, 3), (5, 4)), ((6, 1), (7, 3))])
def test_the_cell_lies_around_the_units_centre(unit, grid, speckled, field_of):
    result = field_of(speckled((28, 30)), unit, grid)
    left, top, right, bottom = cell_box(result)
    row, col = result["unit_centre"].values + 0.5
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((col, row))
    assert (right - left, bottom - top) == pytest.approx((30 / grid[1], 28 / grid[0]))


def theory(size, box):
    mask = np.zeros(size, bool)
    mask[box] = True
    return mask


def test_the_theoretical_field_is_drawn_with_statistics_only_where_they_add_something(speckled, field_of):
    size, box = (20, 30), (slice(4, 9), slice(6, 21))
    mixing = theory(size, box)
    parts = line_parts(field_of(speckled(size), theory=(mixing, mixing)))
    assert parts["statistics"] == []
    assert np.concatenate(parts["field"]).max(0).tolist() == [21, 9]
    parts = line_parts(field_of(speckled(size), theory=(mixing, True)))
    assert np.concatenate(parts["statistics"]).max(0).tolist() == [30, 20]
    assert line_parts(field_of(speckled(size)))["field"] == []


def test_every_kind_of_line_has_a_name_inside_the_picture(blob, field_of):
    for middle in ((2.0, 3.0), (37.0, 57.0), (20.0, 30.0)):
        field = field_of(blob((40, 60), middle, (4, 2)), theory=(theory((40, 60), (slice(9), slice(9))), True))
        named = labels(line_parts(field), (40, 60))
        assert [text for *_, text in named] == ["50 %", "95 %", "theory", "theory, with statistics"]
        assert all(0 <= col <= 54 and 0 <= row <= 38 for col, row, _ in named)


@pytest.mark.parametrize("size", [(7, 5), (64, 33), (600, 1030)], ids=str)
def test_the_image_is_the_share_of_the_mass_per_pixel_and_nothing_where_that_is_0(size, speckled, field_of):
    values = speckled(size)
    values[: size[0] // 2] = 0
    result = field_of(values)
    side = block_side(size)
    image, share, held = (column[0] for column in map_data(result).values())
    means = block_means(values / values.sum(), side)
    np.testing.assert_allclose(np.nan_to_num(image[::-1]), means, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(image[::-1]), means == 0)
    np.testing.assert_array_equal(share, np.nan_to_num(image))
    assert (np.nan_to_num(image[::-1]) * block_areas(size, side)).sum() == pytest.approx(1, rel=1e-5)
    highest = np.nanargmax(image)
    assert held.flat[highest] == held.min()
    assert max(image.shape) <= PIXELS


def test_all_maps_share_one_logarithmic_range(blob, field_of):
    narrow, wide = (field_of(blob((30, 30), (15, 15), (s, s))) for s in (2, 6))
    low, top = colour_range([wide, narrow])
    assert top == np.nanmax(shares(narrow)) > np.nanmax(shares(wide))
    assert top / low == pytest.approx(10**DECADES)
    assert colour_range([narrow, wide], 2) == pytest.approx((top / 100, top))
    assert colour_range([field_of(np.zeros((4, 4)))])[1] == 1


@pytest.fixture
def two(blob, field_of):
    """Results of one model whose maps, fields and lines differ, as while it runs."""
    mixing = [theory((60, 80), (slice(10, 50), slice(n, 70))) for n in (5, 20)]
    centres = (30, 40), (20, 45)
    return [
        field_of(blob((60, 80), c, (9, 4), 30), theory=(m, n == 0), global_by=["a: norm"] * (n == 0))
        for n, (c, m) in enumerate(zip(centres, mixing, strict=True))
    ]


def test_every_part_of_the_figure_has_the_columns_that_a_patch_gives(two):
    for result in two:
        drawn = sources(map_figure(result, None, colour_range(two)))
        given = patches(result)
        assert set(given) == set(PARTS) - {"picture"}
        assert all(same(columns, drawn[PARTS[name]]) for name, columns in given.items())
        assert same(contour_data(result, 0.5), drawn[PARTS["half"]])


def test_what_lies_under_the_lines_are_all_lines(two):
    given = patches(two[0])
    kinds = ("field", "statistics", "most", "half", "axes")
    for axis in ("x", "y"):
        np.testing.assert_array_equal(given["casing"][axis], np.concatenate([given[kind][axis] for kind in kinds]))
    assert all(len(given[kind]["x"]) > 0 for kind in kinds)


def test_lines_are_one_column_with_a_gap_after_each():
    lines = [np.array([[0.0, 1], [2, 3]]), np.array([[4.0, 5]])]
    columns = line_data(lines)
    np.testing.assert_array_equal(columns["x"], [0, 2, np.nan, 4, np.nan])
    np.testing.assert_array_equal(columns["y"], [-1, -3, np.nan, -5, np.nan])
    assert [len(column) for column in line_data([]).values()] == [0, 0]


def test_the_hundreds_of_lines_of_a_noisy_map_are_one_element_for_each_kind(field_of):
    noise = np.random.default_rng(6).random((600, 600)) ** 20
    result = field_of(noise, theory=(noise > 0.5, True))
    assert np.isnan(patches(result)["casing"]["x"]).sum() > 500
    elements = list(map_figure(result, None, (1e-9, 1e-3)))
    assert {type(elements[PARTS[kind]]) for kind in ("casing", "field", "most", "half", "axes")} == {hv.Curve}


def test_the_figure_shows_the_picture_or_a_plain_grey_square_pixels_and_the_one_range(two):
    picture = np.random.default_rng(5).integers(0, 256, (60, 80, 3), np.uint8)
    for given, alpha in ((picture, 0.4), (None, 1)):
        figure = map_figure(two[0], given, (1e-6, 1e-2), opacity=0.4)
        photo, heat = list(figure)[:2]
        assert photo.bounds.lbrt() == heat.bounds.lbrt() == (0, -60, 80, 0)
        assert hv.Store.lookup_options("bokeh", heat, "style").kwargs["alpha"] == alpha
        assert tuple(hv.Store.lookup_options("bokeh", heat, "plot").kwargs["clim"]) == (1e-6, 1e-2)
        colours = np.stack([np.flipud(photo.dimension_values(i, flat=False)) for i in (2, 3, 4)], -1)
        np.testing.assert_array_equal(colours, np.array([[PADDING]]) if given is None else given)
        drawn = hv.render(figure, backend="bokeh")
        assert drawn.match_aspect
        assert isinstance(drawn.x_range, DataRange1d)
        assert drawn.title.text == title(two[0])
    assert hv.Store.lookup_options("bokeh", list(figure)[PARTS["cell"]], "style").kwargs["line_color"] == QUERY


def test_every_number_under_the_pointer_has_the_formatter_that_writes_it(two):
    (tool,) = hv.render(map_figure(two[0], None, (1e-6, 1)), backend="bokeh").select(type=HoverTool)
    custom = re.findall(r"([$@]\S+)\{custom\}", " ".join(value for _, value in tool.tooltips))
    assert set(custom) == set(tool.formatters) == {"$x", "$y", "@{share}"}
    assert [tool.formatters[axis].args["size"] for axis in ("$x", "$y")] == [80, 60]


def test_of_several_units_the_middle_one_is_drawn_unless_another_is_chosen(blob, field_of):
    cells = [(0, 0), (1, 2), (3, 3)]
    result = field_of([blob((16, 24), (4 * r + 2, 6 * c + 3), (3, 2)) for r, c in cells], cells)
    assert "unit (1, 2) of 4 x 4 cells" in title(result)
    assert same(patches(one_unit(result, 1))["map"], patches(result)["map"])
    last = one_unit(result, 2)
    assert "unit (3, 3)" in title(last)
    assert cell_box(last) == (18, 12, 24, 16)
    np.testing.assert_array_equal(np.flipud(map_data(last)["image"][0]), result["map"].values[2].astype(np.float32))
    assert dict(numbers(last)) != dict(numbers(result))


def test_a_map_without_mass_is_drawn_as_nothing_and_says_why(field_of):
    result = field_of(np.zeros((8, 8)))
    given = patches(result)
    assert np.isnan(given["map"]["image"]).all()
    assert all(len(given[kind]["x"]) == 0 for kind in ("casing", "most", "half", "axes"))
    assert "does not depend on the picture" in caption(result, colour_range([result]))
    assert dict(numbers(result))["anisotropy"] == "not defined"
    assert len(sources(map_figure(result, None, (1e-4, 1)))) == len(PARTS)


def test_the_title_names_model_layer_weights_unit_and_size(speckled, field_of):
    assert title(field_of(speckled((12, 20)))) == (
        "toy  stage1.block2  (random weights, seed 3)\nunit (1, 2) of 4 x 4 cells, 12 x 20 pixels"
    )
    assert "(weights trained)" in title(field_of(speckled((12, 20)), weights="trained", seed=None))


def test_the_caption_says_how_the_map_was_made_reduced_drawn_and_computed(speckled, field_of):
    size = (130, 1030)
    result = field_of(
        speckled(size), theory=(theory(size, np.s_[:, :900]), True), global_by=list("abcd"), left_out=2,
        spec={"channels": "channel 5", "gradient": "abs"},
    )  # fmt: skip
    text = caption(result, (1e-8, 1e-4))
    for words in (
        "mean over 1 image without 2 whose gradient was not finite", "value of the unit: channel 5 alone",
        "magnitudes of the gradient", "share of the map's sum per pixel, as means of 3 x 3 pixels",
        "log colours from 1e-08 to 0.0001 over 4 decades, one range for all maps compared", "exactly 0 is not drawn",
        "50 % (solid) and 95 % (dashed) of the mass, as means of 17 x 17 pixels",
        "with (dashed) global statistics (a, b, c and 1 more)", "130 x 1030 pixels", "bicubic", "SHA-256 0f0f0f0f0f0f",
        "cpu backend, float32, cpu",
    ):  # fmt: skip
        assert words in text
    assert "partial" not in text
    assert "outside" not in text


def test_a_partial_result_missing_files_and_mass_outside_the_theory_are_said(speckled, field_of):
    result = field_of(speckled((9, 9)) + 1, theory=(theory((9, 9), np.s_[:4]),) * 2, complete=False)
    result.attrs["bad"] = [("x.png", "It is no image.")]
    text = caption(result, (1e-4, 1))
    assert "partial: mean over 1 image, 1 file could not be read so far" in text
    assert f"{float(result['mass_outside']):.2g} of the mass lies outside it" in text
    assert "statistics" not in text
