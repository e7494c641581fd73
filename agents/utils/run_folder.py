"""A folder that holds a run: its configuration, what each finished stage left, and how to go on after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from textrl_env.utils.files import plain, write_json, write_text


@dataclass
class Stage:
    """A part of a run that is not repeated once it has ended well; see `RunFolder.stage`.

    Attributes:
        needed: Whether it has to run: it never ended well, or what it depends on has changed.
        facts: What later stages ask for; plain data, to be set before the block ends.
    """

    needed: bool
    facts: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """Where a run keeps its files.

    A finished stage is recorded in `stages.json` with a fingerprint of everything it depends on, so that changing a setting
    repeats the stages it matters to and no others:

        with run.stage("compare", depends_on=[base, seed]) as stage:
            if stage.needed:
                stage.facts = compare(...)

    Args:
        path: Made if it is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def stage(self, name: str, depends_on: Any, record: bool = True) -> Iterator[Stage]:
        """Give a stage to run if it is needed; a block that ends without an exception is recorded as finished, with the stage's facts.

        Args:
            name: Of the stage.
            depends_on: Plain data; the stage is needed again when it changes.
            record: Whether this process writes the record; of several that share a run, one does.
        """
        current = fingerprint(depends_on)
        stage = Stage(self._stages().get(name, {}).get("fingerprint") != current)
        yield stage
        if stage.needed and record:
            write_json(self.path / "stages.json", {**self._stages(), name: {"fingerprint": current, **stage.facts}})

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the facts that were recorded with a stage."""
        return {key: value for key, value in self._stages()[stage].items() if key != "fingerprint"}

    def _stages(self) -> dict[str, Any]:
        file = self.path / "stages.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def fingerprint(value: Any) -> str:
    """Return a hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a configuration; paths become strings."""
    write_text(path, yaml.safe_dump(plain(value), sort_keys=False))


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    names = ("textrl-env", "torch", "transformers", "stable-baselines3", "gymnasium", "numpy")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
