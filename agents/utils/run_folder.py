"""A folder that holds a run: its configuration, what each finished stage left, and how to go on after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from textrl_env.utils.files import plain, write_json, write_text


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
