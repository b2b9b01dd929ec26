"""The pages by name, and how one is opened: what `workbench.show` does, and what the dashboard serves."""

from dataclasses import dataclass
from typing import Any

import panel as pn

from workbench.names import unknown

from .affinity import AffinityView
from .attribution import AttributionView
from .directions import DirectionsView
from .kernels import KernelsView
from .latency import LatencyView
from .patterns import PatternsView
from .receptive_field import ReceptiveFieldView
from .stability import StabilityView
from .state import notebook_loop, session_document


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
    "receptive_field": ServedPage("Receptive fields", ReceptiveFieldView, "/receptive-field"),
    "attribution": ServedPage("Attribution", AttributionView, "/attribution"),
    "directions": ServedPage("Directions", DirectionsView, "/directions"),
    "stability": ServedPage("Stability", StabilityView, "/stability"),
    "latency": ServedPage("Latency", LatencyView, "/latency"),
    "kernels": ServedPage("Kernels", KernelsView, "/kernels"),
}


def page_at(pathname: str) -> str:
    """The page that an address names; the first one where it names none."""
    last = "/" + pathname.rstrip("/").rpartition("/")[2]
    return next((name for name, page in PAGES.items() if page.route == last), "affinity")


def show(model: Any, image: Any, page: str, **state: Any) -> Any:
    """See `workbench.show`."""
    if page not in PAGES:
        raise ValueError(unknown("page", page, PAGES))
    view = PAGES[page].view
    if session_document() is None and notebook_loop() is not None:
        pn.extension(*view.EXTENSIONS, inline=True)  # a notebook must not ask a CDN for scripts
    wrong = [name for name in state if name not in view.param]
    if wrong:
        raise ValueError(unknown("setting", wrong[0], view.param, of=page))
    return view.opened(model, image, **state)
