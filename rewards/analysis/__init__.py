"""Checks of a reward model, and mean scores by group."""
