"""Published text metrics against references."""
