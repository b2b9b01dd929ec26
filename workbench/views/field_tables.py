"""The words and numbers of the page of receptive fields, which screen readers read."""

import html
from collections.abc import Mapping

import pandas as pd
import xarray as xr

from workbench.plots.receptive_field import numbers, one_unit

from .field_request import FieldDrawing, Progress, Timing

NOT_MEASURED = "time not measured"

#: The heading of the column that says what a number is.
WHAT = "scale-free number"


def label_of(drawing: FieldDrawing, number: int) -> str:
    """What tells a model of the page from the others: its expression, layer, and a number where those are the same."""
    labels = [f"{source.name} {source.layer}" for source in drawing.request.sources]
    own = labels[number]
    return own if labels.count(own) == 1 else f"{own} [{number + 1}]"


def heading(drawing: FieldDrawing, number: int, timing: Timing | None) -> str:
    """What stands over a map: the model, its layer, how far it is, and how long an image takes where that was timed."""
    source = drawing.request.sources[number]
    lines = [f"<b>{html.escape(source.name)}</b> {html.escape(source.layer)}"]
    lines.append(f"<small>{how_far(drawing, number)}; {html.escape(timing_in_words(timing))}</small>")
    return f"<div style='font-size: 13px; line-height: 1.35; overflow-wrap: anywhere'>{'<br>'.join(lines)}</div>"


def how_far(drawing: FieldDrawing, number: int) -> str:
    progress = drawing.progress[number]
    if drawing.results[number] is None:
        return "waiting for its first image"
    images = f"{progress.planned} image{'' if progress.planned == 1 else 's'}"
    return images if progress.read == progress.planned else f"partial: {progress.read} of {images}"


def timing_in_words(timing: Timing | None) -> str:
    if timing is None:
        return NOT_MEASURED
    median, p20, p80 = (f"{seconds * 1e3:.3g}" for seconds in (timing.median, timing.p20, timing.p80))
    return (
        f"forward and backward of one image {median} ms ({p20} to {p80}, p20 to p80, n = {timing.count}), "
        f"{timing.backend} backend, {timing.device}"
    )


def split_captions(captions: list[str]) -> tuple[str, list[str]]:
    """What all captions say, which stands once, and what each of them says alone."""
    parts = [caption.removesuffix(".").split("; ") for caption in captions]
    common = [part for part in parts[0] if all(part in each for each in parts)]
    own = [[part for part in each if part not in common] for each in parts]
    return _sentence(common), [_sentence(each) for each in own]


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if parts else ""


def progress_line(drawing: FieldDrawing) -> str:
    """How many images each model has seen."""
    total = Progress(*(sum(counts) for counts in zip(*drawing.progress, strict=True)))
    state = "Running" if drawing.running else "Finished" if drawing.complete else "Stopped"
    parts = [
        f"{progress.read} of {progress.planned} images, {html.escape(label_of(drawing, n))}"
        for n, progress in enumerate(drawing.progress)
    ]
    if drawing.complete:
        parts = [f"{total.read} images in all"]
    return f"<div style='font-size: 12px'><b>{state}</b>: {'; '.join(parts)}</div>"


def share_done(drawing: FieldDrawing) -> int:
    """Images seen by all models together, in percent."""
    return 100 * sum(p.read for p in drawing.progress) // max(1, sum(p.planned for p in drawing.progress))


def status_line(drawing: FieldDrawing) -> str:
    """What the maps show, in words: announced to screen readers when it changes."""
    sentences = []
    for n, result in drawing.named().items():
        row, col = drawing.specs[n].unit[0]
        what = f"<b>{html.escape(label_of(drawing, n))}</b>: cell (row {row}, column {col})"
        sentences.append(f"{what}, {how_far(drawing, n)}; {_half(one_unit(result))}")
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{'<br>'.join(sentences)}</div>"


def _half(result: xr.Dataset) -> str:
    if result.attrs.get("note"):
        return html.escape(result.attrs["note"])
    square, ranked = (float(result[name].sel(threshold=0.5)) for name in ("r", "r_ranked"))
    reached = f"a centred square of {100 * square:.3g} % of the picture" if square == square else "no centred square"
    return f"half of the mass lies in {reached}, and in {100 * ranked:.3g} % of the pixels."


def numbers_frame(drawing: FieldDrawing) -> pd.DataFrame:
    """All numbers of the maps: a row for each, a column for each model."""
    results = drawing.named()
    columns = {label_of(drawing, n): dict(numbers(result)) for n, result in results.items()}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name, "–") for column in columns.values())] for name in names]
    return pd.DataFrame(rows, columns=[WHAT, *columns])


def timings_of(drawing: FieldDrawing, known: Mapping[tuple[str, object], Timing]) -> list[Timing | None]:
    """For each model the timing of exactly what is shown, if there is one."""
    pairs = zip(drawing.request.sources, drawing.specs, strict=True)
    return [known.get((source.name, spec)) for source, spec in pairs]
