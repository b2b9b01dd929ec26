"""The pages by name, and how one is opened: what `workbench.show` does, and what the dashboard serves."""

import io
from dataclasses import dataclass
from typing import Any

import panel as pn
import PIL.Image

from workbench.images import Image, list_images, load_image
from workbench.models.base import VisionModel
from workbench.names import unknown

from .affinity import NONE, AffinityView
from .patterns import PatternsView
from .state import notebook_loop, offer, session_document


@dataclass(frozen=True)
class ServedPage:
    """A page: what its link says, its view, and the address that it is served at."""

    label: str
    view: Any
    route: str


#: In the order of the links.
PAGES = {
    "affinity": ServedPage("Affinity", AffinityView, "/"),
    "patterns": ServedPage("Patterns", PatternsView, "/patterns"),
}


def page_at(pathname: str) -> str:
    """The page that an address names; the first one where it names none."""
    last = "/" + pathname.rstrip("/").rpartition("/")[2]
    return next((name for name, page in PAGES.items() if page.route == last), "affinity")


def show(model: str | VisionModel, image: Any, page: str, **state: Any) -> Any:
    """See `workbench.show`."""
    if session_document() is None and notebook_loop() is not None:
        pn.extension(inline=True)  # a notebook must not ask a CDN for scripts
    if page not in PAGES:
        raise ValueError(unknown("page", page, PAGES))
    view = PAGES[page].view
    wrong = [name for name in state if name not in view.param]
    if wrong:
        raise ValueError(unknown("setting", wrong[0], view.param, of=page))
    if page == "patterns":  # which needs no model
        if image is not None and not (isinstance(image, str) and image in list_images()):
            given = repr(image) if isinstance(image, str) else type(image).__name__
            names = ", ".join(list_images())
            raise ValueError(
                f"image must be the name of a picture on the page of patterns, one of {names}; got {given}."
            )
        return view(**({"other": NONE} | state), **({} if image is None else {"image": image}))
    name = model if isinstance(model, str) else offer(model)
    if image is None or (isinstance(image, str) and image in list_images()):
        picture: dict[str, Any] = {} if image is None else {"image": image}
    else:
        picture = {"upload": _png(image if isinstance(image, Image) else load_image(image, size=None))}
    return view(model=name, **({"other": NONE} | state), **picture)


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image.rgb).save(file, "PNG")
    return file.getvalue()
