"""The documentation; `python -m docs.generator` writes the pages that are made from the code."""
