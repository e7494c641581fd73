"""Rewards behind HTTP, language models as judges, and the server."""
