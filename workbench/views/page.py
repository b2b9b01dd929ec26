"""What every page shares: its messages, its link, its work in the lane, and the buttons that pages have in common."""

import html
import io
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import panel as pn
import panel_material_ui as pmui
import param
import PIL.Image

from workbench.images import Image, list_images, load_image

from .lane import LANE, Job
from .state import deliverer, offer
from .text import Html

#: What the inputs of a page's controls have in common.
WIDE: dict[str, Any] = {"sizing_mode": "stretch_width", "size": "small"}

#: How rows of a page's body wrap when the window is narrow. They may be higher than the window, which Panel forbids.
WRAP: dict[str, Any] = {
    "flex_wrap": "wrap", "sizing_mode": "stretch_width", "align_items": "flex-start", "styles": {"max-height": "none"},
}  # fmt: skip


class PageView(pn.viewable.Viewer):
    """A page's state and its parts: `controls`, `body`, or both together when shown in a notebook cell.

    Subclasses set `LINK`, make `controls` and `body`, and keep in `_drawing` what they show, None before anything is.
    """

    #: The parameters that the page's address keeps.
    LINK: tuple[str, ...] = ()

    #: The extensions of Panel that its widgets need.
    EXTENSIONS: tuple[str, ...] = ()

    #: Whether the page is what its address describes.
    followed = True

    controls: list[Any]
    body: pn.Column

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._drawing: Any = None
        self._messages = pmui.Alert("", severity="error", visible=False, sizing_mode="stretch_width")
        self._status = Html("", sizing_mode="stretch_width", margin=(4, 10))
        self._code = pn.widgets.TextAreaInput(value="", visible=False)  # one of React would be laid out at every change

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Row(pn.Column(*self.controls, width=290), self.body, sizing_mode="stretch_width")

    # Work

    def submit(
        self,
        run: Callable[[Job], Any],
        show: Callable[[Any], None],
        owner: str = "picture",
        partly: Callable[[Any], None] | None = None,
    ) -> None:
        """Let the lane run a job and show its result in this session; one of the same owner that waits is dropped.

        partly: shows what a job that is a generator yields, see `Job`.
        """
        deliver = deliverer()
        job = Job(run, partial(deliver, show), partial(deliver, self._fail))
        if partly is not None:
            job.partly = partial(deliver, partly)
        LANE.submit((id(self), owner), job)

    def cancel(self, owner: str = "picture") -> None:
        """Drop the job of this owner, or stop it."""
        LANE.cancel((id(self), owner))

    def _fail(self, error: Exception) -> None:
        """One sentence; the picture that is shown stays."""
        text = str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"
        self._messages.param.update(object=html.escape(text), visible=True)

    def refuse(self, error: Exception) -> None:
        """Say in one sentence what is wrong with an input; what is shown, and what is computed, stays."""
        PageView._fail(self, error)

    def _try(self, draw: Callable[[], None]) -> None:
        """Do what draws the first picture before the page is sent; a failure is a sentence on the page."""
        try:
            draw()
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            self._fail(error)

    # Opening and sharing

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        """The page on the model and the image that `workbench.show` was given; either may be None for its own."""
        return cls(model=named(model), **state, **picture_state(image))

    @classmethod
    def link_state(cls) -> dict[str, str]:
        """Parameter -> name in the address of the page."""
        return {name: name for name in cls.LINK}

    @classmethod
    def from_address(cls, query: dict[str, Any]) -> Self:
        """The page that a link describes; a part of it that does not exist is left out and named on the page."""
        known = {name: value for name, value in query.items() if name in cls.LINK}
        try:
            view = cls(**known)
            if view._drawing is None:
                raise ValueError(html.unescape(view._messages.object))
            return view
        except (ValueError, TypeError) as error:
            view = cls()
            view.followed = False
            view._fail(ValueError(f"The link could not be followed, the page shows its defaults: {error}"))
            return view

    def sharing(self) -> pn.Row:
        """Buttons that copy the Python of the picture (the value of `_code`), and the link of the page."""
        copy = "navigator.clipboard.writeText({})"
        as_python = pmui.Button(label="Copy as Python", variant="outlined", size="small")
        as_python.js_on_click(args={"code": self._code}, code=copy.format("code.value"))
        link = pmui.Button(label="Copy link", variant="outlined", size="small")
        link.js_on_click(code=copy.format("window.location.href"))
        return pn.Row(as_python, link, self._code)


def named(model: Any) -> str:
    """The name by which the pages know a model: its own, or one under which a loaded model is offered to them."""
    return model if isinstance(model, str) else offer(model)


def picture_state(image: Any) -> dict[str, Any]:
    """The parameters `image` or `upload` of a page for what `load_image` takes."""
    if image is None:
        return {}
    if isinstance(image, str) and image in list_images():
        return {"image": image}
    picture = image if isinstance(image, Image) else load_image(image, size=None)
    file = io.BytesIO()
    PIL.Image.fromarray(picture.rgb).save(file, "PNG")
    return {"upload": file.getvalue()}


def arrows(move: Callable[[int, int], None], what: str) -> pn.Row:
    """Four buttons that call `move(down, right)` with a step of one cell; `what` names what moves."""
    steps = {"←": (0, -1, "left"), "↑": (-1, 0, "up"), "↓": (1, 0, "down"), "→": (0, 1, "right")}
    buttons = []
    for arrow, (down, right, name) in steps.items():
        button = pmui.Button(
            label=arrow, size="small", variant="outlined", sizing_mode="stretch_width", margin=2,
            description=f"move {what} one cell {name}",
        )  # fmt: skip
        button.on_click(partial(_moved, move, down, right))
        buttons.append(button)
    return pn.Row(*buttons, sizing_mode="stretch_width", margin=(0, 8))


def _moved(move: Callable[[int, int], None], down: int, right: int, event: param.parameterized.Event) -> None:
    move(down, right)
