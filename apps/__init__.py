"""Served pages: thin compositions of views."""
