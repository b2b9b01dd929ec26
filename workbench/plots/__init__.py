"""Figures: one function per figure, from a Dataset to a HoloViews element. No Panel here."""

import holoviews as hv

hv.extension("bokeh", logo=False)
