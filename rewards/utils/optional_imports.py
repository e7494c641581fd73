"""Libraries that come with `pip install 'textrl-env[metrics]'`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from textrl_env.utils.optional_imports import optional_import

_LIBRARIES = {"rouge_score": "rouge-score", "spellchecker": "pyspellchecker", "referencing": "jsonschema"}  # named unlike their modules


def needed(module: str, name: str) -> Any:
    """Import a module of an optional library.

    Raises:
        ImportError: It is not installed; the message says that `name` needs it.
    """
    package = module.split(".")[0]
    with optional_import("metrics", f"{name} needs {_LIBRARIES.get(package, package)}"):
        return import_module(module)
