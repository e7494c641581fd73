"""Whole RLHF loops, the demo and rounds with people, and their reports."""
