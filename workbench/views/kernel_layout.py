"""The parts of the Kernels page and their places."""

import html
from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui
from bokeh.models.widgets.tables import NumberFormatter

from kernels.inspect import MISSING, has_triton

from .field_layout import DENSE
from .kernel_tables import COLUMNS, LEGEND, NOT_COMPILED, NUMBERS, TEXTS, cost_words, target_names
from .page import WIDE, WRAP
from .tables import caption_html
from .text import Html

if TYPE_CHECKING:
    from .kernels import KernelsView

#: Pixels of the table's height, and of its columns; the first one takes what is left.
HEIGHT = 300
WIDTHS = {
    "op": 80, "target": 58, "registers": 62, "spills B": 52, "shared B": 60, "warps": 50, "held %": 50,
    "limited by": 90, "MFLOP": 58, "MB": 58, "FLOP/B": 56, "16 B loads %": 60,
}  # fmt: skip

#: Headings wrap, and an arrow is only there where the table is sorted by it.
NARROW = """
.tabulator .tabulator-cell { padding: 3px 5px !important; }
.tabulator .tabulator-col .tabulator-col-content { padding: 3px 5px !important; }
.tabulator .tabulator-col .tabulator-col-title { padding-right: 0 !important; }
.tabulator .tabulator-col[aria-sort="none"] .tabulator-col-sorter { display: none; }
.tabulator .tabulator-header { height: auto !important; }
"""

SMALL: dict[str, Any] = {"variant": "outlined", "size": "small"}


class KernelLayout:
    """The parts of one page; what it shows in them is the page's business."""

    def __init__(self, page: "KernelsView") -> None:
        self._page = page
        wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
        self.table = _table()
        self.table.on_click(lambda event: page.choose(event.row))
        self.bar = pmui.LinearProgress(variant="determinate", value=0, margin=(2, 10), **wide)
        self.words = Html("", margin=(0, 10), **wide)
        self.start = pmui.Button(label="Compile all in the table", disabled=not has_triton(), **SMALL)
        self.start.on_click(page.compile_all)
        self.stop = pmui.Button(label="Cancel", disabled=True, **SMALL)
        self.stop.on_click(page.halt)
        self.numbers, self.mix_caption, self.constants = (Html("", margin=(0, 10), **wide) for _ in range(3))
        self.tile_caption, self.plans = (Html("", margin=(0, 10), **wide) for _ in range(2))
        self.tile = _part("0.7 1 210px", page.tile.pane, self.tile_caption)
        self.detail = pn.FlexBox(
            _part("1.1 1 340px", page.mix.pane, self.mix_caption),
            _part("1 1 300px", self.numbers, self.constants),
            self.tile,
            visible=False,
            **WRAP,
        )
        self.code = pn.FlexBox(page.python, page.assembly, visible=False, **WRAP)
        self.controls = self._make_controls()
        self.body = self._make_body()

    def show_progress(self, done: int, of: int, running: bool) -> None:
        """How many of the table's rows are compiled."""
        self.bar.value = 100 * done // max(of, 1)
        state = "compiling; the rows fill as they come" if running else "the others when you ask, or look at one"
        rest = "" if done == of else f", {state}"
        self.words.object = f"<div style='font-size: 12px'>{done} of {of} rows are compiled{rest}.</div>"
        self.start.disabled = running or not has_triton() or done == of
        self.stop.disabled = not running

    @staticmethod
    def without_triton(row: dict[str, Any]) -> str:
        """The status line where nothing can be compiled."""
        words = f"{MISSING} The table has what is known without a compiler. {row['name']}: {cost_words(row)}"
        return f"<div role='status' aria-live='polite' style='font-size: 13px'>{html.escape(words)}</div>"

    def _make_controls(self) -> list[Any]:
        """The controls, in the order in which the keyboard reaches them."""
        page, p = self._page, self._page.param
        known = {name: name for _, name in page.names}
        chosen = pmui.Select.from_param(p.kernel, label="Kernel", options=known, **WIDE)
        return [
            chosen,
            pmui.Select.from_param(p.target, label="Target looked at", **WIDE),
            pmui.MultiChoice.from_param(
                p.targets, label="Targets in the table", options=target_names(), sizing_mode="stretch_width"
            ),
            pmui.Select.from_param(p.op, label="Operator", **WIDE),
            pmui.TextInput.from_param(p.find, label="Words in the kernel's name", **WIDE),
            self.start,
            self.stop,
            self.bar,
            self.words,
            page.downloads.row,
        ]

    def _make_body(self) -> pn.Column:
        page = self._page
        sides = pmui.Select.from_param(page.param.side, label="Map", size="small", width=120)
        return pn.Column(
            page._messages,
            page._status,
            self.table,
            Html(caption_html(LEGEND), margin=(0, 10, 6, 10), sizing_mode="stretch_width"),
            self.detail,
            self.code,
            page.sharing(),
            pn.Row(pmui.Typography("How attention is tiled", variant="h6"), sides),
            self.plans,
            sizing_mode="stretch_width",
        )


def _part(grow: str, *objects: Any) -> pn.Column:
    return pn.Column(*objects, sizing_mode="stretch_width", styles={"flex": grow, "min-width": "0"})


def _table() -> Any:
    """The table of all kernels, sorted by a click on a heading."""
    numbers = [column for column in NUMBERS if column not in TEXTS]
    digits = {column: NumberFormatter(format="0,0.[0000]", nan_format=NOT_COMPILED) for column in numbers}
    return pn.widgets.Tabulator(
        pd.DataFrame(columns=list(COLUMNS)), disabled=True, selectable=1, show_index=False, layout="fit_columns",
        theme="simple", pagination=None, sizing_mode="stretch_width", height=HEIGHT, css_classes=["kernels-table"],
        widths=WIDTHS, text_align=dict.fromkeys(numbers, "right"), formatters=digits, stylesheets=[DENSE, NARROW],
        margin=(4, 10),
    )  # fmt: skip
