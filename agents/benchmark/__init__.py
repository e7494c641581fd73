"""Measurements: speed now, tasks and statistics later."""
