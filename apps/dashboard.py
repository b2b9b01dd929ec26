"""The served dashboard: `workbench serve`, or `panel serve apps/dashboard.py`."""

import panel as pn
import panel_material_ui as pmui

from workbench.views.affinity import AffinityView

THEME = {"palette": {"primary": {"main": "#00695c"}}}


def dashboard() -> pmui.Page:
    """One session's page; its address keeps the state of the view."""
    pn.extension(notifications=True)
    view = AffinityView()
    if pn.state.location is not None:
        pn.state.location.sync(view, view.link_state())
    return pmui.Page(
        title="GSPN workbench",
        sidebar=view.controls,
        main=[view.body],
        sidebar_width=300,
        theme_config=THEME,
        theme_toggle=True,
    )


if pn.state.served:
    dashboard().servable()
