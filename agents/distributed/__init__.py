"""Processes that train one policy together, and Ray clusters."""
