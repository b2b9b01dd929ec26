"""Open a page on a model and a picture: what `workbench.show` does."""

import io
from typing import Any

import panel as pn
import PIL.Image

from workbench.images import Image, list_images, load_image
from workbench.models.base import VisionModel
from workbench.names import unknown

from .affinity import NONE, AffinityView
from .state import notebook_loop, offer, session_document

PAGES = {"affinity": AffinityView}


def show(model: str | VisionModel, image: Any, page: str, **state: Any) -> Any:
    """See `workbench.show`."""
    if session_document() is None and notebook_loop() is not None:
        pn.extension(inline=True)  # a notebook must not ask a CDN for scripts
    if page not in PAGES:
        raise ValueError(unknown("page", page, PAGES))
    wrong = [name for name in state if name not in PAGES[page].param]
    if wrong:
        raise ValueError(unknown("setting", wrong[0], PAGES[page].param, of=page))
    name = model if isinstance(model, str) else offer(model)
    if image is None or (isinstance(image, str) and image in list_images()):
        picture: dict[str, Any] = {} if image is None else {"image": image}
    else:
        picture = {"upload": _png(image if isinstance(image, Image) else load_image(image, size=None))}
    return PAGES[page](model=name, **({"other": NONE} | state), **picture)


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image.rgb).save(file, "PNG")
    return file.getvalue()
