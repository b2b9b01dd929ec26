"""Which keys a pattern names: against the closed forms of the papers, on random sizes, and what it refuses.

`test_attention_tiles.py` asks the same of the tables that the kernels read; no tensor is attended with here.
"""

import itertools
import random
import re

import numpy as np
import pytest
import torch

from kernels.attention import (
    Axis,
    Pattern,
    PowerAxis,
    axial,
    block,
    cross,
    disc,
    full,
    grid,
    halo,
    heads,
    neighborhood,
    power,
    stripe,
    swin,
)

SAMPLE = [
    swin(3), swin(4, 2), swin((3, 2), (1, 0)), block((2, 5)), neighborhood(3), neighborhood(4, 3),
    neighborhood((5, 3), (2, 3)), neighborhood(2, 2, 2), neighborhood(3, 2, causal=True), halo(4, 2),
    halo((2, 3), (1, 0)), halo(2, 1, "clamp"), grid(2, (6, 10)), stripe(2), stripe(3, "horizontal"), cross(2),
    axial(0), axial(1), disc(1), disc(3), power(4, 2, 1), power(3, 1, 0), full(), heads(swin(3), axial(1), disc(2)),
]  # fmt: skip
GRIDS = [(6, 10), (12, 20)]

patterns = pytest.mark.parametrize("pattern", SAMPLE, ids=lambda p: p.name)
grids = pytest.mark.parametrize("size", GRIDS, ids=str)


def positions(size):
    return itertools.product(range(size[0]), range(size[1]))


def where(size, read):
    """The positions for which `read(row, col)` holds, row by row."""
    return [key for key in positions(size) if read(*key)]


@pytest.fixture
def draw(request):
    """Random choices that are new for every test and the same in every run."""
    return random.Random(request.node.nodeid)


# Neighbourhoods: kernel, stride, dilation, causal


def gna_keys(i, size, kernel, stride, dilation, causal):
    """Generalised neighbourhood attention along an axis, as its paper defines it."""
    g, ii = i % dilation, i // dilation
    length = (size - g + dilation - 1) // dilation
    left, right = kernel // 2, kernel - 1 - kernel // 2
    if causal:
        leader = min((ii // stride) * stride + stride - 1, length - 1)
        start, stop = max(leader - (kernel - 1), 0), min(ii + 1, length)
    else:
        leader = min((ii // stride) * stride + stride // 2, length - 1)
        centre = min(max(leader, left), length - 1 - right)
        start, stop = centre - left, centre - left + kernel
    return [g + dilation * j for j in range(start, stop)]


def random_axis(draw):
    """Kernel, stride, dilation and a map's size: groups may be truncated, kernels and strides even."""
    kernel = draw.randint(1, 9)
    dilation = draw.randint(1, 4)
    return kernel, draw.randint(1, kernel), dilation, kernel * dilation + draw.randint(0, 20)


def test_neighborhoods_read_the_keys_of_the_papers_formula(draw):
    truncated = even = 0
    for _ in range(1500):
        (kernel, stride, dilation, height), (k, s, d, width) = random_axis(draw), random_axis(draw)
        causal = draw.random() < 0.3
        pattern = neighborhood((kernel, k), (stride, s), (dilation, d), causal)
        r, c = draw.randrange(height), draw.randrange(width)
        rows = gna_keys(r, height, kernel, stride, dilation, causal)
        cols = gna_keys(c, width, k, s, d, causal)
        assert pattern.keys((r, c), (height, width)) == list(itertools.product(rows, cols))
        truncated += -(-(height - r % dilation) // dilation) % stride != 0
        even += kernel % 2 == 0 and stride % 2 == 0
    assert min(truncated, even) > 100  # the cases that other implementations got wrong did occur


def test_every_position_of_small_axes_reads_the_keys_of_the_papers_formula():
    cases = [(k, s, d) for k in range(1, 6) for s in range(1, k + 1) for d in (1, 2, 3)]
    for (k, s, d), extra, causal in itertools.product(cases, range(5), (False, True)):
        size = k * d + extra
        axis = Axis(k, stride=s, dilation=d, causal=causal)
        assert [list(axis.keys(i, size)) for i in range(size)] == [
            gna_keys(i, size, k, s, d, causal) for i in range(size)
        ]


def test_a_neighborhood_of_stride_one_has_its_query_in_the_middle_and_slides_back_at_the_border():
    assert neighborhood(3).keys((4, 0), (8, 9)) == where((8, 9), lambda r, c: 3 <= r <= 5 and c <= 2)
    assert neighborhood((1, 3), dilation=2).keys((0, 7), (2, 8)) == [(0, 3), (0, 5), (0, 7)]


def test_a_neighborhood_whose_stride_is_its_kernel_is_blocked():
    assert all(
        neighborhood(k, k).keys(p, (3 * k, 2 * k)) == block(k).keys(p, (3 * k, 2 * k))
        for k in (1, 2, 5, 6)
        for p in positions((3 * k, 2 * k))
    )


# Swin


def test_swins_windows_are_cells(draw):
    for _ in range(700):
        window = draw.randint(1, 9), draw.randint(1, 9)
        shift = draw.randrange(window[0]), draw.randrange(window[1])
        size = draw.randint(1, 24), draw.randint(1, 24)
        r, c = draw.randrange(size[0]), draw.randrange(size[1])

        def cell(i, axis, window=window, shift=shift):
            return (i + window[axis] - shift[axis]) // window[axis]

        same = where(size, lambda i, j, r=r, c=c, cell=cell: (cell(i, 0), cell(j, 1)) == (cell(r, 0), cell(c, 1)))
        assert swin(window, shift).keys((r, c), size) == same


def rolled_and_masked(window, shift, height, width):
    """Which query reads which key in Swin's own construction: roll, cut into windows, forbid pairs of two regions."""
    region = torch.zeros(height, width)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for n, (rows, cols) in enumerate(itertools.product(slices, slices)):
        region[rows, cols] = n

    def windows(values):
        return values.unfold(0, window, window).unfold(1, window, window).reshape(-1, window * window)

    position = windows(torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1)))
    reads = torch.zeros(height * width, height * width, dtype=torch.bool)
    for place, same in zip(position, windows(region), strict=True):
        reads[place[:, None], place[None, :]] = same[:, None] == same[None, :]
    return reads


@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [(7, 3, (14, 14)), (7, 3, (28, 28)), (7, 3, (14, 21)), (8, 4, (16, 16)), (7, 1, (14, 14)), (4, 2, (8, 12)),
     (4, 1, (8, 8)), (4, 3, (4, 12)), (2, 1, (2, 2)), (5, 2, (20, 10))],
)  # fmt: skip
def test_shifted_windows_are_those_of_rolling_and_masking(window, shift, size):
    assert torch.equal(swin(window, shift).mask(size), rolled_and_masked(window, shift, *size))


@pytest.mark.parametrize(("size", "mean"), [(56, 43.18), (28, 37.73), (14, 27.94)])
def test_shifted_windows_of_seven_hold_the_stated_number_of_keys(size, mean):
    count = swin(7, 3).count((size, size))
    assert (round(float(count.mean()), 2), count.min(), count.max()) == (mean, 9, 49)


# The others, each against its definition


def test_halos_read_their_block_and_what_surrounds_it(draw):
    for _ in range(300):
        b, h = draw.randint(1, 6), draw.randint(0, 4)
        size = draw.randint(1, 20), draw.randint(1, 20)
        r, c = draw.randrange(size[0]), draw.randrange(size[1])
        top, left = r // b * b - h, c // b * b - h
        side = b + 2 * h
        near = where(size, lambda i, j, t=top, e=left, s=side: t <= i < t + s and e <= j < e + s)
        assert halo(b, h).keys((r, c), size) == near


def test_clamped_halos_always_read_whole_windows():
    size = (12, 17)
    assert (halo(4, 2, "clamp").count(size) == 64).all()
    assert halo(4, 2, "clamp").keys((0, 16), size) == where(size, lambda r, c: r < 8 and c >= 9)


@pytest.mark.parametrize(("window", "size"), [(7, (56, 56)), (7, (14, 28)), ((2, 5), (6, 10)), (3, (3, 9))])
def test_a_grid_reads_what_equals_the_query_modulo_the_maps_share(window, size, draw):
    rows, cols = window if isinstance(window, tuple) else (window, window)
    down, right = size[0] // rows, size[1] // cols
    for _ in range(20):
        r, c = draw.randrange(size[0]), draw.randrange(size[1])
        same = where(size, lambda i, j, r=r, c=c: i % down == r % down and j % right == c % right)
        assert grid(window, size).keys((r, c), size) == same
        assert len(same) == rows * cols


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
def test_stripes_and_crosses_read_whole_lines(width):
    size = (10, 13)
    for r, c in positions(size):
        down = where(size, lambda i, j, c=c: j // width == c // width)
        across = where(size, lambda i, j, r=r: i // width == r // width)
        assert stripe(width).keys((r, c), size) == stripe(width, "vertical").keys((r, c), size) == down
        assert stripe(width, 1).keys((r, c), size) == stripe(width, "horizontal").keys((r, c), size) == across
        assert cross(width).keys((r, c), size) == sorted({*down, *across})
    assert [p.name for p in cross(width).groups] == [stripe(width, 0).name, stripe(width, 1).name]


def test_axial_patterns_read_their_own_column_or_row():
    assert axial(0).keys((2, 3), (4, 6)) == [(r, 3) for r in range(4)]
    assert axial("horizontal").keys((2, 3), (4, 6)) == [(2, c) for c in range(6)]


@pytest.mark.parametrize("radius", [1, 2, 5, 8, 40])
def test_a_disc_reads_what_is_nearer_than_its_radius(radius, draw):
    size = (17, 23)
    for _ in range(12):
        r, c = draw.randrange(size[0]), draw.randrange(size[1])
        near = where(size, lambda i, j, r=r, c=c: (i - r) ** 2 + (j - c) ** 2 < radius**2)
        assert disc(radius).keys((r, c), size) == near


def test_a_disc_of_radius_eight_reads_the_stated_mean_number_of_keys():
    assert round(float(disc(8).count((56, 56)).mean()), 1) == 170.6


def power_reads(q, k, size, window, sink):
    """PowerAttention's mask for raster positions q and k."""
    distance = q // size - k // size
    return q >= k and (distance < window or distance & (distance - 1) == 0 or k < sink * size)


@pytest.mark.parametrize(("size", "window", "sink"), [(4, 2, 1), (3, 1, 0), (1, 1, 1), (5, 3, 2), (256, 5, 1)])
def test_power_attention_reads_local_blocks_powers_of_two_back_and_the_sink(size, window, sink):
    height, width = shape = (7, 11)
    for r, c in positions(shape):
        q = r * width + c
        wanted = [divmod(k, width) for k in range(height * width) if power_reads(q, k, size, window, sink)]
        assert power(size, window, sink).keys((r, c), shape) == wanted


def test_full_attention_reads_everything():
    assert full().keys((1, 1), (3, 2)) == list(positions((3, 2)))
    assert full().whole
    assert not any(p.whole for p in SAMPLE if p.name != "full")


# What holds for every pattern


@grids
@patterns
def test_count_and_mask_say_what_keys_says_and_every_query_reads_itself(pattern, size):
    if pattern.name.startswith("grid") and size != (6, 10):
        pattern = grid(2, size)
    mask, count = pattern.mask(size), pattern.count(size)
    assert count.shape == size
    assert mask.dtype == torch.bool
    for r, c in positions(size):
        keys = pattern.keys((r, c), size)
        assert (r, c) in keys
        assert keys == sorted(set(keys))
        assert count[r, c] == len(keys)
        assert mask[r * size[1] + c].nonzero().flatten().tolist() == [i * size[1] + j for i, j in keys]


def test_patterns_of_the_same_rules_are_equal_and_hash_alike():
    same = [
        (swin(7), swin((7, 7), (0, 0))),
        (swin(7), block(7)),
        (axial(1), stripe(1, "horizontal")),
        (full(), Pattern()),
    ]
    same += [(neighborhood(5), Pattern(Axis(5), Axis(5), "mine")), (cross(2), heads(stripe(2, 0), stripe(2, 1)))]
    for one, other in same:
        assert one == other
        assert hash(one) == hash(other)
    assert len(set(SAMPLE)) == len(SAMPLE)


def test_names_say_what_a_pattern_is():
    names = [p.name for p in (swin(7, 3), neighborhood(7, (1, 2), 2), halo(8, 3), grid(7, 56), cross(1), disc(8))]
    assert names == [
        "swin 7x7 shifted by 3x3", "neighborhood 7x7 stride 1x2 dilation 2x2", "halo 8x8 + 3x3", "grid 7x7 of 56x56",
        "cross of stripes of 1", "disc of radius 8",
    ]  # fmt: skip


WHOLE_NUMBER = "must be a whole number or a (rows, cols) pair of them; got"
REFUSED = {
    "swin window": (lambda: swin(0), "window must be at least 1 position a side; got 0."),
    "swin fraction": (lambda: swin(2.5), f"window {WHOLE_NUMBER} 2.5."),
    "swin shift": (
        lambda: swin(7, 7),
        "shift must be a whole number from 0 to 6, smaller than the window 7, usually 3; got 7.",
    ),
    "swin pair": (lambda: swin(7, (1, 2, 3)), f"shift {WHOLE_NUMBER} (1, 2, 3)."),
    "block": (lambda: block((3, -1)), "window must be at least 1 position a side; got (3, -1)."),
    "kernel": (lambda: neighborhood(0), "kernel must be at least 1; got 0."),
    "stride": (lambda: neighborhood(3, 4), "stride must be from 1 to the kernel 3; got 4."),
    "no stride": (lambda: neighborhood(3, 0), "stride must be at least 1; got 0."),
    "dilation": (lambda: neighborhood(3, 1, (1, 0)), "dilation must be at least 1; got (1, 0)."),
    "halo block": (lambda: halo(0, 1), "block must be at least 1; got 0."),
    "halo": (lambda: halo(4, -1), "halo must be at least 0; got -1."),
    "border": (lambda: halo(4, 1, "wrap"), "border must be 'crop' or 'clamp'; got 'wrap'."),
    "grid window": (lambda: grid(0, 8), "window must be at least 1 position a side; got 0."),
    "grid": (lambda: grid(7, (14, 20)), "size must be a multiple of the window 7 along both axes; got (14, 20)."),
    "stripe": (lambda: stripe(0), "width must be at least 1; got 0."),
    "cross": (lambda: cross("x"), "width must be a whole number; got 'x'."),
    "cross of a pair": (lambda: cross((1, 2)), "width must be a whole number; got (1, 2)."),
    "a truth value": (lambda: swin(True), f"window {WHOLE_NUMBER} True."),
    "axis": (lambda: axial(2), "axis must be 0 or 'vertical', 1 or 'horizontal'; got 2."),
    "stripe axis": (lambda: stripe(1, "down"), "axis must be 0 or 'vertical', 1 or 'horizontal'; got 'down'."),
    "disc": (lambda: disc(0), "radius must be at least 1; got 0."),
    "power block": (lambda: power(0), "block must be at least 1; got 0."),
    "power window": (lambda: power(4, 0), "window must be at least 1; got 0."),
    "power sink": (lambda: power(4, 1, -1), "sink must be at least 0; got -1."),
    "heads": (
        lambda: heads(swin(3)),
        "heads takes two patterns or more, none of them split over heads or in raster order.",
    ),
    "split heads": (
        lambda: heads(swin(3), cross(1)),
        "heads takes two patterns or more, none of them split over heads or in raster order.",
    ),
    "position": (
        lambda: swin(7).keys((3, 9), (8, 9)),
        "position must be a (row, col) on the grid of 8 rows and 9 columns; got (3, 9).",
    ),
    "small map": (
        lambda: neighborhood(7, dilation=2).check((20, 13)),
        "neighborhood 7x7 dilation 2x2 needs a map of at least 7 x 2 = 14 columns, its window (kernel times dilation); "
        "got 13: choose a kernel of at most 6 or a dilation of at most 1 or a larger map.",
    ),
    "small map of a mask": (
        lambda: halo(4, 2, "clamp").mask((7, 9)),
        "halo 4x4 + 2x2 clamped needs a map of at least 8 rows, its window (kernel times dilation); "
        "got 7: choose a kernel of at most 7 or a larger map.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_sentence(case):
    make, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


def test_what_is_cropped_or_causal_is_defined_on_the_smallest_map():
    for pattern in (swin(7, 3), halo(8, 3), disc(8), power(), stripe(4), neighborhood(7, 2, 3, causal=True), full()):
        pattern.check((1, 1))
        assert pattern.keys((0, 0), (1, 1)) == [(0, 0)]


def test_the_counts_of_a_large_map_need_no_mask():
    count = neighborhood(7).count((4096, 4096))
    assert (int(count.min()), int(count.max())) == (49, 49)
    assert np.issubdtype(count.dtype, np.integer)


def test_a_power_rule_reads_in_order():
    rule = PowerAxis(3, 2, 1)
    assert [list(rule.keys(i, 20)) for i in (0, 4, 19)] == [
        [0],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 6, 7, 8, 12, 13, 14, *range(15, 20)],
    ]
