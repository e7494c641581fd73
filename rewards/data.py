"""Preference data: which of two responses to a prompt was preferred, one JSON object a line.

What is written here appears whole or not at all, a reward model's folder (`new_folder`) like a file of preferences.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison.

    `prompt + chosen` and `prompt + rejected` are the whole texts: a response keeps its leading space.

    Attributes:
        prompt: What both responses answer; may be empty.
        chosen: The preferred response.
        rejected: The other one.
    """

    prompt: str
    chosen: str
    rejected: str


_KEYS = tuple(field.name for field in fields(Preference))


def read_preferences(path: str | Path) -> list[Preference]:
    """Read a JSON Lines file (UTF-8) whose objects hold the strings `prompt`, `chosen` and `rejected`.

    Blank lines are skipped and further keys ignored, so that files with annotator or time columns read as they are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not such an object (the message names it), the file is not UTF-8, or holds no line.
    """
    try:
        # only "\n" ends a line: splitlines() would also cut at U+2028, which JSON strings may hold
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    found = [_parse(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no preferences: write one JSON object with {', '.join(_KEYS)} a line")
    return found


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Write JSON Lines that `read_preferences` reads back.

    The file appears whole or not at all: it is written under a temporary name in the same folder, then renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for preference in preferences:
                file.write(json.dumps(asdict(preference), ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write into; it takes the name `path` if the block ends well, else it vanishes.

    What bore the name before is moved aside first and deleted last, so that no crash can lose both.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = temporary.with_suffix(".old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parse(line: str, where: str) -> Preference:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}, not an object with the keys {', '.join(_KEYS)}")
    for key in _KEYS:
        if key not in row:
            raise ValueError(f"{where}: the key {key!r} is missing; it has {sorted(row)}")
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: {key!r} is {row[key]!r} ({type(row[key]).__name__}); it must be a string")
    return Preference(*(row[key] for key in _KEYS))
