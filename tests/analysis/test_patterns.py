"""Patterns without a model: their text, the keys of a query, the published numbers of blocks and of masked pairs."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from kernels.attention import block, cross, disc, grid, halo, neighborhood, power, swin
from workbench.analysis import families
from workbench.analysis.patterns import PatternSpec, list_patterns, patterns, relation
from workbench.analysis.reach import NEVER, depths, reach

ALL = list(list_patterns().values())
SMALL = [
    "swin(window=3, shift=1)", "nat(kernel=3)", "dinat(kernel=3, dilation=2)", "gna(kernel=4, stride=2)",
    "gna(kernel=3, stride=2, causal=true)", "halo(block=3, halo=1)", "halo(block=2, halo=1, border=clamp)",
    "maxvit(window=3)", "cswin(width=2)", "stripes(width=2, direction=in turn)", "axial", "disc(radius=3)",
    "power(block=4, window=2, sink=1)", "full",
]  # fmt: skip
GRID = (6, 9)


# The number of blocks until every query depends on every key, as published


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [
        ("swin(window=7, shift=3)", {56: 15, 28: 7, 14: 3}),
        ("nat(kernel=7)", {56: 18, 28: 8, 14: 4}),
        ("dinat(kernel=7, dilation={})", {56: 3, 28: 2, 14: 2}),  # the largest dilation that fits: 8, 4, 2
        ("cswin(width=1)", {56: 2, 28: 2, 14: 2}),
        ("maxvit(window=7)", {56: 3, 28: 2, 14: 2}),
        ("halo(block=8, halo=3)", {56: 7}),
        ("disc(radius=8)", {56: 10}),
        ("axial", {56: 2, 14: 2}),
        ("full", {56: 1}),
    ],
)
def test_a_stack_of_blocks_becomes_global_after_the_published_number(pattern, blocks):
    found = {n: patterns(PatternSpec(pattern.format(n // 7), (n, n)))["until_global"].item() for n in blocks}
    assert found == blocks


@pytest.mark.parametrize(
    "pattern",
    [
        "gna(kernel=7, stride=7)",
        "swin(window=7, shift=0)",
        "stripes(width=4)",
        "gna(kernel=3, stride=1, causal=true)",
        "power",
    ],
)
def test_what_is_disconnected_or_causal_never_becomes_global(pattern):
    result = patterns(PatternSpec(pattern, (14, 28), (3, 4)))
    assert np.isnan(result["until_global"])
    assert result["reached"][-1] < 1


# Reach


def products(masks, count):
    """M_n ... M_1 for n = 0, 1, ... as plain matrix products."""
    reached = np.eye(len(masks[0]), dtype=bool)
    yield reached
    for n in range(count):
        reached = masks[n % len(masks)].astype(int) @ reached.astype(int) > 0
        yield reached


@pytest.mark.parametrize("pattern", SMALL)
def test_reach_is_the_product_of_the_blocks(pattern):
    cycle = families.cycle(pattern, GRID)
    masks = [p.mask(GRID).numpy() for p in cycle]
    found = reach(cycle, GRID).matrix()
    for n, reached in enumerate(products(masks, 12)):
        np.testing.assert_array_equal(found <= n, reached)
    np.testing.assert_array_equal(relation(PatternSpec(pattern, GRID)), found)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 130])
def test_reach_of_random_relations_of_any_size_is_their_product(size):
    rng = np.random.default_rng(size)
    masks = [(rng.random((size, size)) < 1.5 / size) | np.eye(size, dtype=bool) for _ in range(2)]
    found = depths(masks)
    for n, reached in enumerate(products(masks, 40)):
        np.testing.assert_array_equal(found <= n, reached)
    assert ((found <= 40) | (found == NEVER)).all()


@pytest.mark.parametrize(
    "cycle", [(swin(3), swin(3, 1)), (neighborhood(3), neighborhood(3, dilation=2)), (halo(2, 1),)]
)
def test_rows_and_columns_of_their_own_reach_as_far_as_the_whole_relation(cycle):
    parts = reach(cycle, (8, 7))
    assert len(parts.parts) == 2
    np.testing.assert_array_equal(parts.matrix(), depths([p.mask((8, 7)).numpy() for p in cycle]))


@pytest.mark.parametrize("pattern", SMALL)
def test_the_map_of_a_query_is_its_row_of_the_matrix_and_the_shares_count_it(pattern):
    position = (4, 7)
    result = patterns(PatternSpec(pattern, GRID, position))
    matrix = relation(PatternSpec(pattern, GRID)).values
    row = matrix[position[0] * GRID[1] + position[1]].reshape(GRID)
    np.testing.assert_array_equal(np.nan_to_num(result["blocks"], nan=NEVER), row)
    assert result["blocks"][position] == 0
    assert result["until_query"].item() == row.max() or (np.isnan(result["until_query"]) and row.max() == NEVER)
    shares = [(matrix <= n).mean() for n in range(result.sizes["after"])]
    np.testing.assert_allclose(result["reached"], shares)
    assert shares[-1] == (matrix < NEVER).mean()


# The keys and counts


@pytest.mark.parametrize("pattern", SMALL)
def test_keys_counts_and_windows_are_those_of_the_pattern(pattern):
    spec = PatternSpec(pattern, GRID, (1, 5))
    result, cycle = patterns(spec), families.cycle(pattern, GRID)
    assert list(result["block"].values) == [p.name for p in cycle]
    for n, one in enumerate(cycle):
        keys = np.argwhere(result["keys"][n].values)
        assert [tuple(key) for key in keys.tolist()] == one.keys(spec.position, GRID)
        np.testing.assert_array_equal(result["counts"][n], one.count(GRID))
        edges = [*keys.min(0), *keys.max(0)]
        assert result["window"][n, 1, 5].values.tolist() == [edges[0], edges[2], edges[1], edges[3]]


def test_the_first_block_reads_what_is_reached_after_one():
    result = patterns(PatternSpec("dinat(kernel=3, dilation=3)", (9, 12), (4, 4)))
    np.testing.assert_array_equal(result["blocks"] <= 1, result["keys"][0])


def test_families_stand_for_the_cycles_of_their_models():
    at = {name: families.cycle(name, (56, 56)) for name in list_patterns()}
    assert at["swin"] == (swin(7), swin(7, 3))
    assert at["dinat"] == (neighborhood(7), neighborhood(7, dilation=8))
    assert at["maxvit"] == (block(7), grid(7, 56))
    assert (at["cswin"], at["disc"], at["power"]) == ((cross(1),), (disc(8),), (power(64, 5, 1),))
    assert [len(cycle) for cycle in at.values()] == [2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1]


# Costs


@pytest.mark.parametrize(("size", "share"), [(56, 0.119), (28, 0.230), (14, 0.430)])
def test_shifted_windows_are_masked_as_stated_and_plain_ones_are_not(size, share):
    masked = patterns(PatternSpec("swin(window=7, shift=3)", (size, size)))["masked"].values
    assert masked[0] == 0
    assert round(float(masked[1]), 3) == share


@pytest.mark.parametrize(("size", "speedup"), [(56, 7.0), (28, 2.8), (14, 1.45)])
def test_raster_tiles_of_64_tokens_save_a_neighborhood_what_is_stated(size, speedup):
    computed = patterns(PatternSpec("nat(kernel=7)", (size, size)))["computed"].item()
    dense = (-(-(size * size) // 64) * 64) ** 2
    assert dense / computed == pytest.approx(speedup, rel=0.015)


def test_windows_that_do_not_divide_the_map_are_padded():
    result = patterns(PatternSpec("swin(window=4, shift=0)", (6, 9)))
    assert result["computed"].item() == (8 * 4) * (12 * 4)  # queries of the padded map times keys, along each axis
    assert result["masked"].item() == pytest.approx(1 - (4 * 4 + 2 * 2) * (4 * 4 + 4 * 4 + 1) / (32 * 48))


def test_a_halo_computes_its_whole_window_at_the_border():
    result = patterns(PatternSpec("halo(block=8, halo=3)", (16, 24)))
    assert result["computed"].item() == 16 * 24 * 14 * 14
    assert 0 < result["masked"].item() < 1


@pytest.mark.parametrize("pattern", ["maxvit(window=7)", "axial", "cswin(width=2)", "stripes(width=7)", "full"])
def test_what_is_cut_into_pieces_that_fit_masks_nothing(pattern):
    assert (patterns(PatternSpec(pattern, (14, 28)))["masked"] == 0).all()


def test_the_cost_of_a_window_is_that_of_swins_first_stage():
    result = patterns(PatternSpec("swin(window=7, shift=0)", (56, 56), channels=96, value_bytes=2))
    assert result["flops"].item() == 4 * 3136 * 49 * 96 == 59_006_976
    assert result["bytes"].item() == result["full_bytes"].item() == 8 * 3136 * 96 == 2_408_448
    assert result["intensity"].item() == 24.5
    assert result["full_flops"].item() / result["flops"].item() == 64


def test_heads_of_a_cross_read_one_stripe_each():
    result = patterns(PatternSpec("cswin(width=2)", (8, 6)))
    assert result["pairs"].item() == 48 * (8 * 2 + 2 * 6) / 2
    assert (result["counts"] == 8 * 2 + 2 * 6 - 4).all()


@pytest.mark.parametrize("pattern", ALL)
def test_every_family_has_numbers_that_make_sense(pattern):
    result = patterns(PatternSpec(pattern, (56, 56), (20, 30)))
    assert (result["pairs"] >= 3136).all()
    assert (result["pairs"] <= result["computed"]).all()
    assert ((result["masked"] >= 0) & (result["masked"] < 1)).all()
    assert (result["tile_bound"] >= 1).all()
    assert (np.diff(result["reached"]) > 0).all()


# The Spec


@pytest.mark.parametrize("pattern", SMALL)
def test_a_spec_survives_json_and_its_result_names_it(pattern):
    spec = PatternSpec(pattern, (7, 9) if "maxvit" not in pattern else GRID, (1, 2), key_tile=(4, 8))
    again = PatternSpec(**json.loads(json.dumps(asdict(spec))))
    assert again == spec
    assert hash(again) == hash(spec)
    attrs = patterns(spec).attrs
    assert PatternSpec(**attrs["spec"]) == spec
    assert attrs["hash"] == patterns(again).attrs["hash"] != patterns(replace(spec, position=(0, 0))).attrs["hash"]


def test_the_text_of_a_pattern_is_completed_and_read_back():
    assert PatternSpec(" swin( shift = 2 )").pattern == "swin(window=7, shift=2)"
    assert PatternSpec("axial").pattern == PatternSpec("axial()").pattern == "axial()"
    for text in ALL:
        assert families.spell(*families.parse(text)) == text


HOW = "A pattern is written as name(argument=value, ...), such as swin(window=7); got"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pattern": "swim"},
         "There is no pattern named 'swim'; did you mean swin or cswin? Known: swin, nat, dinat, gna, halo, maxvit, "
         "cswin, stripes and 4 more."),
        ({"pattern": "swin(window=7"}, f"{HOW} 'swin(window=7'."),
        ({"pattern": "swin(7)"}, f"{HOW} 'swin(7)'."),
        ({"pattern": 5}, f"{HOW} 5."),
        ({"pattern": "swin(shfit=3)"},
         "There is no argument named 'shfit' in swin; did you mean shift? Known: window, shift."),
        ({"pattern": "swin(shift=x)"}, "shift must be a whole number of at most six digits; got 'x'."),
        ({"pattern": "halo(border=wrap)"}, "border must be one of crop, clamp; got 'wrap'."),
        ({"pattern": "gna(causal=1)"}, "causal must be true or false; got '1'."),
        ({"pattern": "swin(shift=7)"},
         "shift must be a whole number from 0 to 6, smaller than the window 7, usually 3; got 7."),
        ({"pattern": "maxvit(window=5)"}, "size must be a multiple of the window 5 along both axes; got (56, 56)."),
        ({"pattern": "nat", "grid": (5, 9)},
         "neighborhood 7x7 needs a map of at least 7 rows, its window (kernel times dilation); got 5: choose a kernel "
         "of at most 5 or a larger map."),
        ({"grid": (0, 4)}, "grid must be a (rows, cols) pair of whole numbers from 1 to 64; got (0, 4)."),
        ({"grid": (65, 4)}, "grid must be a (rows, cols) pair of whole numbers from 1 to 64; got (65, 4)."),
        ({"grid": 7}, "grid must be a (rows, cols) pair of whole numbers from 1 to 64; got 7."),
        ({"position": (3, 56)}, "position must be a (row, col) on the grid of 56 rows and 56 columns; got (3, 56)."),
        ({"query_tile": (0, 8)}, "query_tile must be a (rows, cols) pair of whole numbers at least 1; got (0, 8)."),
        ({"channels": 0}, "channels must be a whole number of at least 1; got 0."),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        patterns(PatternSpec(**change))


def test_swin_on_a_map_of_one_window_is_one_window_without_a_shift():
    found = patterns(PatternSpec("swin", grid=(7, 7)))
    assert found.sizes["block"] == 1
    assert (found["counts"] == 49).all()
    assert float(found["masked"][0]) == 0
    smaller = patterns(PatternSpec("swin", grid=(5, 6)))
    assert (smaller["counts"] <= 25).all()


def test_a_result_that_is_changed_leaves_the_next_one_as_it_was():
    spec = PatternSpec("disc(radius=2)", grid=(6, 6))
    first = patterns(spec)
    kept = first["counts"].values.copy(), first["reached"].values.copy()
    first["counts"].values[:], first["reached"].values[:] = 0, 0
    again = patterns(spec)
    assert np.array_equal(again["counts"], kept[0])
    assert np.array_equal(again["reached"], kept[1])
