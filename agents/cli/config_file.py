"""`--config FILE`: settings in YAML, held to the types that a command's configuration declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from textrl_env.utils.suggestions import did_you_mean

from ..utils.limits import check, hints_of, wanted
from ..utils.run_folder import folder_beside


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
    hints = hints_of(kind)
    values = {_old_name(name, hints): value for name, value in values.items()}
    known = sorted(hints)
    unknown = [f"{name}{did_you_mean(str(name), known)}" for name in values if name not in known]
    if unknown:
        raise ValueError(f"--config {path}: unknown settings {', '.join(unknown)}; known: {', '.join(known)}")
    return {
        name: check(f"--config {path}: {name}: {value!r}", _number(value, hints[name]), hints[name], True) for name, value in values.items()
    }


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


def _old_name(name: Any, hints: Mapping[str, Any]) -> Any:
    """Return the present name of a setting that files of earlier versions call as its flag's alias."""
    for now, hint in hints.items():
        for argument in getattr(hint, "__metadata__", ()):
            if f"--{name}".replace("_", "-") in (getattr(argument, "aliases", None) or ()):
                return now
    return name


def _number(value: Any, hint: Any) -> Any:
    """Return 1e-3 as a number where one is asked for: YAML 1.1 takes it for text, for want of a point."""
    try:
        return float(value) if isinstance(value, str) and "a number" in wanted(hint) else value
    except ValueError:
        return value
