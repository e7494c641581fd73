"""Exact rewards of a text that need no torch."""
