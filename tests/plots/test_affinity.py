"""The affinity figure: where its panels lie, what is in them, their one colour range, and what the caption admits."""

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from workbench.analysis.affinity import SIDES, AffinitySpec, ChannelSpec, affinity, channel_affinity
from workbench.operators import REDUCTIONS
from workbench.plots.affinity import (
    DECADES,
    PADDING,
    WHY_CHANNELS,
    Mosaic,
    affinity_mosaic,
    caption,
    channel_mosaic,
    colour_range,
    extended,
    is_signed,
    labels,
    mosaic_of,
    over_channels,
    photograph_figure,
    photographs,
    shares,
    title,
)

SEED = 7
MOSAICS = [
    Mosaic(grid, groups)
    for grid in ((1, 1), (4, 4), (5, 9), (9, 5), (3, 64), (32, 32))
    for groups in (1, 2, 3, 4, 6, 24)
]
mosaics = pytest.mark.parametrize("mosaic", MOSAICS, ids=str)

GSPN = {
    "model": "gspn_nano", "layer": "stage1.block2", "kind": "propagation", "weights": "random", "seed": 3,
    "size": (64, 96), "backend": "cpu", "dtype": "float32", "device": "cpu", "merge": "aligned", "chunk": None,
}  # fmt: skip
SWIN = {key: value for key, value in GSPN.items() if key not in ("merge", "chunk")}
SWIN |= {"model": "swin_nano", "kind": "attention", "pattern": "swin 8x8"}


class FakeOperator:
    """An operator whose pictures are given: the merged map and the groups'."""

    def __init__(self, maps, info):
        self.maps, self.info = maps, info
        self.groups = tuple(f"group_{i}" for i in range(len(maps) - 1))

    def rows(self, position, channel, reduce):
        merged, *groups = self.maps
        return xr.DataArray(merged, dims=("row", "col")), xr.DataArray(np.stack(groups), dims=("group", "row", "col"))

    columns = rows


def result_of(*maps, info=None, **spec):
    spec = AffinitySpec(**{"position": (0, 0), **spec})
    return affinity(FakeOperator([np.asarray(m, np.float32) for m in maps], GSPN | (info or {})), spec)


def random_maps(mosaic):
    return list(np.random.default_rng(SEED).random((mosaic.groups + 1, *mosaic.grid), np.float32) + 0.5)


def covered(mosaic):
    """How many panels lie on each cell of the array."""
    count = np.zeros(mosaic.shape, int)
    for row, col, scale in mosaic.places():
        count[row : row + scale * mosaic.grid[0], col : col + scale * mosaic.grid[1]] += 1
    return count


@mosaics
def test_panels_lie_inside_the_array_and_do_not_overlap(mosaic):
    places, count = mosaic.places(), covered(mosaic)
    assert len(places) == mosaic.groups + 1
    assert count.max() == 1
    assert count.sum() == sum(scale**2 for _, _, scale in places) * mosaic.grid[0] * mosaic.grid[1]
    assert [scale for _, _, scale in places[1:]] == [1] * mosaic.groups
    assert places[0][2] ** 2 >= mosaic.groups


@mosaics
def test_the_position_under_the_pointer_is_the_one_whose_box_it_is_in(mosaic):
    for position in np.ndindex(*mosaic.grid):
        boxes = mosaic.boxes(position)
        assert len(boxes) == mosaic.groups + 1
        for left, bottom, right, top in boxes:
            assert mosaic.position_at((left + right) / 2, (bottom + top) / 2) == position
            assert mosaic.position_at(left + 1e-6, top - 1e-6) == position
            assert mosaic.position_at(right - 1e-6, bottom + 1e-6) == position


@mosaics
def test_no_position_is_under_the_pointer_between_the_panels_and_beside_them(mosaic):
    rows, cols = mosaic.shape
    for r, c in np.argwhere(covered(mosaic) == 0):
        assert mosaic.position_at(c + 0.5, -(r + 0.5)) is None
    assert mosaic.groups == 0 or (covered(mosaic) == 0).any()
    for x, y in ((-0.5, -0.5), (0.5, 0.5), (cols + 0.5, -0.5), (0.5, -rows - 0.5)):
        assert mosaic.position_at(x, y) is None


@mosaics
def test_every_map_is_where_its_panel_is_and_nothing_is_between(mosaic):
    maps = random_maps(mosaic)
    array = mosaic.fill(maps)
    assert array.shape == mosaic.shape
    assert np.array_equal(np.isnan(array), covered(mosaic) == 0)
    for values, boxes in zip(maps, zip(*(mosaic.boxes(p) for p in np.ndindex(*mosaic.grid)), strict=True), strict=True):
        for value, (left, bottom, right, top) in zip(values.ravel(), boxes, strict=True):
            assert (array[-top:-bottom, left:right] == value).all()


def test_a_map_for_each_panel_and_no_other_is_wanted():
    mosaic = Mosaic((4, 4), 3)
    for maps in (random_maps(mosaic)[:-1], [*random_maps(mosaic), np.zeros((4, 4))]):
        with pytest.raises(ValueError, match="zip"):
            mosaic.fill(maps)


def test_shares_are_of_the_merged_mass_and_nothing_is_drawn_where_nothing_is_read():
    merged, left, right = shares(result_of([[4, -1], [0, 3]], [[2, 0], [0, 8]], [[0, 0], [0, 0]]))
    np.testing.assert_allclose(merged, [[0.5, -0.125], [np.nan, 0.375]])
    np.testing.assert_allclose(left, [[0.25, np.nan], [np.nan, 1]])
    assert np.isnan(right).all()


def test_one_colour_range_holds_for_every_panel_of_every_result():
    low = result_of([[0.5, 0.5]], [[0.5, 0.25]])
    high = result_of([[0.1, 0.9]], [[0.0, 1.2]])  # a group may hold more than the merged map
    assert colour_range([low], "log") == pytest.approx((0.5 / 10**DECADES, 0.5))
    for both in ([low, high], [high, low]):
        assert colour_range(both, "log") == pytest.approx((1.2 / 10**DECADES, 1.2))
    assert colour_range([low, high], "linear")[1] > colour_range([low], "linear")[1]


def test_the_top_of_a_linear_range_is_not_the_querys_own_cell():
    merged = np.ones((20, 20))
    merged[0, 0] = 1601  # of a mass of 2000
    low, top = colour_range([result_of(merged, np.ones((20, 20)))], "linear")
    assert low == 0
    assert top == pytest.approx(1 / 2000)


def test_a_linear_range_is_symmetric_if_any_result_has_signs():
    plain, signed = result_of([[1, 3]], [[1, 0]]), result_of([[1, 3]], [[1, -1]])
    assert not is_signed(plain)
    assert is_signed(signed)
    low, top = colour_range([plain, signed], "linear")
    assert low == -top < 0
    assert colour_range([plain], "linear")[0] == 0


def test_maps_without_mass_or_without_finite_values_still_have_a_range():
    for value in (0, np.nan):
        empty = np.full((2, 2), value)
        for scale in ("log", "linear"):
            assert colour_range([result_of(empty, empty)], scale) == (1e-4, 1.0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_caption_prints_normalisation_sign_rule_aggregation_backend_and_device(scale, side):
    result = result_of([[1, 3]], [[1, 2]], side=side, reduce="rms", info={"backend": "triton", "device": "cuda:0"})
    text = caption(result, scale, signed=False)
    for words in (
        SIDES[side],
        REDUCTIONS["rms"][0],
        "share of the merged mass",
        "magnitudes",
        "triton backend",
        "cuda:0",
    ):
        assert words in text
    assert ("linear colours, top at the 99.5th percentile" in text) == (scale == "linear")
    assert (f"log colours over {DECADES} decades" in text) == (scale == "log")
    assert "float32" in text
    assert "nothing drawn where exactly 0" in text


@pytest.mark.parametrize(
    ("reduce", "signed", "words"),
    [("mean", True, "signed"), ("mean", False, "non-negative"), ("mean_abs", False, "magnitudes")],
)
def test_the_caption_names_the_sign_rule(reduce, signed, words):
    text = caption(result_of([[1, 3]], [[1, 2]], reduce=reduce), "linear", signed)
    assert [rule for rule in ("signed", "non-negative", "magnitudes") if f", {rule};" in text] == [words]


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({}, "merge aligned, global;"),
        ({"merge": "released", "chunk": 2}, "merge released, chunks of 2 lines;"),
    ],
)
def test_the_caption_of_a_gspn_layer_says_which_merge_and_which_chunks_are_drawn(info, words):
    assert words in caption(result_of([[1, 3]], [[1, 2]], info=info), "log", False)


def test_the_caption_of_an_attention_layer_names_heads_and_the_pattern():
    spec = AffinitySpec((0, 0), reduce="mean")
    text = caption(affinity(FakeOperator([np.ones((2, 2))] * 3, SWIN), spec), "log", False)
    assert "mean over heads" in text
    assert "swin 8x8;" in text
    assert "merge" not in text.replace("merged mass", "")


@pytest.mark.parametrize(
    ("info", "words"),
    [({}, "random weights, seed 3"), ({"weights": "trained", "seed": None}, "weights trained")],
)
def test_the_title_names_model_layer_grid_size_and_weights(info, words):
    text = title(result_of([[1, 3]], [[1, 2]], info=info))
    for part in ("gspn_nano", "stage1.block2", "1 x 2 positions", "64 x 96 pixels", words):
        assert part in text


@pytest.fixture
def drawn():
    """A result of a 3 x 4 grid with four groups, its range and its figure."""
    mosaic = Mosaic((3, 4), 4)
    result = result_of(*random_maps(mosaic), position=(1, 2))
    limits = colour_range([result], "log")
    photograph = np.random.default_rng(SEED).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return mosaic, result, limits, photograph, affinity_mosaic(result, photograph, limits, "log", 0.5)


def test_the_figure_draws_the_shares_in_the_one_range_with_the_query_in_every_panel(drawn):
    mosaic, result, limits, _, figure = drawn
    photo, heat, boxes, names = figure
    values = np.flipud(heat.dimension_values("share", flat=False))  # HoloViews gives the lowest row first
    np.testing.assert_array_equal(values, mosaic.fill(shares(result)))
    assert heat.bounds.lbrt() == photo.bounds.lbrt() == (0, -mosaic.shape[0], mosaic.shape[1], 0)
    options = hv.Store.lookup_options("bokeh", heat, "plot").kwargs
    assert tuple(options["clim"]) == limits
    assert hv.Store.lookup_options("bokeh", heat, "style").kwargs["alpha"] == 0.5
    assert [tuple(box) for box in boxes.array()] == mosaic.boxes((1, 2))
    assert list(names.dimension_values("text")) == ["merged", "group 0", "group 1", "group 2", "group 3"]


def test_the_photograph_lies_under_every_panel_and_nowhere_else(drawn):
    mosaic, *_ = drawn
    quarters = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), 24, 0), 32, 1)  # a colour for each
    canvas = photographs(mosaic, quarters).rgb
    image = np.stack([np.flipud(canvas.dimension_values(i, flat=False)) for i in range(2, 6)], -1)
    zoom = image.shape[0] // mosaic.shape[0]
    assert np.array_equal(image[..., 3] > 0, np.repeat(np.repeat(covered(mosaic) > 0, zoom, 0), zoom, 1))
    for row, col, scale in mosaic.places():
        panel = image[row * zoom : (row + 3 * scale) * zoom, col * zoom : (col + 4 * scale) * zoom, :3]
        for r, c in np.ndindex(2, 2):
            assert np.array_equal(panel[-r, -c], quarters[-r, -c])


def test_the_photograph_figure_outlines_the_query_and_no_pointer_yet():
    photograph = np.zeros((48, 64, 3), np.uint8)
    photo, box, pointer = photograph_figure(photograph, (3, 4), (2, 1))
    assert photo.bounds.lbrt() == (0, -3, 4, 0)
    assert [tuple(row) for row in box.array()] == [(1, -3, 2, -2)]
    assert len(pointer) == 0


@pytest.mark.parametrize(("covered", "grid", "size"), [((3, 4), (4, 8), (64, 128)), ((6, 4), (6, 5), (48, 80))])
def test_a_padded_grid_shows_the_photograph_on_its_own_cells_and_grey_elsewhere(covered, grid, size):
    photograph = np.random.default_rng(SEED).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = extended(photograph, covered, grid)
    assert picture.shape == (*size, 3)
    np.testing.assert_array_equal(picture[:48, :64], photograph)
    assert (picture[48:] == PADDING).all()
    assert (picture[:, 64:] == PADDING).all()
    assert extended(photograph, grid, grid) is photograph


def test_a_padded_grid_is_drawn_with_its_padding_and_the_caption_says_so():
    info = SWIN | {"unpadded": (3, 4)}
    result = affinity(FakeOperator([np.ones((4, 4))] * 3, info), AffinitySpec((0, 0)))
    photograph = np.full((48, 64, 3), 7, np.uint8)
    photo, *_ = affinity_mosaic(result, photograph, (1e-4, 1), "log")
    red = np.flipud(photo.dimension_values(2, flat=False))
    rows = red.shape[0] // mosaic_of(result).shape[0]  # pixels of the canvas per cell; the merged map has two a cell
    assert red[0, 0] == red[6 * rows - 1, 0] == 7
    assert red[6 * rows, 0] == red[8 * rows - 1, 0] == PADDING[0]
    assert "picture on 3 x 4 cells, padding grey" in caption(result, "log", False)
    figure, *_ = photograph_figure(photograph, (4, 4), (0, 0), (3, 4))
    assert figure.bounds.lbrt() == (0, -4, 4, 0)
    assert np.flipud(figure.dimension_values(2, flat=False))[-1, 0] == PADDING[0]


class FakeChannels:
    """A channel-attention operator with random matrices whose rows sum to 1, one entry of them exactly 0."""

    def __init__(self, heads, width):
        logits = np.random.default_rng(SEED).normal(size=(heads, width, width))
        self.heads = (np.exp(logits) / np.exp(logits).sum(2, keepdims=True)).astype(np.float32)
        self.heads[0, 0, 0] = 0
        self.groups = tuple(f"head {i}" for i in range(heads))
        self.info = SWIN | {"model": "davit_nano", "layer": "stage1.block1.channel", "kind": "channel"}
        self.info |= {"backend": "torch", "pattern": "each channel reads the others"}

    def channel_matrix(self, group=None, reduce="mean"):
        return xr.DataArray(self.heads.mean(0) if group is None else self.heads[self.groups.index(group)])


def test_channel_matrices_are_drawn_as_they_are_without_photograph_and_query():
    op = FakeChannels(3, 5)
    result = channel_affinity(op, ChannelSpec())
    limits = colour_range([result], "log")
    heat, names = channel_mosaic(result, limits)
    assert over_channels(result)
    assert not is_signed(result)
    assert limits == pytest.approx((op.heads.max() / 10**DECADES, op.heads.max()))
    values = np.flipud(heat.dimension_values("share", flat=False))
    np.testing.assert_allclose(values, mosaic_of(result).fill([op.heads.mean(0), *op.heads]), atol=1e-30)
    assert np.isfinite(values).sum() == 5 * 5 * (2 * 2 + 3)  # an entry of 0 is drawn, too
    assert list(names.dimension_values("text"))[1:] == ["head 0", "head 1", "head 2"]
    assert names.dimension_values("text")[0] == "merged: channel out down, in across"


def test_the_caption_of_channel_matrices_says_why_there_is_no_map_of_positions():
    result = channel_affinity(FakeChannels(3, 5), ChannelSpec())
    text = caption(result, "log", False)
    for words in ("what each channel reads", "mean over heads", "share of the row", "its own", WHY_CHANNELS, "torch"):
        assert words in text
    assert "no N x N map" in text
    assert title(result).startswith("davit_nano  stage1.block1.channel  5 x 5 channels of each head")


@pytest.mark.parametrize(("heads", "text"), [(9, "head 8"), (24, "8"), (32, "8")])
def test_of_many_heads_only_the_number_is_written(heads, text):
    names = ["merged", *(f"head {i}" for i in range(heads))]
    written = list(labels(Mosaic((7, 7), heads), names).dimension_values("text"))
    assert (written[0], written[9]) == ("merged", text)
