"""Files and folders by what they hold: a run that was made of other contents is another run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from textrl_env.utils.files import hash_file

_FOLDERS = (  # names of settings that may be a folder's
    "model", "base", "path", "test_path", "reward", "held_out", "tokenizer", "weights", "trunk", "reference", "critic",
)  # fmt: skip
_KEPT = ("cache", "out", "log")  # of settings whose file is written, not read


def contents_hash(path: str | Path) -> str:
    """Return a hash of the bytes of a file, or of the names and bytes of all files in a folder; names with a leading dot do not count."""
    path, digest = Path(path), hashlib.blake2b(digest_size=8)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        parts = file.relative_to(path).parts
        if any(part.startswith(".") for part in parts):
            continue
        digest.update(f"{'/'.join(parts)}\0{file.stat().st_size}\0".encode())
        hash_file(file, digest)
    return digest.hexdigest()


def with_contents(value: Any, setting: str = "") -> Any:
    """Return plain data in which a text that names a file, a folder, source code or a plugin stands for what is there.

    Args:
        value: Settings: mappings, lists, texts, paths and numbers.
        setting: Name of the setting that this is the value of.
    """
    if isinstance(value, Mapping):
        return {str(key): with_contents(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_contents(item, setting) for item in value]
    if not isinstance(value, (str, Path)) or setting in _KEPT:
        return value
    text = str(value)
    if (found := _path(text, setting)) is not None:
        return f"contents {contents_hash(found)}"
    if (found := _source(text, setting)) is not None:
        return f"{text.rpartition(':')[2]} in contents {contents_hash(found)}"
    plugins = [entry.dist for entry in entry_points(group="textrl.rewards", name=text)] if setting in ("name", "reward") else []
    return f"{text} of {plugins[0].name} {plugins[0].version}" if plugins and plugins[0] else text


def _path(text: str, setting: str) -> Path | None:
    path = Path(text)
    try:
        if path.is_file() or (path.is_dir() and setting in _FOLDERS and text.strip("./")):
            return path
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return None
    return None


def _source(text: str, setting: str) -> Path | None:
    """Return the file of `file.py:function`, or of the module of `package.module:Name`."""
    name, _, attribute = text.rpartition(":")
    if not attribute.isidentifier() or not name:
        return None
    if name.endswith(".py"):
        return _path(name, "")
    if setting not in ("class", "agent", "path") or not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        found = find_spec(name)
    except ImportError:
        return None
    return None if found is None or found.origin is None else _path(found.origin, "")
