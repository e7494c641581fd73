"""The diagnostic suite's tasks: one capability each, from grammars of our own, with a known best score."""
