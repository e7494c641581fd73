"""Text lists, optional imports and intervals of proportions."""
