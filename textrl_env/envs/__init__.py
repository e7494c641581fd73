"""The batched core and the three environments over it."""
