"""A folder that holds a run: its configuration, what each finished stage left, and how to go on after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from textrl_env.utils.files import plain, write_json, write_text

from .contents import with_contents
from .folder_lock import only_process_in

_SHOWN = 120  # characters of an input that are kept to be read; of longer ones the beginning and a hash
_FIX = "use another folder (--out), or delete this run first (--overwrite)"
_MARK = "# textrl "  # of the first line of a configuration: the command that wrote it


@dataclass
class Stage:
    """A part of a run that is not repeated once it has ended well; see `RunFolder.stage`.

    Attributes:
        needed: Whether it has to run: it never ended well.
        facts: What later stages ask for; plain data, to be set before the block ends.  Of a finished stage, what was recorded.
    """

    needed: bool
    facts: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """Where a run keeps its files.

    A finished stage is recorded in `stages.json` with everything it depends on, files and folders by their contents.  It is not run again,
    and never replaced by one that depends on something else:

        with run.stage("compare", {"base": base, "seed": seed}) as stage:
            if stage.needed:
                stage.facts = compare(...)

    Args:
        path: Made if it is not there.

    Attributes:
        config: The settings of a command, a dataclass; written as `config.yaml` when a stage ends well.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config: Any = None
        self._command = ""
        self.path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def begin(self, command: str, overwrite: bool = False, made: Sequence[str] = ()) -> Iterator[None]:
        """Hold the folder for a command while the block runs.

        Args:
            command: What the run is one of; noted in the first line of `config.yaml`.
            overwrite: Delete the run that is there, and start anew.
            made: What the command writes there besides the folders of its stages: names, or patterns of them.

        Raises:
            ValueError: Another process works there, or it holds the run of another command.
        """
        with only_process_in(self.path):
            if overwrite:
                with suppress(ValueError):  # a damaged record does not say which
                    self.remove([name for name in self._stages() if Path(name).name == name])
                self.remove([*made, "evaluation-*", "groups-*", "config.yaml", "stages.json"])
            file = self.path / "config.yaml"
            first = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if file.is_file() else ""
            if first.startswith(_MARK) and first != _MARK + command:
                raise ValueError(f"{self.path} holds a run of {first.removeprefix('# ')}, not of textrl {command}: {_FIX}")
            self._command = command
            yield

    @contextmanager
    def stage(self, name: str, depends_on: Any, record: bool = True, makes: Sequence[str] = (), replaces: bool = False) -> Iterator[Stage]:
        """Give a stage to run if it is needed; a block that ends without an exception is recorded as finished, with the stage's facts.

        Args:
            name: Of the stage.
            depends_on: Plain data, at best a mapping from names; texts that name files and folders stand for their contents.
            record: Whether this process writes the record; of several that share a run, one does.
            makes: Files and folders without which it is not finished, whatever the record says.
            replaces: Run it again if it was finished with other inputs, instead of refusing that.

        Raises:
            ValueError: The stage was finished with other inputs; the message says which ones.
        """
        inputs = with_contents(depends_on)
        recorded, current = self._stages().get(name), fingerprint(inputs)
        changed = recorded is not None and recorded["fingerprint"] != current
        if not all((self.path / made).exists() for made in makes) or (changed and replaces):
            recorded = None
        if recorded is not None and recorded["fingerprint"] != current:
            raise ValueError(f"{self.path} holds a run with other inputs ({_changes(recorded, inputs)}): {_FIX}")
        stage = Stage(recorded is None, {} if recorded is None else self.facts(name))
        yield stage
        if record and self.config is not None:
            self._write_config()
        if stage.needed and record:
            readable = {"inputs": {key: _readable(value) for key, value in inputs.items()}} if isinstance(inputs, Mapping) else {}
            write_json(self.path / "stages.json", {**self._stages(), name: {"fingerprint": current, **readable, **stage.facts}})

    def _write_config(self) -> None:
        values = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in ("overwrite", "dry_run")}
        write_text(self.path / "config.yaml", f"{_MARK}{self._command}\n{yaml.safe_dump(plain(values), sort_keys=False)}")

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the facts that were recorded with a stage; none if it is not finished."""
        return {key: value for key, value in self._stages().get(stage, {}).items() if key not in ("fingerprint", "inputs")}

    def forget(self, *stages: str) -> None:
        """Take stages out of the record."""
        kept = {name: value for name, value in self._stages().items() if name not in stages}
        if len(kept) < len(self._stages()):
            write_json(self.path / "stages.json", kept)

    def remove(self, patterns: Sequence[str]) -> list[str]:
        """Delete files and folders of the run, and return their names."""
        found = sorted({path for pattern in patterns for path in self.path.glob(pattern)})
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return [path.name for path in found]

    def _stages(self) -> dict[str, Any]:
        file = self.path / "stages.json"
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if all("fingerprint" in stage for stage in found.values()):
                return dict(found)
            fault = "a stage has no fingerprint"
        except (ValueError, AttributeError, TypeError) as error:
            fault = str(error)
        raise ValueError(f"{file} is damaged ({fault}), and says which stages are finished: restore it, or {_FIX}")


def fingerprint(value: Any) -> str:
    """Return a hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _readable(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 30]}... ({fingerprint(value)})"


def _changes(recorded: Mapping[str, Any], inputs: Any) -> str:
    """Say which inputs differ from the recorded ones."""
    then = recorded.get("inputs")
    if not isinstance(inputs, Mapping) or not isinstance(then, Mapping):
        return "an older version did not note which"
    now = {key: _readable(value) for key, value in inputs.items()}
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name}: {then.get(name, 'none')} then, {now.get(name, 'none')} now" for name in names)


def folder_beside(folder: Path, changed: Mapping[str, Any]) -> Path:
    """Return the folder of a run like that of `folder`, but with these settings: its name goes on with them."""
    parts = [f"-{name.replace('_', '-')}-{safe_name(_words(value))}" for name, value in changed.items()]
    name = "".join([folder.name, *parts])
    return folder.with_name(name if len(name) <= _SHOWN else f"{name[: _SHOWN - 20]}-{fingerprint(name)[:6]}")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def safe_name(text: str) -> str:
    """Return a text as part of a file name; what had to be changed gets a hash."""
    kept = "".join(c if c.isalnum() or c in "-._=" else "_" for c in text)
    return kept if kept == text else f"{kept[:60]}-{fingerprint(text)[:6]}"


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a configuration; paths become strings."""
    write_text(path, yaml.safe_dump(plain(value), sort_keys=False))


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    names = ("textrl-env", "torch", "transformers", "stable-baselines3", "gymnasium", "numpy")
    return {name: _version(name) for name in names}


@cache  # a benchmark of 4,000 runs asks 12,000 times, which cost a minute
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
