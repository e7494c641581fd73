"""Experiments whose tables stand in docs/."""
