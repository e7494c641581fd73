"""Code of the user's own, named by a text: `file.py:name` or `package.module:name`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from .suggestions import did_you_mean

_NAMED = re.compile(r"(?P<where>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def names_code(text: str) -> bool:
    """Return whether a text has the form `file.py:name` or `package.module:name`."""
    return _NAMED.fullmatch(text) is not None


def absolute(text: str) -> str:
    """Return the text with the file's whole path, so that it names the same file from every folder.

    Raises:
        FileNotFoundError: There is no such file.
    """
    where, _, name = text.rpartition(":")
    if not where.endswith(".py"):
        return text
    if not Path(where).is_file():
        raise FileNotFoundError(f"{text}: there is no file {Path(where).absolute()}")
    return f"{Path(where).absolute()}:{name}"


def named_object(text: str) -> Any:
    """Import what a text names, running its code; modules are looked for in the working folder too, as `python -m` does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The text has neither form, the code fails as it is imported, or does not define the name.
    """
    if not names_code(text):
        raise ValueError(f"{text!r} names no code: write file.py:name or package.module:name")
    where, _, name = absolute(text).rpartition(":")
    module = _of_file(Path(where)) if where.endswith(".py") else _imported(text, where)
    if not hasattr(module, name):
        raise ValueError(f"{text}: {where} defines no {name!r}{did_you_mean(name, vars(module))}")
    return getattr(module, name)


def _imported(text: str, name: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # a console script looks in its own folder instead
        sys.path.insert(0, os.getcwd())
    return _run(text, lambda: import_module(name))


def _of_file(path: Path) -> ModuleType:
    """Return the module of a file; the same one for the same contents, so that what it loads is loaded once."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:  # as a script finds what lies beside it
        sys.path.insert(0, str(path.parent))
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses and pickle look it up while it runs
    loader = spec.loader
    try:
        _run(str(path), lambda: loader.exec_module(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run(text: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # a stranger's code raises what it likes
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"line {error.lineno} of {error.filename}" if isinstance(error, SyntaxError) else f"line {at.lineno} of {at.filename}"
        ours = isinstance(error, ModuleNotFoundError) and error.name is not None and text.startswith(error.name)
        told = f"there is no module {error.name}" if ours else f"{type(error).__name__}: {error} ({where})"
        raise ValueError(f"{text} cannot be imported: {told}") from error
