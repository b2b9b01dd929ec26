"""A player that the browser runs by itself: while it plays, no message goes to the server.

It moves the slider of frames, without telling the server, and the slider moves the tag of the source that the figure
draws from. One frame at a time is due, and at most one is late; frames that a slow browser cannot paint in time are
passed over, so that none ever waits. When the player stops, the server learns the frame.
"""

from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from .directions_figures import STORE
from .page import WIDE

if TYPE_CHECKING:
    from .directions import DirectionsView

#: Shows the slider's frame.
SHOW = f"""
const store = slider.document?.get_model_by_name("{STORE}")
if (store) store.setv({{tags: [slider.value]}}, {{sync: false}})
"""

#: What the buttons share: `go(frame)` moves without telling the server, `stop()` ends a movie and tells it the frame.
SHARED = """
const state = slider.player ??= {playing: false, due: 0, shown: 0}
const last = () => slider.end
const go = frame => { slider.setv({value: frame}, {sync: false}); state.shown += 1 }
const tell = () => {
  const frame = slider.value
  slider.setv({value: frame === 0 ? last() : 0}, {sync: false, silent: true})
  slider.setv({value: frame})
}
const stop = () => {
  if (!state.playing) return
  state.playing = false
  play.data.setv({label: "Play"}, {sync: false})
  tell()
}
"""

#: Starts or stops a movie; one at its end starts over.
PLAY = f"""{SHARED}
if (state.playing) {{ stop(); return }}
state.playing = true
play.data.setv({{label: "Pause"}}, {{sync: false}})
if (slider.value >= last()) go(0)
state.due = performance.now() + 1000 / speed.data.value
const tick = () => {{
  if (!state.playing) return
  if (!slider.document) {{ state.playing = false; return }}
  const now = performance.now()
  if (now >= state.due) {{
    if (slider.value < last()) go(slider.value + 1)
    else if (loop.data.value) go(0)
    else {{ stop(); return }}
    const period = 1000 / speed.data.value
    state.due = Math.max(state.due + period, now - period)
  }}
  requestAnimationFrame(tick)
}}
requestAnimationFrame(tick)
"""

#: Moves by some frames, around the ends.
STEP = f"""{SHARED}
stop()
go((slider.value + by + last() + 1) % (last() + 1))
tell()
"""


class FramePlayer:
    """The widgets of the player of one page."""

    def __init__(self, page: "DirectionsView") -> None:
        p = page.param
        # Bokeh's own slider: one of React writes what it shows back into the model, which would be sent.
        self.slider = pn.widgets.IntSlider.from_param(
            p.frame, name="Frame", start=0, end=1, sizing_mode="stretch_width"
        )
        self.speed = pmui.IntSlider.from_param(p.speed, label="Frames a second", **WIDE)
        self.loop = pmui.Checkbox.from_param(p.loop, label="Loop")
        self.trail = pmui.Checkbox.from_param(p.trail, label="Keep the lines already passed")
        self.back, self.play, self.forward = (_button(label) for label in ("Step back", "Play", "Step forward"))
        parts = {"slider": self.slider, "play": self.play, "speed": self.speed, "loop": self.loop}
        self.slider.jscallback(args={"slider": self.slider}, value=SHOW)
        self.play.js_on_click(args=parts, code=PLAY)
        self.back.js_on_click(args=parts | {"by": -1}, code=STEP)
        self.forward.js_on_click(args=parts | {"by": 1}, code=STEP)
        self.row = pn.Column(
            pn.Row(self.back, self.play, self.forward, self.slider, sizing_mode="stretch_width"),
            pn.Row(self.trail, self.loop, self.speed, sizing_mode="stretch_width"),
            sizing_mode="stretch_width", margin=(0, 10),
        )  # fmt: skip

    def follow(self, frames: int) -> None:
        """There are so many frames now."""
        if self.slider.end != max(frames - 1, 1):
            self.slider.end = max(frames - 1, 1)
        for part in (self.slider, self.play, self.back, self.forward):
            if part.disabled != (frames == 1):
                part.disabled = frames == 1


def _button(label: str) -> Any:
    return pmui.Button(label=label, variant="outlined", size="small", width=104)
