"""One page with a paragraph on each reward that has a name."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import rewards
from textrl_env.reward_model import _TABLE

from .docstrings import arguments, demoted, page, parts


def named() -> dict[str, Any]:
    """Return the class or function of each registered reward."""
    return {name: resolve_name(entry) if isinstance(entry, str) else entry for name, entry in _TABLE.items()}


def pages() -> dict[str, str]:
    """Return the page."""
    entries = [text for name, made in sorted(named().items()) for text in _entry(name, made)]
    return {
        "rewards.md": page(
            "Every reward",
            f"{len(rewards.list())} names, for `reward=` in Python, `--reward` on the command line, and inside other rewards. What each "
            "gives for an example is in [the table](../rewards.md).",
            *entries,
        )
    }


def _entry(name: str, made: Any) -> list[str]:
    told, _ = parts(made)
    return [f"## {name}", demoted(told, by=2), arguments(made)]
