"""A pane of code that can be read, scrolled, copied and saved."""

import html
import io
from collections.abc import Callable

import panel as pn
import panel_material_ui as pmui

from .text import Html

#: A pane scrolls what is higher than this.
STYLE = (
    "max-height: 460px; overflow: auto; margin: 0; padding: 6px; border: 1px solid #80808066; tab-size: 4; "
    "font: 11.5px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
)

#: What is copied is the text of the pane, which Panel sends as escaped HTML.
COPY = """
const parsed = text => new DOMParser().parseFromString(text, "text/html")
navigator.clipboard.writeText(parsed(parsed(pane.text).documentElement.textContent).querySelector("code").textContent)
"""


class CodePane(pn.viewable.Viewer):
    """A title, buttons to copy what is shown and to save `full` as a file, and the code itself.

    full: the name and the whole text of the file; what is shown may leave parts of it out.
    """

    def __init__(self, name: str, full: Callable[[], tuple[str, str]]) -> None:
        super().__init__()
        self._full = full
        self._title = Html("", margin=(8, 10, 0, 10), sizing_mode="stretch_width")
        self.pane = Html("", sizing_mode="stretch_width", margin=(0, 10), css_classes=[name])
        self.text = ""
        copy = pmui.Button(label="Copy", variant="outlined", size="small", description=f"copy {name}")
        copy.js_on_click(args={"pane": self.pane}, code=COPY)
        self.save = pmui.FileDownload(
            label="Save", filename=f"{name}.txt", callback=self.file, variant="outlined", size="small",
            description=f"save {name} as a file",
        )  # fmt: skip
        self.view = pn.Column(
            self._title,
            pn.Row(copy, self.save),
            self.pane,
            sizing_mode="stretch_width",
            styles={"flex": "1 1 420px", "min-width": "0"},
        )

    def __panel__(self) -> pn.viewable.Viewable:
        return self.view

    def show_text(self, title: str, text: str) -> None:
        """Show a text."""
        if text == self.text and title in self._title.object:
            return
        self.text = text
        self._title.object = f"<h3 style='font-size: 14px; margin: 0'>{html.escape(title)}</h3>"
        label, code = html.escape(title), html.escape(text)
        self.pane.object = f"<pre tabindex='0' aria-label='{label}' style='{STYLE}'><code>{code}</code></pre>"

    def file(self) -> io.BytesIO:
        """The whole text as a file."""
        self.save.filename, text = self._full()
        return io.BytesIO(text.encode())
