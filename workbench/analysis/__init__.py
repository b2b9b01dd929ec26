"""Analyses: a frozen Spec in, an xarray.Dataset out, with everything needed to compute it again in its attrs."""
