"""The served dashboard: `workbench serve`, or `panel serve apps/dashboard.py`."""

import panel as pn
import panel_material_ui as pmui
from panel.util import edit_readonly

from workbench.views.affinity import AffinityView

#: A green that is readable as text on the page's own background, light and dark.
THEME = {
    "light": {"palette": {"primary": {"main": "#00695c"}}},
    "dark": {"palette": {"primary": {"main": "#26a69a"}}},
}


def dashboard() -> pmui.Page:
    """One session's page; its address keeps the state of the view."""
    pn.extension(notifications=True)
    view = AffinityView.from_address(pn.state.location.query_params if pn.state.location else {})
    if pn.state.location is not None:
        pn.state.location.sync(view, view.link_state())
    page = pmui.Page(
        title="GSPN workbench",
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


if pn.state.served:
    dashboard().servable()
