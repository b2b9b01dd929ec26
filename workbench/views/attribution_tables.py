"""The words and numbers of the Attribution page, which screen readers read."""

import html
from collections.abc import Callable

import xarray as xr

from workbench.analysis.attribution import METHODS

from .attribution_request import LISTED, AttributionDrawing, Panel, Progress
from .state import shared_model
from .tables import html_table

_SMALL = "font-size: 11px; line-height: 1.35; opacity: 0.8"

#: Under the numbers of every page.
CAVEAT = (
    "<div style='font-size: 13px'><b>An attribution is not an explanation:</b> it says how one score of one model "
    "moves with the pixels of this one picture, to first order, along a path or under a window, as its method has it; "
    "it does not say why the model decides as it does, nor that it would treat another picture alike.</div>"
)

#: What stands with classes that nobody has taught the model.
MEANINGLESS = (
    "{models}: random weights, so the class numbers mean nothing, and the attribution shows what the architecture and "
    "this draw of weights do with the picture, nothing learnt."
)


def title_of(panel: Panel) -> str:
    """What tells a panel from the other: model and method."""
    return f"{panel.result.attrs['model']}, {METHODS[panel.source.method].title}"


def heading(panel: Panel) -> str:
    """What stands over a panel: model and method, and what is explained."""
    attrs = panel.result.attrs
    name = f"<b>{html.escape(attrs['model'])}</b> {html.escape(METHODS[panel.source.method].title)}"
    words = f"{name}<br><small>{html.escape(attrs['explains'])}</small>"
    return f"<div style='font-size: 13px; line-height: 1.35; overflow-wrap: anywhere'>{words}</div>"


def progress_words(progress: Progress, panels: int) -> str:
    """How far a request is, in words."""
    what = f"{METHODS[progress.source.method].title} of {progress.source.model}"
    which = f" (panel {progress.panel + 1} of {panels})" if panels > 1 else ""
    words = f"{what}{which}: pass {progress.done} of {progress.planned}"
    return f"<div style='font-size: 12px'>{html.escape(words)}</div>"


def status_line(drawing: AttributionDrawing) -> str:
    """What the picture shows, in words: announced to screen readers when it changes."""
    sentences = []
    for panel in drawing.panels:
        result = panel.result
        numbers = [f"score {_number(result['score'])}"]
        if "completeness_gap" in result:
            numbers.append(f"completeness gap {_percent(result['completeness_gap'])}")
        numbers.append(f"{result.attrs['passes']} passes in {_seconds(panel.seconds)}")
        name = f"<b>{html.escape(result.attrs['model'])}</b> {html.escape(METHODS[panel.source.method].title)}"
        sentences.append(f"{name} of {html.escape(result.attrs['explains'])}: {', '.join(numbers)}.")
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{'<br>'.join(sentences)}</div>"


def classes_table(drawing: AttributionDrawing) -> str:
    """The highest logits of each model, and what class numbers mean; nothing where no class is explained."""
    by_model = {panel.source.model: panel.classes for panel in drawing.panels if panel.classes}
    if not by_model:
        return ""
    rows = [
        [f"{place + 1}.", *(_class(classes, place) for classes in by_model.values())]
        for place in range(max(map(len, by_model.values())))
    ]
    table = html_table(["class: logit", *by_model], rows, f"the {LISTED} highest logits")
    untaught = [name for name in by_model if shared_model(name).weights == "random"]
    if not untaught:
        return table
    note = MEANINGLESS.format(models=" and ".join(untaught))
    return f"{table}<div style='{_SMALL}; margin-top: 4px'>{html.escape(note)}</div>"


def _class(classes: tuple[tuple[int, float], ...], place: int) -> str:
    return f"{classes[place][0]}: {classes[place][1]:.3g}" if place < len(classes) else "–"


#: The numbers of a result: name -> how it is read off a panel, and what it means; "" where the method has none.
_NUMBERS: dict[str, tuple[Callable[[Panel], str], str]] = {
    "score": (lambda p: _of(p, "score"), "the logit of the class, or the value of the unit, at the picture"),
    "score at the baseline": (
        lambda p: _of(p, "baseline_score"),
        "the same at the picture that the method compares with: the difference is what there is to attribute",
    ),
    "convergence delta": (
        lambda p: _of(p, "convergence_delta"),
        "the sum of all attributions minus that difference; a complete attribution has 0",
    ),
    "completeness gap": (
        lambda p: _percent(p.result["completeness_gap"]) if "completeness_gap" in p.result else "",
        "the delta's magnitude as a share of the difference: how much of the score the picture does not account for",
    ),
    "passes": (lambda p: str(p.result.attrs["passes"]), "pictures that went through the model, each as one pass"),
    "time, measured": (
        lambda p: _seconds(p.seconds),
        "from first pass to last on this machine when this panel was computed, once and without a warm-up",
    ),
}


def numbers_table(drawing: AttributionDrawing) -> str:
    """The numbers of each panel with what they mean; lines that no panel has are left out."""
    rows = []
    for name, (read, meaning) in _NUMBERS.items():
        values = [read(panel) for panel in drawing.panels]
        if any(values):
            rows.append([name, *(value or "–" for value in values), meaning])
    head = ["", *(title_of(panel) for panel in drawing.panels), "what it means"]
    return _STYLE + html_table(head, rows, "numbers of the attributions") + _warnings(drawing)


_STYLE = """<style>
table.numbers tbody :is(th, td) { vertical-align: top; }
table.numbers :is(th, td):last-child:not(:nth-child(2)) { text-align: left; padding-left: 12px; }
table.numbers tbody th { white-space: nowrap; }
</style>"""


def _warnings(drawing: AttributionDrawing) -> str:
    """What a reader must know about a result."""
    found = [(title_of(panel), panel.result.attrs["warning"]) for panel in drawing.panels]
    lines = [f"{html.escape(title)}: {html.escape(warning)}" for title, warning in found if warning]
    return f"<div style='font-size: 13px; margin-top: 4px'>{'<br>'.join(lines)}</div>" if lines else ""


def _of(panel: Panel, name: str) -> str:
    return _number(panel.result[name]) if name in panel.result else ""


def _number(value: xr.DataArray) -> str:
    return f"{float(value):.4g}"


def _percent(share: xr.DataArray) -> str:
    return f"{100 * float(share):.3g} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
