"""Speed and memory of this package, each a `python -m`."""
