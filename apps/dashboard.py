"""The served dashboard, `workbench serve`: one file for all pages, which its address tells apart."""

import logging
from functools import partial

import panel as pn
import panel_material_ui as pmui
from panel.io.location import Location
from panel.util import edit_readonly

from workbench.views.page import PageView
from workbench.views.show import PAGES, page_at
from workbench.views.state import when_loaded

#: A green that is readable as text on the page's own background, light and dark.
THEME = {
    "light": {"palette": {"primary": {"main": "#00695c"}}},
    "dark": {"palette": {"primary": {"main": "#26a69a"}}},
}


def dashboard() -> pmui.Page:
    """One session's page; its address says which page it is and keeps the state of its view."""
    location = pn.state.location
    current = page_at(location.pathname if location else "/")
    pn.extension(*PAGES[current].view.EXTENSIONS, notifications=True)
    view = PAGES[current].view.from_address(location.query_params if location else {})
    if location is not None:
        pn.config.exception_handler = partial(complain, view)  # of this session
        if view.followed:
            location.sync(view, view.link_state())
        else:
            when_loaded(partial(readdress, view, location))
    page = pmui.Page(
        title="GSPN workbench",
        header=[navigation(current)],
        sidebar=view.controls,
        main=[view.body],
        sidebar_width=300,
        theme_config=THEME,
        theme_toggle=True,
        busy_indicator=None,
    )
    with edit_readonly(page):
        # Otherwise the page follows Panel's busy state, and each change of it walks through every model of the
        # document, several times a click: longer than the picture takes. Long work says so in words.
        page.busy = False
    return page


def readdress(view: PageView, location: Location) -> None:
    """Replace an address that could not be followed, in the browser too, by that of the page; it is not read again."""
    location.search = ""
    location.sync(view, view.link_state())


def complain(view: PageView, error: Exception) -> None:
    """Say on the page what was wrong with an input, such as a number out of its range; log every other error too."""
    if not isinstance(error, ValueError):
        logging.getLogger(__name__).error("A page failed.", exc_info=error)
    view.refuse(error)


def navigation(current: str) -> pn.pane.HTML:
    """Links to the pages; the current one is marked, for eyes and for screen readers."""
    links = ""
    for name, page in PAGES.items():
        marked = " aria-current='page'" if name == current else ""
        links += f"<a href='.{page.route}'{marked}>{page.label}</a>"
    return pn.pane.HTML(f"<style>{STYLE}</style><nav aria-label='Pages'>{links}</nav>", margin=(0, 16))


STYLE = """
nav { display: flex; gap: 6px; }
nav a { color: white; background: rgba(0, 0, 0, 0.3); text-decoration: none; padding: 5px 12px; border-radius: 4px; }
nav a[aria-current] { color: #004d43; background: white; font-weight: 600; }
nav a:hover { text-decoration: underline; }
nav a:focus-visible { outline: 2px solid white; outline-offset: 2px; }
"""


if pn.state.served:
    dashboard().servable()
