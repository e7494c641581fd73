"""Libraries that come with `pip install 'textrl-env[metrics]'`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LIBRARIES = {"rouge_score": "rouge-score", "spellchecker": "pyspellchecker", "referencing": "jsonschema"}  # named unlike their modules


def needed(module: str, name: str) -> Any:
    """Import a module of an optional library.

    Raises:
        ImportError: It is not installed; `name` wants it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{name} needs {_LIBRARIES.get(package, package)}: pip install 'textrl-env[metrics]'") from error
