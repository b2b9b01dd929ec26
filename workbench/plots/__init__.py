"""Figures: one function per figure, from a Dataset to a HoloViews element. No Panel here."""

import holoviews as hv
import holoviews.plotting.bokeh

hv.Store.set_current_backend("bokeh")
