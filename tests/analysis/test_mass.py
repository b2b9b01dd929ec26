"""The numbers of a map of mass are those of closed forms, whatever the map's scale, and honest where there are none."""

import math
import warnings

import numpy as np
import pytest
import xarray as xr

from workbench.analysis.mass import FRACTIONS, THRESHOLDS, cell_centre, measures, replknet_ratio


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def gaussian(size, centre, sigmas, degrees=0.0):
    """A Gaussian whose major axis is turned counter-clockwise on the screen, where rows go down."""
    rows, cols = (np.arange(length) - place for length, place in zip(size, centre, strict=True))
    right, up = cols[None, :], -rows[:, None]
    angle = math.radians(degrees)
    along = (right * math.cos(angle) + up * math.sin(angle)) / sigmas[0]
    across = (up * math.cos(angle) - right * math.sin(angle)) / sigmas[1]
    return np.exp(-(along**2 + across**2) / 2)


def in_square(side, sigma, off=0.0):
    """The mass of a round Gaussian in a square whose centre is `off` away from its own along both axes."""
    ends = ((side / 2 + sign * off) / sigma / math.sqrt(2) for sign in (-1, 1))
    return (sum(math.erf(end) for end in ends) / 2) ** 2


def r_of(result, threshold, name="r"):
    return float(result[name].sel(threshold=threshold))


@pytest.mark.parametrize("degrees", [-75, -45, 0, 30, 60, 90])
def test_a_turned_gaussian_on_a_picture_that_is_not_square_has_its_moments(degrees):
    centre = (82.3, 131.6)
    result = measures(gaussian((181, 257), centre, (13.0, 6.5), degrees), centre)
    assert result["centre_of_mass"].values == pytest.approx(centre, abs=1e-6)
    assert float(result["sigma_major"]) == pytest.approx(13, rel=1e-5)
    assert float(result["sigma_minor"]) == pytest.approx(6.5, rel=1e-5)
    assert float(result["orientation"]) == pytest.approx(degrees, abs=1e-4)
    assert float(result["anisotropy"]) == pytest.approx(0.5, abs=1e-5)


def test_orientation_is_counter_clockwise_on_the_screen_and_90_for_a_column():
    rising = np.fliplr(np.eye(5))  # from the bottom left to the top right
    assert float(measures(rising, (2, 2))["orientation"]) == pytest.approx(45)
    assert float(measures(rising[::-1], (2, 2))["orientation"]) == pytest.approx(-45)
    column = np.zeros((7, 5))
    column[:, 2] = np.random.default_rng(5).random(7)
    assert float(measures(column, (3, 2))["orientation"]) == 90
    assert float(measures(column.T, (2, 3))["orientation"]) == 0
    assert float(measures(column, (3, 2))["anisotropy"]) == 1


def test_the_squares_of_a_gaussian_hold_what_the_error_function_says():
    size, centre, sigma = (400, 500), (190.5, 260.0), 40.0
    result = measures(gaussian(size, centre, (sigma, sigma)), centre)
    inside = [in_square(side, sigma) for side in result["side"].values]
    assert np.abs(result["share_square"].values - inside).max() < 2e-4
    for threshold in THRESHOLDS:
        assert in_square(math.sqrt(r_of(result, threshold) * 400 * 500), sigma) == pytest.approx(threshold, abs=2e-4)


def test_the_discs_and_ranked_pixels_of_a_round_gaussian_agree_with_its_closed_form():
    size, centre, sigma = (301, 301), (150.0, 150.0), 25.0
    result = measures(gaussian(size, centre, (sigma, sigma)), centre)
    radii = result["radius"].values
    assert np.abs(result["share_radial"].values - (1 - np.exp(-(radii**2) / (2 * sigma**2)))).max() < 5e-3
    for threshold in THRESHOLDS:  # the heaviest pixels are a disc
        area = -2 * math.pi * sigma**2 * math.log(1 - threshold)
        assert r_of(result, threshold, "r_ranked") == pytest.approx(area / 301**2, rel=2e-3)


def test_mass_that_is_spread_evenly_has_the_area_of_its_share():
    result = measures(np.full((40, 60), 3.0), (19.5, 29.5))
    sides = result["side"].values
    assert sides[-1] == 40
    assert result["share_square"].values == pytest.approx(sides**2 / 2400)
    assert result["share_ranked"].values == pytest.approx(FRACTIONS)
    assert r_of(result, 0.5, "r_ranked") == pytest.approx(0.5)
    assert r_of(result, 0.3) == pytest.approx(0.3, rel=1e-3)
    assert math.isnan(r_of(result, 0.99))  # the largest square inside holds two thirds
    assert result["share_radial"].values[-1] == pytest.approx(1)
    assert float(result["sigma_major"]) == pytest.approx(math.sqrt((60**2 - 1) / 12))
    assert float(result["sigma_minor"]) == pytest.approx(math.sqrt((40**2 - 1) / 12))
    assert float(result["orientation"]) == 0


def test_a_single_pixel_has_no_width_and_no_direction():
    mass = np.zeros((9, 9))
    mass[4, 4] = 1e-20
    result = measures(mass, (4, 4))
    assert result["share_square"].values == pytest.approx(np.ones(9))
    assert result["share_radial"].values == pytest.approx(np.ones(14))
    assert r_of(result, 0.5) == pytest.approx(0.25 / 81)  # linear in the side: half of one pixel's
    assert r_of(result, 0.5, "r_ranked") == pytest.approx(0.5 / 81)
    assert float(result["sigma_major"]) == float(result["sigma_minor"]) == 0
    assert math.isnan(float(result["orientation"]))
    assert math.isnan(float(result["anisotropy"]))


def test_equal_widths_have_no_direction():
    result = measures(gaussian((41, 41), (20, 20), (4, 4)), (20, 20))
    assert math.isnan(float(result["orientation"]))
    assert float(result["anisotropy"]) == pytest.approx(0, abs=1e-7)


def test_an_empty_map_gives_nan_everywhere_and_no_warning():
    result = measures(np.zeros((6, 8)), (2.5, 3.5))
    for name, values in result.data_vars.items():
        assert np.isnan(values.values).all(), name
    assert result.sizes["side"] == 6
    assert replknet_ratio(np.zeros((6, 8))) == dict.fromkeys(THRESHOLDS)


def test_squares_stay_inside_the_picture_around_a_unit_off_the_centre():
    mass = np.ones((20, 30))
    result = measures(mass, (3.5, 20.0))
    assert result["side"].values[-1] == 8  # four pixels of room above
    assert result["share_square"].values == pytest.approx(np.arange(1, 9) ** 2 / 600)
    corner = measures(mass, (0.0, 0.0))
    assert corner["side"].values.tolist() == [1]
    assert np.isnan(corner["r"].values).all()
    assert corner["r_ranked"].values == pytest.approx(THRESHOLDS)


def test_a_cell_smaller_than_a_pixel_at_the_border_has_no_square():
    result = measures(np.ones((4, 4)), cell_centre((0, 0), (8, 8), (4, 4)))
    assert np.isnan(result["share_square"].values).all()
    assert np.isnan(result["r"].values).all()


def test_pixels_that_the_border_cuts_count_in_proportion():
    mass = np.random.default_rng(3).random((7, 9))
    fine = np.kron(mass, np.ones((4, 4))) / 16  # every pixel in 16 parts
    centre = (2.25, 4.75)
    for side, held in measures(mass, centre)["share_square"].to_series().items():
        edges = [round(4 * (place + 0.5 + sign * side / 2)) for place in centre for sign in (-1, 1)]
        assert held == pytest.approx(fine[edges[0] : edges[1], edges[2] : edges[3]].sum() / mass.sum(), abs=1e-12)


def test_r_is_where_the_curve_reaches_the_threshold():
    mass = np.random.default_rng(4).random((33, 47)) ** 6
    result = measures(mass, (15.2, 22.9), (0.1, 0.35, 0.6))
    sides, shares = np.append(0, result["side"].values), np.append(0, result["share_square"].values)
    ranked = np.append(0, np.sort(mass.ravel())[::-1].cumsum() / mass.sum())
    for threshold in (0.1, 0.35, 0.6):
        assert np.interp(math.sqrt(r_of(result, threshold) * mass.size), sides, shares) == pytest.approx(threshold)
        pixels = r_of(result, threshold, "r_ranked") * mass.size
        assert np.interp(pixels, np.arange(len(ranked)), ranked) == pytest.approx(threshold)


@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1e6, 1e200])
def test_no_factor_changes_any_number(scale):
    mass = gaussian((61, 83), (31.4, 40.2), (13, 6), 20)
    ours, scaled = (measures(each, (30.5, 41.5)) for each in (mass, mass * scale))
    assert all(np.isfinite(values.values).all() for name, values in ours.items() if name != "r")
    xr.testing.assert_allclose(ours, scaled, rtol=1e-9)


def test_the_published_ratio_changes_with_the_scale_and_ours_does_not():
    blob = gaussian((1024, 1024), (512, 512), (80, 80))
    found = {scale: replknet_ratio(blob * scale) for scale in (1e-3, 1.0, 1e2, 1e4, 1e6)}
    half = [round(100 * ratio[0.5], 1) for ratio in found.values()]
    assert half == [2.7, 3.1, 6.2, 11.0, 16.1]
    assert round(100 * found[1e-3][0.99]) == 19
    assert round(100 * found[1e6][0.99]) == 60
    ours = {scale: measures(blob * scale, (512, 512)) for scale in (1e-3, 1e6)}
    assert round(100 * r_of(ours[1.0e6], 0.5), 1) == 2.7
    assert r_of(ours[1e-3], 0.5) == pytest.approx(r_of(ours[1e6], 0.5), rel=1e-9)


def test_the_published_ratio_grows_a_square_around_the_middle_pixel():
    raw = np.random.default_rng(8).random((12, 16)) * 50
    data = np.log10(raw + 1)
    expected = {}
    for threshold in (0.2, 0.5, 0.6):
        expected[threshold] = None
        for i in range(1, 6):
            if data[6 - i : 7 + i, 8 - i : 9 + i].sum() / data.sum() > threshold:
                expected[threshold] = (2 * i + 1) ** 2 / (12 * 16)
                break
    assert replknet_ratio(raw, (0.2, 0.5, 0.6)) == pytest.approx(expected)
    assert expected[0.2] is not None


def test_99_percent_of_a_small_even_map_cannot_be_reached():
    even = np.ones((64, 64))
    assert replknet_ratio(even)[0.99] is None  # (63 / 64) ** 2 = 0.969
    unit = cell_centre((8, 8), (16, 16), (64, 64))  # the centre of cell 8 is not that of the picture
    assert unit == (33.5, 33.5)
    result = measures(even, unit)
    assert math.isnan(r_of(result, 0.99))
    assert result["share_square"].values[-1] == pytest.approx((60 / 64) ** 2)


def test_the_centre_is_that_of_the_cell_and_not_half_a_cell_off():
    centre = cell_centre((16, 16), (32, 32), (1024, 1024))
    assert centre == (527.5, 527.5)
    blob = gaussian((1024, 1024), centre, (80, 80))
    ours, off = measures(blob, centre), measures(blob, (512, 512))
    for threshold in THRESHOLDS:
        assert in_square(1024 * math.sqrt(r_of(ours, threshold)), 80) == pytest.approx(threshold, abs=1e-4)
        assert in_square(1024 * math.sqrt(r_of(off, threshold)), 80, off=15.5) == pytest.approx(threshold, abs=1e-4)
    assert round(100 * r_of(ours, 0.99), 1) == 19.2
    assert r_of(off, 0.99) > 1.03 * r_of(ours, 0.99)


def test_cells_have_centres_in_rows_and_columns():
    assert cell_centre((0, 0), (1, 1), (7, 9)) == (3, 4)
    assert cell_centre((2, 5), (4, 8), (4, 8)) == (2, 5)
    assert cell_centre((1, 2), (2, 4), (10, 40)) == (7, 24.5)
