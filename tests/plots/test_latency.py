"""Time against positions: what is drawn where, lines that anyone can tell apart, and recordings kept by themselves."""

import holoviews as hv
import numpy as np
import pytest

from workbench.analysis.latency_file import from_document
from workbench.analysis.latency_ops import OPERATORS
from workbench.plots import latency as plot
from workbench.plots.latency_paper import MARKERS, png

#: The page's background, light and dark.
PAGES = ("#ffffff", "#121212")

NAMES = ("gspn global", "depthwise 7x7")


def sweep_of(power=1.0, sizes=(8, 16, 33), names=NAMES, missing=(), noisy=(), device="A device"):
    """A sweep whose seconds are 1e-6 positions ** power times 1, 2, ... for each name; missing, noisy: (name, size)."""
    rows = []
    for n, name in enumerate(names, 1):
        for size in sizes:
            if (name, size) in missing:
                rows.append({"what": name, "size": size, "reason": "too large"})
                continue
            median = n * 1e-6 * size ** (2 * power)
            rows.append({
                "what": name, "size": size, "median": median, "p20": 0.9 * median, "p80": 1.25 * median, "n": 7,
                "noisy": (name, size) in noisy, "bytes": 1e3, "flops": 1e3, "floor": 0.5 * median, "peak": None,
            })  # fmt: skip
    return from_document({
        "complete": True, "date": "2026-01-02T03:04:05+00:00", "commit": "abcdef0123456", "hash": "0" * 16,
        "spec": {
            "names": list(names), "sizes": list(sizes), "batch": 1, "channels": 64, "dtype": "float32",
            "backward": False, "budget": 0.5, "memory": None,
        },
        "machine": {"device": device, "device_type": "cuda", "processor": "P", "cores": 4, "threads": 4},
        "versions": {"torch": "2.9", "triton": "3.5"}, "method": "do_bench", "memory_method": "none",
        "noisy_share": 0.2, "rates": {"bandwidth": 1e9, "matmul": 1e10}, "results": rows,
    })  # fmt: skip


def renderers(figure):
    return hv.render(figure, backend="bokeh").renderers


def luminance(colour):
    """The relative luminance of WCAG 2 of a colour such as "#0072b2"."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_every_operator_has_a_colour_and_a_marker_of_its_own_that_show_on_both_pages():
    styles = [plot.style_of(name) for name in OPERATORS]
    assert len({style.colour for style in styles}) == len({style.marker for style in styles}) == len(OPERATORS)
    for style in styles:
        for page in PAGES:
            low, high = sorted((luminance(style.colour), luminance(page)))
            assert (high + 0.05) / (low + 0.05) >= 3
        assert style.marker in MARKERS


def test_an_operator_looks_the_same_in_every_figure_and_models_follow():
    assert plot.style_of("axial attention", ["axial attention"]) == plot.style_of("axial attention", list(OPERATORS))
    models = ["swin_nano", "gspn_nano"]
    assert plot.style_of("swin_nano", ["gspn global", *models]) != plot.style_of("gspn_nano", ["gspn global", *models])


def test_points_have_medians_bands_and_the_words_of_their_tooltips():
    sweep = sweep_of(missing=[("depthwise 7x7", 33)], noisy=[("depthwise 7x7", 8)])
    columns = plot.points(sweep, "depthwise 7x7")
    assert columns["positions"].tolist() == [64, 256]
    assert columns["seconds"] == pytest.approx([2e-6 * 64, 2e-6 * 256])
    assert columns["side"] == ["8 × 8", "16 × 16"]
    assert columns["median"] == ["128 µs", "512 µs"]
    assert columns["spread"][0] == "115 µs to 160 µs"
    assert columns["runs"] == ["7, noisy", "7"]
    assert columns["share"] == ["50 %", "50 %"]
    assert columns["device"] == ["A device", "A device"]
    band = plot.band(columns)
    assert band["x"].tolist() == [64, 256, 256, 64]
    assert band["y"] == pytest.approx(2e-6 * np.array([0.9 * 64, 0.9 * 256, 1.25 * 256, 1.25 * 64]))
    assert all(len(column) == 0 for column in plot.points(sweep, "axial attention").values())
    assert all(len(column) == 0 for column in plot.points(None, "gspn global").values())


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.0, "2 s"), (0.0015, "1.5 ms"), (1e-3, "1 ms"), (2.5e-5, "25 µs"), (4e-8, "0.04 µs")]
)
def test_times_are_told_in_the_unit_that_fits(seconds, words):
    assert plot.time_in_words(seconds) == words


@pytest.mark.parametrize("floors", [False, True])
@pytest.mark.parametrize("live", [None, sweep_of(noisy=[("gspn global", 16)])])
def test_the_parts_are_the_elements_of_the_figure_with_the_same_columns(live, floors):
    recordings = [plot.Recording("a", sweep_of(2.0, (16, 64))), plot.Recording("b", sweep_of(names=NAMES[:1]))]
    parts = plot.elements(NAMES, live, recordings, floors)
    drawn = renderers(plot.latency_figure(NAMES, live, recordings, floors))
    assert len(drawn) == len(parts) + len(recordings)  # an empty line of each for the legend
    for (part, columns), renderer in zip(parts.items(), drawn, strict=False):
        data = renderer.data_source.data
        assert set(columns) == set(data), part
        for name, column in columns.items():
            assert list(column) == list(data[name]), (part, name)


def test_noisy_points_are_hollow_and_the_others_filled():
    drawn = renderers(plot.latency_figure(NAMES[:1], sweep_of(noisy=[("gspn global", 16)])))
    marks = [r for r in drawn if type(r.glyph).__name__ == "Scatter"]
    assert [(r.glyph.fill_alpha, len(r.data_source.data["side"])) for r in marks] == [(1.0, 2), (0, 1)]


def test_recorded_lines_are_dashed_and_measured_ones_solid():
    figure = plot.latency_figure(NAMES, sweep_of(), [plot.Recording("recorded", sweep_of(2.0))])
    parts = list(plot.elements(NAMES, sweep_of(), [plot.Recording("recorded", sweep_of(2.0))], False))
    for part, renderer in zip(parts, renderers(figure), strict=False):
        if part.startswith("recorded line"):
            assert list(renderer.glyph.line_dash) == list(plot.DASHES[0])
        if part.startswith("line"):
            assert list(renderer.glyph.line_dash) == []


def test_the_legend_names_every_line_once_and_every_recording():
    figure = plot.latency_figure(NAMES, sweep_of(), [plot.Recording("Some GPU", sweep_of())])
    (legend,) = hv.render(figure, backend="bokeh").legend
    assert [item.label.value for item in legend.items] == [*plot.GUIDES, *NAMES, "Some GPU"]
    hidden = next(item for item in legend.items if item.label.value == "gspn global")
    assert len(hidden.renderers) == 8  # a click hides band, floor, line and marks, recorded ones too


def test_the_axes_hold_every_time_and_every_size_asked_for():
    recordings = [plot.Recording("a", sweep_of(2.0, (16, 64)))]
    sweep = sweep_of(missing=[(name, 33) for name in NAMES])
    (left, right), (bottom, top) = plot.axis_limits(NAMES, sweep, recordings, True)
    assert left < 64 < 64**2 < right
    for columns in (plot.points(s, name) for s in (sweep, recordings[0].sweep) for name in NAMES):
        assert (columns["least"] > bottom).all()
        assert (columns["high"] < top).all()
    bottom, top = plot.axis_limits(NAMES, None, [], False)[1]
    assert bottom <= plot.EMPTY[0] < plot.EMPTY[1] <= top


def test_guides_grow_with_the_first_and_the_second_power():
    parts = plot.elements(NAMES, sweep_of(), [], False)
    for guide, power in plot.GUIDES.items():
        x, y = (parts[f"guide {guide}"][name] for name in ("positions", "seconds"))
        assert np.log(y[1] / y[0]) / np.log(x[1] / x[0]) == pytest.approx(power)


def test_numbers_below_the_axis_have_room():
    found = plot.ticks(list(range(1, 101)))
    assert found[-1] == (10000.0, "100²")
    positions = np.log([position for position, _ in found])
    assert (np.diff(positions) > 2 * plot.APART * np.log(100) * 0.99).all()
    assert plot.ticks([7]) == [(49.0, "7²")]


def test_the_caption_tells_each_device_and_how_it_was_measured():
    recorded = sweep_of(device="Some GPU")
    text = plot.caption(sweep_of(), [plot.Recording("gpu", recorded)], True)
    assert "solid: measured on this machine, A device (P)" in text
    assert "dashed, recorded as 'gpu': Some GPU (P); forward, batch 1, 64 channels in operators, float32" in text
    for words in ("do_bench", "torch 2.9", "commit abcdef0123", "2026-01-02", "floor"):
        assert words in text
    assert "solid" not in plot.caption(None, [], False)


@pytest.mark.parametrize("live", [None, sweep_of(noisy=[("gspn global", 16)])])
def test_the_picture_is_a_png_of_its_size(live):
    data = png(NAMES, live, [plot.Recording("a", sweep_of())], floors=True)
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == 1800
