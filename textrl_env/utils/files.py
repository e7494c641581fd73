"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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


def append_csv(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append a row; a new file gets the header first."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow({key: row[key] for key in columns})


@contextmanager
def new_file(path: str | Path) -> Iterator[IO[str]]:
    """Give a text file to write into; it takes the name `path` if the block ends well, else it vanishes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # a byte tokenizer can leave half a character, which UTF-8 cannot hold
        with open(temporary, "w", encoding="utf-8", newline="\n", errors="backslashreplace") as file:
            yield file
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
