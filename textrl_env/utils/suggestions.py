"""Hints for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint to the known name that looks like `name`; empty if none does."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def insist_on_path(source: str | Path) -> None:
    """Refuse what is spelled as a path and is not there, before a hub is asked for it.

    Raises:
        FileNotFoundError: There is no such file or folder; the message names the nearest that there is.
    """
    text, path = str(source), Path(source).expanduser()
    known_folder = path.parent != Path() and path.parent.is_dir()
    if path.exists() or not (isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or known_folder):
        return
    raise FileNotFoundError(f"there is no folder {text}{near_path(path)}")


def near_path(path: Path) -> str:
    """Return a hint to the file or folder beside a missing one whose name looks like its name; empty if none does."""
    return did_you_mean(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else ""
