"""A folder that holds a run: its configuration, what each finished stage left, and how to go on after an interruption."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml


class RunFolder:
    """Where a run keeps its files.

    A stage is recorded as done together with a fingerprint of everything it depends on; `done` is true only while the
    fingerprint is the same, so that changing a setting repeats the stages it matters to and no others.

    Args:
        path: Made if it is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def done(self, stage: str, depends_on: Any) -> bool:
        """Return whether `stage` was finished under the same circumstances."""
        return self._stages().get(stage, {}).get("fingerprint") == fingerprint(depends_on)

    def finish(self, stage: str, depends_on: Any, **facts: Any) -> None:
        """Record that `stage` is finished, with `facts` that later stages ask for."""
        stages = self._stages()
        stages[stage] = {"fingerprint": fingerprint(depends_on), **facts}
        write_json(self.path / "stages.json", stages)

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the facts that `finish` recorded."""
        return {key: value for key, value in self._stages()[stage].items() if key != "fingerprint"}

    def _stages(self) -> dict[str, Any]:
        file = self.path / "stages.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def fingerprint(value: Any) -> str:
    """Return a hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def plain(value: Any) -> Any:
    """Return the value as JSON would hold it: paths as strings, tuples as lists."""
    return json.loads(json.dumps(value, default=str))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON document a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a configuration; paths become strings."""
    write_text(path, yaml.safe_dump(plain(value), sort_keys=False))


def append_csv(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append a row; a new file gets the header first."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow({key: row[key] for key in columns})


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    names = ("textrl", "torch", "transformers", "stable-baselines3", "gymnasium", "numpy")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
