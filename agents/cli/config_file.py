"""`--config FILE`: settings in YAML, held to the types that a command's configuration declares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from textrl_env.utils.suggestions import did_you_mean

from ..utils.run_folder import folder_beside

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "null"}


def read_settings(path: Path, kind: Any) -> dict[str, Any]:
    """Return the settings of a YAML file as values of the fields of a dataclass.

    Raises:
        ValueError: There is no such file, it is no mapping in YAML, or it holds an unknown setting or a value of another type.
    """
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected settings as 'name: value', one a line")
    known = sorted(field.name for field in dataclasses.fields(kind))
    unknown = [f"{name}{did_you_mean(str(name), known)}" for name in values if name not in known]
    if unknown:
        raise ValueError(f"--config {path}: unknown settings {', '.join(unknown)}; known: {', '.join(known)}")
    hints = get_type_hints(kind)
    try:
        return {name: _as_declared(name, value, hints[name]) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error


def not_onto_itself(config: Any, read: Any, file: Path, flags: Sequence[str]) -> Any:
    """Return a configuration that was read from a run's own `config.yaml` and changed by flags with a folder of its own beside that run's.

    Args:
        config: With the flags.
        read: As it was read.
        file: What it was read from.
        flags: The flags; with `--out` among them the configuration stays as it is.
    """
    if not hasattr(config, "goes_on") or read.out is None or any(flag.partition("=")[0] == "--out" for flag in flags):
        return config
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in config.goes_on}
    changed = {name: value for name, value in values.items() if value != getattr(read, name)}
    if not changed or file.resolve() != (read.out / "config.yaml").resolve():
        return config
    return dataclasses.replace(config, out=folder_beside(read.out, changed))


def _as_declared(name: str, value: Any, hint: Any) -> Any:
    number = _number(value) if float in (hint, *get_args(hint)) else value
    try:
        # As JSON: in that mode a strict adapter takes paths as texts and tuples as lists, and nothing else
        return TypeAdapter(hint).validate_json(json.dumps(number, default=str), strict=True)
    except ValidationError as error:
        close = did_you_mean(value, map(str, get_args(hint))) if isinstance(value, str) else ""
        listed = f", such as [{value}]" if get_origin(hint) is tuple and isinstance(value, str) else ""
        raise ValueError(f"{name}: {value!r} is not {_wanted(hint)}{listed}{close}") from error


def _number(value: Any) -> Any:
    """Return 1e-3 as a number, which YAML 1.1 takes for text, for want of a point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _wanted(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(hint) is tuple:
        return f"a list, each entry {_wanted(arguments[0])}"
    return _WANTED[hint] if hint in _WANTED else " or ".join(map(_wanted, arguments))
