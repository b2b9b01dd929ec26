"""The curves and the difference of receptive fields: percentages, lines that anyone can tell apart, patches."""

import holoviews as hv
import numpy as np
import pytest

from workbench.plots.receptive_field_curves import (
    LINES,
    UNIFORM,
    curves_caption,
    line_style,
    ranked_data,
    ranked_figure,
    ranked_marks,
    ranked_patches,
    square_data,
    square_figure,
    square_marks,
    square_patches,
)
from workbench.plots.receptive_field_difference import (
    LEAST,
    PARTS,
    difference,
    difference_caption,
    difference_figure,
    difference_patches,
    difference_range,
    moved_mass,
)
from workbench.plots.receptive_field_parts import block_areas, contour_side
from workbench.plots.receptive_field_words import names

#: The page's background, light and dark.
PAGES = ("#ffffff", "#121212")


def sources(figure):
    """The columns of every element of a figure, in order."""
    return [renderer.data_source.data for renderer in hv.render(figure, backend="bokeh").renderers]


def luminance(colour):
    """The relative luminance of WCAG 2 of a colour such as "#0072b2"."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.fixture
def three(blob, field_of):
    """Results of three models on pictures of two shapes; the last does not reach 99 % in a square."""
    return [
        field_of(blob((40, 60), (15, 37), (4, 4)), model="a"),
        field_of(blob((48, 48), (18, 30), (7, 3), 30), model="b"),
        field_of(np.ones((48, 48)), model="c"),
    ]


def test_the_squares_line_is_in_percent_of_the_shorter_side_and_ends_where_the_square_does(three):
    for result in three:
        data = square_data(result)
        assert len(data["side"]) == result.sizes["side"]
        np.testing.assert_allclose(data["side"], 100 * result["side"] / min(result["map"].shape))
        np.testing.assert_allclose(data["mass"], 100 * result["share_square"])
        assert data["side"][-1] <= 100


def test_of_several_units_each_line_ends_with_its_own_square(blob, field_of):
    result = field_of([blob((40, 40), c, (4, 4)) for c in ((5, 5), (25, 25))], [(0, 0), (2, 2)])
    assert result["share_square"].isnull().any()
    longest = square_data(result.isel(unit=1))
    assert len(square_data(result.isel(unit=0))["side"]) < len(longest["side"]) == result.sizes["side"]


def test_the_ranked_line_starts_where_a_logarithm_can(three):
    for result in three:
        data = ranked_data(result)
        assert data["pixels"][[0, -1]] == pytest.approx((0.1, 100))
        assert data["mass"][-1] == pytest.approx(100)
    np.testing.assert_allclose(data["pixels"], data["mass"])  # the same mass on every pixel


@pytest.mark.parametrize(("line", "marks"), [(square_data, square_marks), (ranked_data, ranked_marks)])
def test_marks_lie_on_their_line_at_the_thresholds_that_are_reached(line, marks, three):
    for result in three:
        (_, xs), (_, mass) = line(result).items()
        found_x, found_mass = marks(result).values()
        assert set(found_mass) <= {20, 30, 50, 99}
        np.testing.assert_allclose(np.interp(found_x, xs, mass), found_mass, rtol=0.02)
    assert 99 not in square_marks(three[2])["mass"]
    assert list(square_marks(three[0])["mass"]) == [20, 30, 50, 99]


@pytest.mark.parametrize(("figure", "given"), [(square_figure, square_patches), (ranked_figure, ranked_patches)])
def test_every_line_and_its_marks_have_the_columns_that_a_patch_gives(figure, given, three):
    elements, drawn = list(figure(three)), sources(figure(three))
    assert len(given(three)) == 6
    for columns, data in zip(given(three), drawn, strict=False):
        for name, values in columns.items():
            np.testing.assert_array_equal(data[name], values)
    assert (
        [element.label for element in elements[:6:2]] == [element.label for element in elements[1:6:2]] == names(three)
    )
    assert {element.label for element in elements[6:]} == {"the same mass on every pixel"}


def test_the_line_of_an_even_map_is_drawn_for_each_shape_of_the_pictures(three):
    assert len(list(square_figure(three))) == 8
    assert len(list(square_figure(three[1:]))) == 5
    even = square_data(three[2])
    drawn = sources(square_figure(three[1:]))[-1]
    np.testing.assert_allclose(np.interp(even["side"], drawn["side"], drawn["mass"]), even["mass"], atol=0.02)


def test_no_two_lines_look_alike_and_none_is_told_by_colour_alone():
    looks = [line_style(n) for n in range(len(LINES) ** 2)]
    assert len(set(looks)) == len(looks)
    assert len({(line.dash, line.marker) for line in looks}) == len(looks)
    assert len({line.dash for line in LINES}) == len({line.marker for line in LINES}) == len(LINES)


@pytest.mark.parametrize("colour", sorted({line.colour for line in (*LINES, UNIFORM)}))
def test_every_line_has_a_contrast_of_3_to_1_on_a_light_and_on_a_dark_page(colour):
    for page in PAGES:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_caption_of_the_curves_says_what_is_common(three):
    text = curves_caption(three)
    for words in (
        "centred on the unit's cell",
        "marks at 20, 30, 50, 99 %",
        "random weights, seed 3",
        "mean over 1 image",
    ):
        assert words in text
    assert "pixels;" not in text  # sizes differ, so the names have them
    assert "48 x 48 pixels" in names(three)[1]


# The difference


@pytest.fixture
def pair(blob, field_of):
    """Two results of one size whose maps overlap in part."""
    size = (70, 50)
    return (
        field_of(blob(size, (20, 20), (5, 3)), unit=(1, 1), model="a"),
        field_of(blob(size, (30, 30), (4, 4)), unit=(2, 2), model="b"),
    )


def test_a_difference_keeps_its_sum_changes_its_sign_with_its_order_and_is_0_of_equals(pair):
    a, b = pair
    np.testing.assert_allclose(difference(a, b), -difference(b, a))
    assert difference(a, b).shape == (18, 13)
    areas = block_areas((70, 50), contour_side((70, 50)))
    assert (difference(a, b) * areas).sum() == pytest.approx(0, abs=1e-12)
    assert not difference(a, a).any()
    assert difference_range(a, a) == (-1, 1)
    low, top = difference_range(a, b)
    assert low == -top < 0
    assert (np.abs(difference(a, b)) > top).any()


def test_the_moved_mass_is_0_of_equals_and_1_of_maps_that_do_not_meet(pair, field_of):
    left, right = np.zeros((20, 20)), np.zeros((20, 20))
    left[:, :10], right[:, 10:] = 1, 1
    assert moved_mass(field_of(left), field_of(right)) == pytest.approx(1)
    assert moved_mass(*pair[:1], *pair[:1]) == 0
    assert 0 < moved_mass(*pair) < 1


def test_pictures_of_two_sizes_have_no_difference(pair, speckled, field_of):
    other = field_of(speckled((50, 70)))
    for function in (difference, difference_range, difference_patches, moved_mass):
        with pytest.raises(ValueError, match=r"^A difference of two .* one size; got 70 x 50 and 50 x 70 pixels\.$"):
            function(pair[0], other)


def test_every_part_of_a_difference_has_the_columns_that_a_patch_gives(pair):
    for a, b in (pair, pair[::-1]):
        limits = difference_range(a, b)
        drawn = sources(difference_figure(a, b, None, limits))
        given = difference_patches(a, b)
        assert set(given) == set(PARTS) - {"picture"}
        for name, columns in given.items():
            for column, values in columns.items():
                assert len(values) == len(drawn[PARTS[name]][column])
                for one, other in zip(values, drawn[PARTS[name]][column], strict=True):
                    np.testing.assert_array_equal(one, other)
        values = np.flipud(given["map"]["image"][0])
        assert (np.abs(values[np.isfinite(values)]) > LEAST * limits[1] * (1 - 1e-6)).all()
        np.testing.assert_allclose(values[np.isfinite(values)], difference(a, b)[np.isfinite(values)], rtol=1e-6)
    assert given["cell"] != given["other_cell"]


def test_a_difference_says_which_is_the_first_and_how_much_mass_lies_elsewhere(pair):
    limits = difference_range(*pair)
    text = difference_caption(*pair, limits)
    for words in (
        f"{100 * moved_mass(*pair):.3g} % of the mass lies on other blocks", "a, unit (1, 1) of 4 x 4 cells minus b,",
        "red: the first has more", "as means of 4 x 4 pixels", f"linear colours to {limits[1]:.2g}, symmetric",
        "neither moved", "70 x 50 pixels", "random weights",
    ):  # fmt: skip
        assert words in text
    title = hv.render(difference_figure(*pair, None, limits), backend="bokeh").title.text
    assert title == "a, unit (1, 1) of 4 x 4 cells minus b, unit (2, 2) of 4 x 4 cells\n" + (
        "stage1.block2, random weights, seed 3, 70 x 50 pixels"
    )
