"""Plots, HTML pages, templates and style."""
