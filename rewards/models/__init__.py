"""Rewards that are networks, and loading them."""
