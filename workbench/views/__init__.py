"""The pages: one Panel Viewer each, the same object in a notebook cell and in the served dashboard."""
