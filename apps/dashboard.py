"""The served dashboard, `workbench serve`: one file for all pages, which its address tells apart."""

import panel as pn
import panel_material_ui as pmui
from panel.util import edit_readonly

from workbench.views.show import PAGES, page_at

#: A green that is readable as text on the page's own background, light and dark.
THEME = {
    "light": {"palette": {"primary": {"main": "#00695c"}}},
    "dark": {"palette": {"primary": {"main": "#26a69a"}}},
}


def dashboard() -> pmui.Page:
    """One session's page; its address says which page it is and keeps the state of its view."""
    pn.extension(notifications=True)
    location = pn.state.location
    current = page_at(location.pathname if location else "/")
    view = PAGES[current].view.from_address(location.query_params if location else {})
    if location is not None:
        location.sync(view, view.link_state())
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
