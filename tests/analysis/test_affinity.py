"""The affinity analysis: its numbers are those computed by hand on known maps, and its attrs hold the whole Spec."""

import math
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import xarray as xr

from workbench.analysis.affinity import (
    OVER_CHANNELS,
    RADII,
    SIDES,
    AffinitySpec,
    ChannelSpec,
    affinity,
    aggregation,
    channel_affinity,
)
from workbench.analysis.spec import PACKAGES, record
from workbench.operators import REDUCTIONS

GRID = (3, 20)
QUERY = (1, 2)
INFO = {"model": "fake", "layer": "stage1.block1", "kind": "propagation", "backend": "none", "image_sha256": "00"}


class FakeOperator:
    """An operator whose rows and columns are given: the merged map, then one for each group."""

    groups = ("left", "right")
    grid = GRID

    def __init__(self, rows, columns=None, **info):
        self.maps = {"rows": rows, "columns": rows if columns is None else columns}
        self.asked = []
        self.info = INFO | info

    def pictures(self, which, position, channel, reduce):
        self.asked.append((which, position, channel, reduce))
        merged, *groups = self.maps[which]
        return xr.DataArray(merged, dims=("row", "col")), xr.DataArray(np.stack(groups), dims=("group", "row", "col"))

    def rows(self, position, channel=None, reduce="mean"):
        return self.pictures("rows", position, channel, reduce)

    def columns(self, position, channel=None, reduce="mean"):
        return self.pictures("columns", position, channel, reduce)


def cells(values):
    """A map that is 0 except at {(row, col): value}."""
    array = np.zeros(GRID, np.float32)
    for position, value in values.items():
        array[position] = value
    return array


#: 4 at the query, 2 beside it, and 1, 1, 2 further off, at 3, 7 and 17 cells; one of them negative.
SPREAD = cells({QUERY: 4, (1, 3): -2, (1, 5): 1, (0, 9): 1, (2, 19): 2})
#: Half the mass at the query and half six columns on: the root mean square distance from their middle is 3.
TWO = cells({QUERY: 0.5, (1, 8): -0.5})
#: Masses 3 and 1, two rows apart: variance 4 x 3/4 x 1/4.
ROWS = cells({(0, 2): 3, (2, 2): 1})
EMPTY = cells({})


def analysed(*maps, **spec):
    return affinity(FakeOperator(maps), AffinitySpec(**{"position": QUERY, **spec}))


def of(result, name, which="merged"):
    return result[name].sel(of=which).values.tolist()


def test_the_share_within_a_radius_takes_the_square_around_the_query():
    result = analysed(SPREAD, TWO, ROWS)
    assert tuple(result["radius"].values) == RADII == (1, 3, 7)
    assert of(result, "share") == pytest.approx([0.6, 0.7, 0.8])
    assert of(result, "share", "left") == pytest.approx([0.5, 0.5, 1.0])
    assert of(result, "share", "right") == pytest.approx([1.0, 1.0, 1.0])


def test_distances_are_counted_from_the_query():
    result = analysed(SPREAD, TWO, ROWS, position=(2, 17))
    assert of(result, "share") == pytest.approx([0.0, 0.2, 0.2])
    assert of(analysed(SPREAD, TWO, ROWS, position=(0, 10)), "share") == pytest.approx([0.1, 0.1, 0.4])


def test_the_total_is_the_signed_sum_and_the_mass_is_that_of_magnitudes():
    result = analysed(SPREAD, TWO, ROWS)
    assert [of(result, "total", which) for which in ("merged", "left", "right")] == [6, 0, 4]
    assert [of(result, "mass", which) for which in ("merged", "left", "right")] == [10, 1, 4]
    assert [of(result, "cells", which) for which in ("merged", "left", "right")] == [5, 2, 2]


def test_the_effective_width_is_the_root_mean_square_distance_from_the_centre_of_mass():
    result = analysed(TWO, ROWS, cells({(2, 7): -5}))
    assert of(result, "effective_width") == pytest.approx(3)
    assert of(result, "effective_width", "left") == pytest.approx(math.sqrt(4 * 3 / 16))
    assert of(result, "effective_width", "right") == pytest.approx(0, abs=1e-6)
    corners = cells({(0, 0): 1, (0, 8): 1, (2, 0): 1, (2, 8): 1})
    assert of(analysed(corners, TWO, TWO), "effective_width") == pytest.approx(math.sqrt(4**2 + 1**2))


def test_a_map_without_mass_has_no_share_and_no_width():
    result = analysed(EMPTY, SPREAD, EMPTY)
    assert np.isnan(of(result, "share")).all()
    assert math.isnan(of(result, "effective_width"))
    assert (of(result, "mass"), of(result, "total"), of(result, "cells")) == (0, 0, 0)
    assert of(result, "share", "left") == pytest.approx([0.6, 0.7, 0.8])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_counted_and_left_out_of_the_other_numbers(value):
    spoilt = SPREAD.copy()
    spoilt[0, 0] = spoilt[2, 4] = value
    result, clean = analysed(spoilt, SPREAD, spoilt), analysed(SPREAD, SPREAD, SPREAD)
    assert [of(result, "nonfinite", which) for which in ("merged", "left", "right")] == [2, 0, 2]
    for name in ("share", "total", "mass", "effective_width", "cells"):
        np.testing.assert_array_equal(result[name], clean[name])
    np.testing.assert_array_equal(result["merged"], spoilt)


def test_the_maps_come_back_as_they_were():
    result = analysed(SPREAD, TWO, ROWS)
    np.testing.assert_array_equal(result["merged"], SPREAD)
    np.testing.assert_array_equal(result["groups"].sel(group="left"), TWO)
    np.testing.assert_array_equal(result["groups"].sel(group="right"), ROWS)
    assert list(result["of"].values) == ["merged", "left", "right"]


@pytest.mark.parametrize(("side", "which", "expected"), [("reads", "rows", SPREAD), ("heard", "columns", TWO)])
def test_a_side_is_a_row_or_a_column(side, which, expected):
    op = FakeOperator([SPREAD] * 3, [TWO] * 3)
    result = affinity(op, AffinitySpec(QUERY, side, channel=7, reduce="rms"))
    assert op.asked == [(which, QUERY, 7, "rms")]
    np.testing.assert_array_equal(result["merged"], expected)
    assert result.attrs["side"] == SIDES[side]


def test_an_unknown_side_is_refused_before_anything_is_computed():
    op = FakeOperator([SPREAD] * 3)
    with pytest.raises(ValueError, match=r"side must be one of reads, heard; got 'writes'."):
        affinity(op, AffinitySpec(QUERY, "writes"))
    assert op.asked == []


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_aggregation_is_named_over_channels_or_heads(reduce):
    spec, words = AffinitySpec(QUERY, reduce=reduce), REDUCTIONS[reduce][0]
    assert words.endswith("over channels")
    assert aggregation(spec, FakeOperator([SPREAD] * 3)) == words
    assert aggregation(spec, FakeOperator([SPREAD] * 3, kind="attention")) == words.replace("channels", "heads")
    assert aggregation(replace(spec, channel=5), FakeOperator([SPREAD] * 3)) == "channel 5"
    assert analysed(SPREAD, TWO, ROWS, reduce=reduce).attrs["aggregation"] == words


def test_the_attrs_hold_the_whole_spec_and_all_that_it_ran_on():
    spec = AffinitySpec(QUERY, "heard", 3, "rms")
    attrs = affinity(FakeOperator([SPREAD] * 3), spec).attrs
    assert attrs["analysis"] == "affinity"
    assert AffinitySpec(**attrs["spec"]) == spec
    assert attrs["position"] == QUERY
    assert INFO.items() <= attrs.items()
    assert set(attrs["versions"]) == set(PACKAGES)


def test_equal_specs_on_equal_inputs_have_one_hash_and_any_difference_another():
    def hash_of(info=None, **spec):
        fields = {"position": QUERY, "side": "reads", "channel": None, "reduce": "mean_abs"}
        return affinity(FakeOperator([SPREAD] * 3, **info or {}), AffinitySpec(**fields | spec)).attrs["hash"]

    assert hash_of() == hash_of() == analysed(TWO, TWO, TWO).attrs["hash"]
    changed = [
        hash_of(), hash_of(position=(2, 1)), hash_of(side="heard"), hash_of(channel=0), hash_of(channel=1),
        hash_of(reduce="mean"), hash_of({"layer": "stage1.block2"}), hash_of({"image_sha256": "01"}),
    ]  # fmt: skip
    assert len(set(changed)) == len(changed)
    assert all(len(value) == 16 and set(value) <= set("0123456789abcdef") for value in changed)


def test_the_hash_does_not_depend_on_the_order_of_what_it_names():
    spec = AffinitySpec(QUERY)
    backwards = dict(reversed(INFO.items()))
    assert list(backwards) != list(INFO)
    assert record("affinity", spec, INFO)["hash"] == record("affinity", spec, backwards)["hash"]
    assert record("affinity", spec, INFO)["hash"] != record("latency", spec, INFO)["hash"]


def test_a_spec_cannot_be_changed_and_nothing_else_is_a_spec():
    spec = AffinitySpec(QUERY)
    with pytest.raises(FrozenInstanceError):
        spec.side = "heard"
    for wrong in (asdict(spec), AffinitySpec, None):
        with pytest.raises(TypeError, match="spec must be a Spec dataclass; got"):
            record("affinity", wrong, INFO)


class FakeChannels:
    """A channel-attention operator whose matrices are given, one for each head."""

    def __init__(self, *heads):
        self.heads = np.array(heads, np.float32)
        self.groups = tuple(f"head {i}" for i in range(len(heads)))
        self.info = INFO | {"kind": "channel"}

    def channel_matrix(self, group=None, reduce="mean"):
        combined = {"mean": self.heads.mean(0), "max_abs": self.heads.max(0)}[reduce]
        return xr.DataArray(combined if group is None else self.heads[self.groups.index(group)])


SELF = np.eye(4)  # every channel reads itself alone
EVEN = np.full((4, 4), 0.25)
NEXT = np.roll(np.eye(4), 1, 1)


def test_the_channel_matrices_come_back_merged_and_for_every_head():
    result = channel_affinity(FakeChannels(SELF, EVEN, NEXT), ChannelSpec())
    np.testing.assert_allclose(result["merged"], (SELF + EVEN + NEXT) / 3, rtol=1e-6)
    np.testing.assert_array_equal(result["groups"].sel(group="head 2"), NEXT)
    assert result["merged"].dims == ("channel_out", "channel_in")
    largest = channel_affinity(FakeChannels(SELF, EVEN, NEXT), ChannelSpec("max_abs"))
    assert largest["merged"].values[0].tolist() == [1, 1, 0.25, 0.25]


def test_how_many_channels_are_read_counts_them_by_the_entropy_of_a_row():
    result = channel_affinity(FakeChannels(SELF, EVEN, NEXT), ChannelSpec())
    assert [of(result, "effective_channels", f"head {i}") for i in range(3)] == pytest.approx([1, 4, 1])
    assert [of(result, "own", f"head {i}") for i in range(3)] == pytest.approx([1, 0.25, 0])
    row = [5 / 12, 5 / 12, 1 / 12, 1 / 12]
    assert of(result, "effective_channels") == pytest.approx(math.exp(-sum(p * math.log(p) for p in row)))


def test_channel_entries_that_are_not_finite_are_counted():
    spoilt = EVEN.copy()
    spoilt[1, 2] = np.nan
    result = channel_affinity(FakeChannels(SELF, spoilt), ChannelSpec())
    assert [of(result, "nonfinite", which) for which in result["of"].values] == [1, 0, 1]
    assert math.isfinite(of(result, "effective_channels"))


def test_a_channel_result_holds_its_spec_and_says_how_heads_were_combined():
    attrs = channel_affinity(FakeChannels(SELF, EVEN), ChannelSpec("max_abs")).attrs
    assert ChannelSpec(**attrs["spec"]) == ChannelSpec("max_abs")
    assert (attrs["side"], attrs["aggregation"]) == (OVER_CHANNELS, "largest |.| over heads")
    assert attrs["hash"] != channel_affinity(FakeChannels(SELF, EVEN), ChannelSpec()).attrs["hash"]
    assert INFO.items() <= (attrs | {"kind": "propagation"}).items()
