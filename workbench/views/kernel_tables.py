"""The Kernels page's table of all kernels, and the words and small tables about the one that is looked at."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from kernels.costs import PEAKS
from kernels.inspect import TARGETS, plans
from kernels.instructions import KINDS
from workbench.plots.kernels import SHORT

from .tables import html_table

#: Column of the table of all kernels -> the key of a row, and what the number is divided by.
NUMBERS: dict[str, tuple[str, float]] = {
    "registers": ("registers", 1), "spills B": ("spills", 1), "shared B": ("shared", 1), "warps": ("num_warps", 1),
    "held %": ("occupancy", 0.01), "limited by": ("limit", 1), "MFLOP": ("flops", 1e6), "MB": ("bytes", 1e6),
    "FLOP/B": ("intensity", 1), "16 B loads %": ("load_16_share", 0.01),
}  # fmt: skip
TEXTS = ("limited by",)
COLUMNS = ("kernel", "op", "target", *NUMBERS)

NO_FORMULA = "no cost formula"
NOT_COMPILED = "–"

LEGEND = (
    "Registers and spilled bytes are a thread's, shared memory and warps a program's. Held: the share of warps that a "
    "multiprocessor (AMD: compute unit) holds at once, of the most that it can, expected from the published limits of "
    "the target; what allows no more stands beside it. Operations and least bytes are those of one launch at the shape "
    "that the page names for a kernel."
)


def cells(row: dict[str, Any]) -> list[Any]:
    """A row of the table of all kernels: NaN for a number that is not known."""
    found: list[Any] = [row["name"], row["op"], row["target"]]
    for column, (key, unit) in NUMBERS.items():
        value = row.get(key)
        if column in TEXTS:
            found.append(value or ("not known" if "registers" in row else NOT_COMPILED))
        else:
            found.append(np.nan if value is None else float(f"{value / unit:.4g}"))
    return found


def frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of all kernels."""
    return pd.DataFrame([cells(row) for row in rows], columns=list(COLUMNS))


def numbers_table(rows: Sequence[dict[str, Any]]) -> str:
    """What one kernel uses and does, a column for each target that it is compiled for."""
    lines = [
        ["registers", *(str(row["registers"]) for row in rows)],
        ["spilled bytes", *(str(row["spills"]) for row in rows)],
        ["shared bytes", *(f"{row['shared']:,}" for row in rows)],
        ["warps a program", *(str(row["num_warps"]) for row in rows)],
        ["programs held", *(_text(row["programs"]) for row in rows)],
        ["warps held", *(held(row) for row in rows)],
        ["limited by", *(_text(row["limit"]).replace(" and ", ", ").replace(" memory", "") for row in rows)],
        ["16 B loads", *(_percent(row["load_16_share"]) for row in rows)],
        ["instructions", *(f"{sum(row['mix'].values()):,}" for row in rows)],
    ]
    if any(row["tensor"] for row in rows):
        lines.insert(3, ["tensor columns", *(str(row["tensor"]) for row in rows)])
    for kind in KINDS:
        if any(row["mix"][kind] for row in rows):
            lines.append([SHORT[kind], *(f"{row['mix'][kind]:,}" for row in rows)])
    return html_table(["", *(row["target"] for row in rows)], lines, "numbers of the kernel")


def held(row: dict[str, Any]) -> str:
    """Such as "24 of 64"."""
    return "not known" if row["warps"] is None else f"{row['warps']} of {row['most_warps']}"


def _text(value: Any) -> str:
    return "not known" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "no loads" if share is None else f"{100 * share:.0f} %"


def status_line(row: dict[str, Any]) -> str:
    """What the kernel uses and needs, in a few sentences: announced to screen readers when it changes."""
    about = f"<b>{html.escape(row['name'])}</b> on {row['target']}"
    if "registers" not in row:
        text = f"{about} is being compiled."
    else:
        spills = f"spills {row['spills']} bytes" if row["spills"] else "no spills"
        text = f"{about}: {row['registers']} registers a thread, {spills}, {row['shared']:,} bytes of shared memory; "
        text += held_words(row)
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{text} {html.escape(cost_words(row))}</div>"


def held_words(row: dict[str, Any]) -> str:
    if row["warps"] is None:
        return "how many warps a multiprocessor holds is not known, because the target's limits are not."
    if row["warps"] == row["most_warps"]:
        return f"a multiprocessor is full with {held(row)} warps."
    return f"a multiprocessor holds {held(row)} warps, {html.escape(row['limit'])} allow no more."


def cost_words(row: dict[str, Any]) -> str:
    """Operations and bytes, and what bounds the kernel where the peaks of the target's GPU are known."""
    if row["flops"] is None:
        return f"Operations and bytes: {NO_FORMULA}."
    text = f"At {row['shape']}: {_count(row['flops'])} operations, at least {_count(row['bytes'])} bytes moved, "
    text += f"{row['intensity']:.3g} operations per byte"
    ridge = row.get("ridge")
    if ridge is None:
        return f"{text}."
    bound = "memory" if row["intensity"] < ridge else "arithmetic"
    return f"{text}; {bound} bounds it on {PEAKS[row['target']][0]}, whose ridge is at {ridge:.3g}."


def _count(number: float) -> str:
    for unit, word in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{word}"
    return f"{number:.3g}"


def constants_line(row: dict[str, Any]) -> str:
    """The compile-time arguments of a kernel, which hold how it is tiled."""
    words = ", ".join(f"{name} {value}" for name, value in row["constants"].items())
    return f"Compile-time arguments on {row['target']}: {words}; {row['num_warps']} warps a program."


def plans_table(side: int) -> str:
    """How attention cuts every pattern of its family on a map into tiles."""
    rows = []
    for plan in (asdict(plan) for plan in plans() if plan.map == (side, side)):
        sizes = [f"{plan[name][0]} x {plan[name][1]}" for name in ("queries", "keys")]
        masked = f"{100 * plan['masked']:.1f} %"
        rows.append([f"{plan['plan']}, by {plan['side']}", *sizes, str(plan["parts"]), f"{plan['slots']:,}", masked])
    head = ["pattern, and what a program owns", "queries", "keys", "parts", "pairs of slots", "masked"]
    return html_table(head, rows, f"tiles of attention on {side} x {side}")


def target_names() -> list[str]:
    return list(TARGETS)
