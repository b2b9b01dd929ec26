"""Relations between positions agree with their definitions, pair by pair, and unknown modules are refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernels import attention
from kernels.attention import Axis, Pattern
from kernels.attention.axis import PowerAxis
from kernels.propagation import DIRECTIONS
from kernels.slice_convolution import slice_convolve
from workbench.analysis.dependence import (
    FIELD,
    MIXING,
    Everything,
    Keys,
    Passes,
    Relation,
    Scan,
    Series,
    Statistic,
    Sum,
    convolution,
)
from workbench.analysis.model_dependence import relation
from workbench.analysis.theoretical import Convolution, receptive_field_size, theoretical_field
from workbench.models.parts import Linear2d, Mlp
from workbench.models.registry import variant
from workbench.models.swin import Swin

PATTERNS = [
    (attention.swin(4, 2), (9, 11)),
    (attention.swin((3, 5), (1, 4)), (7, 12)),
    (attention.neighborhood(5), (6, 9)),
    (attention.neighborhood((3, 2), stride=(2, 1), dilation=(2, 3)), (7, 8)),
    (attention.neighborhood(3, dilation=2, causal=True), (5, 7)),
    (attention.halo((2, 3), (2, 1)), (9, 7)),
    (attention.halo(3, 1, "clamp"), (8, 7)),
    (attention.grid((3, 2), (9, 8)), (9, 8)),
    (attention.stripe(2, "horizontal"), (5, 6)),
    (attention.cross(3), (7, 8)),
    (attention.axial("vertical"), (1, 6)),
    (attention.disc(3), (7, 9)),
    (attention.disc(1), (3, 2)),
    (Pattern(Axis(5, stride=2, border="crop"), Axis(3, dilation=2), radius=4), (9, 8)),
    (attention.heads(attention.disc(2), attention.stripe(1, 0)), (6, 5)),
    (attention.power(3, 2, 1), (5, 7)),
    (attention.power(4, 1, 0), (6, 9)),
    (attention.power(50, 1, 0), (3, 4)),
    (Pattern(cols=Axis(3, stride=2, border="crop"), raster=True), (4, 5)),
    (Pattern(rows=PowerAxis(2, 1, 1), cols=Axis(3, border="crop")), (7, 4)),
    (attention.full(), (4, 6)),
]


def random_masks(*grid):
    """Two masks of about four outputs in a hundred, at least one."""
    masks = torch.rand(2, *grid) < 0.04
    masks[:, 0, int(torch.randint(grid[1], ()))] = True
    return masks.numpy()


@pytest.mark.parametrize(("pattern", "grid"), PATTERNS)
def test_keys_are_those_of_the_pattern_and_the_query_itself(pattern, grid):
    reads = random_masks(*grid)
    relation = pattern.mask(grid).numpy() | np.eye(grid[0] * grid[1], dtype=bool)
    for found, queries in zip(Keys(grid, pattern, grid).back(reads), reads, strict=True):
        np.testing.assert_array_equal(found, relation[queries.ravel()].any(0).reshape(grid))


def test_nothing_is_read_through_tokens_of_padding():
    grid, padded, pattern = (5, 7), (9, 8), attention.neighborhood(3, dilation=2)
    reads = random_masks(*grid)
    inside = np.zeros(padded, bool)
    inside[: grid[0], : grid[1]] = True
    for found, queries in zip(Keys(grid, pattern, padded).back(reads), reads, strict=True):
        among = np.zeros(padded, bool)
        among[inside] = queries.ravel()
        keys = pattern.mask(padded).numpy()[among.ravel()].any(0)[inside.ravel()]
        np.testing.assert_array_equal(found, keys.reshape(grid) | queries)


@pytest.mark.parametrize(
    ("grid", "settings"),
    [
        ((9, 12), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
        ((11, 8), {"kernel": (2, 5), "stride": (2, 3), "padding": (0, 2), "dilation": (3, 1)}),
        ((8, 10), {"kernel": (3, 3), "stride": (2, 2), "after": 1}),
        ((7, 5), {"kernel": (1, 1), "stride": (3, 2)}),
        ((1, 4), {"kernel": (7, 7), "padding": (3, 3)}),
    ],
)
def test_a_convolution_reads_the_inputs_that_have_a_gradient(grid, settings):
    x = torch.randn(1, 1, *grid, dtype=torch.float64, requires_grad=True)
    given = {name: value for name, value in settings.items() if name not in ("kernel", "after")}
    after = settings.get("after", 0)
    weight = torch.rand(1, 1, *settings["kernel"], dtype=torch.float64) + 1
    y = F.conv2d(F.pad(x, (0, after, 0, after)), weight, **given)[0, 0]
    found = convolution(grid, **settings)
    assert found.grid == tuple(y.shape)
    reads = random_masks(*y.shape)
    for mask, outputs in zip(found.back(reads), reads, strict=True):
        (gradient,) = torch.autograd.grad(y[torch.from_numpy(outputs)].sum(), x, retain_graph=True)
        np.testing.assert_array_equal(mask, (gradient[0, 0] != 0).numpy())


@pytest.mark.parametrize("draw", range(8))
def test_the_field_of_a_chain_has_the_size_and_the_centre_of_the_formula(draw):
    ranges = ((1, 6), (1, 3), (0, 3), (1, 3))  # of kernel, stride, padding, dilation
    chain = [Convolution(*(int(torch.randint(*between, ())) for between in ranges)) for _ in range(4)]
    steps, grid = [], (400, 1)
    for layer in chain:
        steps.append(convolution(grid, (layer.kernel, 1), (layer.stride, 1), (layer.padding, 0), (layer.dilation, 1)))
        grid = steps[-1].grid
    feature, size = grid[0] // 2, receptive_field_size(chain)
    reads = np.zeros((2, *grid), bool)
    reads[:, feature] = True
    (pixels,) = np.nonzero(Series(steps).back(reads)[FIELD][:, 0])
    assert pixels[-1] - pixels[0] + 1 == size.size
    assert (pixels[0] + pixels[-1]) / 2 == size.centre(feature)


def carries(reader, place, direction, chunk, grid):
    """Whether a scan carries the value of `place` to `reader`: it comes before, in the same chunk, inside the cone."""
    along = 1 if direction in ("left_right", "right_left") else 0
    t, source = reader[along], place[along]
    if direction in ("right_left", "bottom_top"):
        t, source = grid[along] - 1 - t, grid[along] - 1 - source
    same_chunk = chunk is None or t // chunk == source // chunk
    return same_chunk and 0 <= abs(reader[1 - along] - place[1 - along]) <= t - source


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
@pytest.mark.parametrize(("grid", "merge"), [((5, 7), "aligned"), ((4, 1), "aligned"), ((5, 5), "released")])
def test_a_scan_reads_cones_that_end_at_the_chunk(grid, merge, chunk):
    reads, last = random_masks(*grid), grid[1] - 1
    expected = np.zeros_like(reads)
    for n, *reader in np.argwhere(reads):
        for row, col in np.ndindex(*grid):
            if merge == "aligned":
                expected[n, row, col] |= any(carries(reader, (row, col), d, chunk, grid) for d in DIRECTIONS)
            elif carries(reader, (row, col), "left_right", chunk, grid):
                # Gates and lambda at the place, values from where its frame has them.
                for place in ((row, col), (col, row), (row, last - col), (last - col, row)):
                    expected[(n, *place)] = True
    np.testing.assert_array_equal(Scan(grid, chunk, merge).back(reads), expected)


@pytest.mark.parametrize(("grid", "size"), [((6, 9), 3), ((1, 5), 5), ((7, 4), 1), ((8, 8), 5)])
@pytest.mark.parametrize("order", [("left_right",), ("bottom_top", "left_right", "top_bottom")])
def test_passes_read_what_has_a_gradient_when_every_relu_lets_through(grid, size, order):
    x = torch.randn(1, 1, *grid, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(len(order), 1, 1, size, dtype=torch.float64) + 1
    active = torch.ones(len(order), 1, 1, *grid, dtype=torch.bool)
    y = slice_convolve(x, weight, active, directions=order)[0, 0]
    reads = random_masks(*grid)
    for mask, outputs in zip(Passes(grid, order, size).back(reads), reads, strict=True):
        (gradient,) = torch.autograd.grad(y[torch.from_numpy(outputs)].sum(), x, retain_graph=True)
        np.testing.assert_array_equal(mask, (gradient[0, 0] != 0).numpy())


def test_a_statistic_reads_everything_in_the_field_and_nothing_more_in_the_mixing():
    reads = random_masks(3, 4)
    found = Statistic((3, 4), "mean").back(reads)
    assert found[FIELD].all()
    np.testing.assert_array_equal(found[MIXING], reads[MIXING])
    assert Everything((3, 4)).back(reads).all()


def test_series_and_sums_compose_relations_and_collect_their_statistics():
    grid = (7, 6)
    near = convolution(grid, (3, 3), padding=(1, 1))
    step = convolution(grid, (2, 2), (2, 2))
    both = Series([Sum(Relation(grid), Series([near, Statistic(grid, "mean")]), near), step, Statistic((3, 3), "norm")])
    assert both.grid == (3, 3)
    assert both.statistics == ("mean", "norm")
    reads = np.zeros((2, 3, 3), bool)
    reads[:, 1, 1] = True
    found = both.back(reads)
    assert found[FIELD].all()
    expected = np.zeros(grid, bool)
    expected[1:5, 1:5] = True
    np.testing.assert_array_equal(found[MIXING], expected)


@pytest.mark.parametrize(
    "relation",
    [
        Keys((4, 5), attention.cross(2), (4, 6)),
        Keys((4, 5), attention.power(3, 1, 1), (4, 5)),
        Scan((4, 5), 2, "aligned"),
        Passes((4, 5), ("left_right", "bottom_top"), 3),
        Statistic((4, 5), "mean"),
        Everything((4, 5)),
    ],
)
def test_masks_are_carried_one_by_one_and_no_output_reads_nothing(relation):
    reads = random_masks(4, 5)
    before = reads.copy()
    nothing = np.zeros_like(reads)
    assert not relation.back(nothing).any()
    nothing[MIXING] = reads[MIXING]
    found = relation.back(nothing)
    assert not found[FIELD].any()
    np.testing.assert_array_equal(found[MIXING], relation.back(reads)[MIXING])
    np.testing.assert_array_equal(reads, before)


class Blur(nn.Module):
    """A module that nobody has said anything about."""

    def forward(self, x):
        return x.mean((1, 2), keepdim=True) + x


class Widened(nn.Linear):
    """A known class whose forward is another one."""

    def forward(self, x):
        return super().forward(x.roll(1, 1))


class Renamed(Linear2d):
    """A known class that computes what its parent does."""


class Shuffled(Swin):
    """A model that runs its parts in an order of its own."""

    def forward(self, x):
        return super().forward(x.flip(-1))


@pytest.mark.parametrize(
    "module", [Blur(), Widened(2, 2), nn.Sequential(nn.GELU(), Blur()), Mlp(2, Widened), nn.BatchNorm1d(3)]
)
def test_a_module_of_an_unknown_class_is_refused_and_never_taken_as_pointwise(module):
    with pytest.raises(TypeError, match=r"^Which positions a .*(Blur|Widened|BatchNorm1d) reads is not known: .*\.$"):
        relation(module, (4, 4))


def test_an_unknown_part_of_a_model_is_refused():
    model = variant("swin_nano").build({})
    model.stages[0].blocks[1].mlp = Blur()
    assert theoretical_field(model, "stage1.block1", (0, 0), 64).field.sum() == 16**2
    with pytest.raises(TypeError, match=r"Blur reads is not known"):
        theoretical_field(model, "stage1.block2", (0, 0), 64)


def test_a_model_that_overrides_the_order_of_its_parts_is_refused():
    with pytest.raises(TypeError, match=r"Shuffled reads is not known"):
        theoretical_field(Shuffled(dims=(4,), depths=(1,), heads=(1,)), "stage1.block1", (0, 0), 64)


def test_a_class_that_overrides_nothing_reads_as_its_parent():
    reads = random_masks(3, 4)
    assert type(relation(Renamed(2, 2), (3, 4))) is Relation
    np.testing.assert_array_equal(relation(Renamed(2, 2), (3, 4)).back(reads), reads)


def test_a_convolution_or_pooling_with_another_border_is_refused():
    for settings, told in (({"padding": "same"}, "'same'"), ({"padding": 1, "padding_mode": "circular"}, "'circular'")):
        with pytest.raises(TypeError, match=rf"^Which positions a convolution reads is known .*{told}.*\.$"):
            relation(nn.Conv2d(2, 2, 3, **settings), (4, 4))
    with pytest.raises(TypeError, match=r"^Which positions a pooling reads is known .*ceil_mode=True\.$"):
        relation(nn.AvgPool2d(2, ceil_mode=True), (5, 5))
