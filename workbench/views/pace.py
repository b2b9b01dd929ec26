"""Whether the browser has drawn what it was sent: a slow one must not be sent pictures faster than it can draw them."""

import time
from typing import Any

import panel as pn

from .state import session_document

#: Seconds after which a picture counts as drawn although no word of it came back: the browser may be asleep.
PATIENCE = 5.0

#: Answer once the browser is idle again after the frame that shows the change.
ANSWER = "requestAnimationFrame(() => setTimeout(() => { drawn.value = source.value }, 0))"


class Pace:
    """Counts pictures that were sent and, by an answer of the browser after each, those that were drawn.

    `widgets` belong into the page, where they cannot be seen. Outside of a served session every picture counts as
    drawn.
    """

    def __init__(self) -> None:
        self._sent = pn.widgets.IntInput(value=0, visible=False)
        self._drawn = pn.widgets.IntInput(value=0, visible=False)
        self._sent.jscallback(args={"drawn": self._drawn}, value=ANSWER)
        self._served = session_document() is not None
        self._count, self._since = 0, 0.0
        self.widgets: list[Any] = [self._sent, self._drawn]

    def sent(self) -> None:
        """Note that a picture was sent."""
        self._since = time.monotonic()
        self._count += 1
        self._sent.value = self._count

    @property
    def ready(self) -> bool:
        """Whether the browser has drawn what it was sent; may be asked in any thread."""
        late = time.monotonic() - self._since > PATIENCE
        return not self._served or late or self._drawn.value == self._count
