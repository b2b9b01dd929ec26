"""The figure for a paper: a grid with one colour bar, what stands in it, and files that are the same bytes again."""

import ast
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import holoviews as hv
import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm

from workbench.analysis.receptive_field import receptive_field
from workbench.models import load_model
from workbench.plots import receptive_field_paper
from workbench.plots.receptive_field import PARTS, caption, colour_range, map_figure, shares
from workbench.plots.receptive_field_curves import ranked_figure, square_figure
from workbench.plots.receptive_field_difference import PARTS as DIFFERENCE_PARTS
from workbench.plots.receptive_field_difference import difference_figure
from workbench.plots.receptive_field_paper import MARKERS, figure, measures_in_words, png, svg
from workbench.plots.receptive_field_words import names, shared_facts


@pytest.fixture
def four(blob, field_of):
    """Results of four models, of two sizes of the picture and more or less wide."""
    mixing = np.zeros((48, 48), bool)
    mixing[5:40, 8:44] = True
    return [
        field_of(blob((48, 48), (18, 30), (2, 2)), model="a", theory=(mixing, True)),
        field_of(blob((48, 48), (18, 30), (9, 4), 40), model="b"),
        field_of(blob((30, 60), (11, 37), (3, 3)), model="c"),
        field_of(np.ones((48, 48)), model="d", weights="trained", seed=None),
    ]


def maps(fig):
    """The axes with a map."""
    return [axes for axes in fig.axes if axes.images]


def texts(fig):
    return [text.get_text() for text in fig.texts]


def boxes(fig):
    """The extent of every axes with its labels and of every text on the sheet, in pixels."""
    renderer = FigureCanvasAgg(fig).get_renderer()
    drawn = [axes.get_tightbbox(renderer) for axes in fig.axes]
    drawn += [text.get_window_extent(renderer) for text in fig.texts]
    return drawn + [legend.get_window_extent(renderer) for legend in fig.legends]


def test_every_map_is_drawn_in_one_logarithmic_range_with_its_own_pixels(four):
    fig = figure(four)
    limits = colour_range(four)
    assert len(maps(fig)) == 4
    for axes, result in zip(maps(fig), four, strict=True):
        (image,) = axes.images
        assert isinstance(image.norm, LogNorm)
        assert (image.norm.vmin, image.norm.vmax) == pytest.approx(limits)
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), shares(result))
        rows, cols = result["map"].shape
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, cols), (rows, 0))
        assert len(axes.collections) == 2 * 3  # field, 95 % and 50 %, each on a darker line
        assert len(axes.patches) == 1  # the unit's cell
    assert maps(figure(four, decades=2))[0].images[0].norm.vmin == pytest.approx(limits[1] / 100)


def test_each_map_has_its_name_above_and_its_numbers_below(four):
    fig = figure(four)
    found = texts(fig)
    for name, result in zip(names(four), four, strict=True):
        assert any(name == text.replace("\n", " ") for text in found)
        assert "\n".join(measures_in_words(result)) in found
    major, minor = float(four[1]["sigma_major"]), float(four[1]["sigma_minor"])
    assert measures_in_words(four[1])[1] == f"σ = {major:.0f} × {minor:.0f} px"
    assert measures_in_words(four[1])[0] == f"r(50 %) = {100 * float(four[1]['r'].sel(threshold=0.5)):.1f} %"


def test_numbers_that_do_not_exist_are_said_so(field_of, blob):
    assert measures_in_words(field_of(np.zeros((8, 8)))) == ["r(50 %) = not reached", "σ = not defined"]
    away = field_of(blob((40, 40), (36, 36), (2, 2)), spec={"thresholds": (0.3, 0.6)})
    assert measures_in_words(away)[0] == "r(60 %) = not reached"


def test_the_note_says_what_all_maps_have_in_common(four):
    note = texts(figure(four))[-1].replace("\n", " ")
    for fact in (*shared_facts(four), "one range for all maps compared", "over 4 decades", "smallest centred square"):
        assert fact in note
    assert "random weights" not in note  # one is trained, so the names say it


@pytest.mark.parametrize("width", [3.5, 7.0])
def test_nothing_overlaps_and_nothing_is_cut_off_at_the_width_of_a_column(width, four):
    fig = figure(four, width=width)
    assert fig.get_size_inches()[0] == width
    drawn = boxes(fig)
    for box in drawn:
        assert box.x0 >= -0.5
        assert box.y0 >= -0.5
        assert box.x1 <= fig.bbox.x1 + 0.5
        assert box.y1 <= fig.bbox.y1 + 0.5
    for n, box in enumerate(drawn):
        for other in drawn[n + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, down) <= 1
    assert min(text.get_fontsize() for text in fig.findobj(mpl.text.Text) if text.get_text()) >= 4.5  # exponents


def test_rows_are_kept_and_a_gap_stays_empty(four):
    a, b, c, d = four
    lefts = [axes.get_position().x0 for axes in maps(figure([[a, None, b], [c, d]]))]
    assert lefts[0] == pytest.approx(lefts[2])
    assert lefts[0] < lefts[3] < lefts[1]
    tops = [axes.get_position(original=True).y1 for axes in maps(figure(four, columns=3))]
    assert tops[0] == tops[1] == tops[2] > tops[3]
    assert len(maps(figure(four[:1], width=3.5))) == 1


def test_the_curves_have_a_line_marks_and_a_name_for_each_result(four):
    fig = figure(four)
    square, ranked = fig.axes[-2:]
    assert len(ranked.lines) == 2 * 4 + 1
    assert len(square.lines) == 2 * 4 + 2  # an even map for each of two shapes
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names(four), "same mass on every pixel"]
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in legend.legend_handles}
    assert len(looks) == 5
    assert ranked.get_xscale() == "log"
    for line, marks in zip(square.lines[0:8:2], square.lines[1:8:2], strict=True):
        assert line.get_color() == marks.get_color()
        assert marks.get_marker() in MARKERS.values()


def test_curves_that_could_not_be_told_apart_are_left_out(field_of):
    many = [field_of(np.ones((8, 8)), model=f"toy{n}") for n in range(9)]
    few, all_ = figure(many[:8], columns=4), figure(many, columns=4)
    assert len(few.axes) == 8 + 1 + 2  # maps, colour bar, curves
    assert len(all_.axes) == 9 + 1
    assert few.legends
    assert not all_.legends


def test_there_is_no_figure_of_nothing_and_of_no_column(four):
    for nothing in ([], [[]], [[None]]):
        with pytest.raises(ValueError, match=r"^A figure of receptive fields needs at least one result; got none\.$"):
            figure(nothing)
    with pytest.raises(ValueError, match=r"^A figure needs at least one column of maps; got 0\.$"):
        figure(four, columns=0)


def test_a_png_has_the_size_that_its_resolution_asks_for(four):
    fig = figure(four, width=3.5)
    picture = PIL.Image.open(io.BytesIO(png(fig, 120)))
    assert picture.size == tuple(int(120 * inches) for inches in fig.get_size_inches())
    assert picture.info.get("Software") is None


def test_files_are_the_same_bytes_again_and_leave_the_global_settings_alone(four):
    before = dict(mpl.rcParams)
    assert svg(figure(four)) == svg(figure(four))
    assert png(figure(four), 60) == png(figure(four), 60)
    assert dict(mpl.rcParams) == before


def test_the_text_of_an_svg_stays_text_and_it_has_no_date(four):
    data = svg(figure(four))
    written = " ".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(data).iter() if node.tag.endswith("}text")
    )
    for words in ("share of the mass per pixel", "highest pixels, % of all", "r(50 %)", *names(four)[0].split()):
        assert words in written
    assert not re.search(rb"<dc:date>|20\d\d-\d\d-\d\d", data)


def test_figures_are_made_without_pyplot_and_its_global_state():
    folder = Path(receptive_field_paper.__file__).parent
    for path in folder.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        names_ = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
        assert not any("pyplot" in name for name in modules | names_)


def test_results_of_real_models_are_drawn_in_every_figure():
    results = [
        receptive_field(load_model(name), ["coffee", "astronaut"], unit="2x1", size=(32, 48))
        for name in ("gspn_nano", "swin_nano")
    ]
    limits = colour_range(results)
    for result in results:
        assert len(hv.render(map_figure(result, None, limits), backend="bokeh").renderers) == len(PARTS)
        assert "theoretical field" in caption(result, limits)
        assert "mean over 2 images" in caption(result, limits)
    for figure_ in (square_figure, ranked_figure):
        assert len(hv.render(figure_(results), backend="bokeh").renderers) == 5
    assert len(hv.render(difference_figure(*results, None, (-1e-4, 1e-4)), backend="bokeh").renderers) == len(
        DIFFERENCE_PARTS
    )
    assert len(maps(figure(results, width=3.5))) == 2
    assert names(results) == ["gspn_nano", "swin_nano"]
