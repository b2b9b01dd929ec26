"""A pane of HTML whose updates send nothing but the text."""

from typing import Any

import panel as pn


class Html(pn.pane.HTML):
    """As `pn.pane.HTML`, which resends its style sheets with every update; in a notebook those come from a CDN."""

    def _update(self, ref: str, model: Any) -> None:
        model.update(text=self._get_properties(model.document)["text"])
