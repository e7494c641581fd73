"""Files and folders that appear whole or not at all, and text files read by the line."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from .row_files import BOM, GZIP, RowError
from .tables import TABLES, kind_of, table_rows

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, at which the block writes a file or a folder.

    If the block ends well, what it wrote is renamed to `path`, else it is deleted: a reader never sees half of it.  A folder that had the
    name before is moved aside first and deleted last, so that a crash never loses both.

    Raises:
        OSError: There was no room on the disk; what was at `path` before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    _delete(temporary)  # left by a process that was killed
    try:
        with told_when_full(path, "what was there before is unchanged"):
            yield temporary
        if temporary.is_dir() and path.exists():
            _delete(old)
            path.rename(old)
        os.replace(temporary, path)
        _delete(old)
    finally:
        _delete(temporary)


@contextmanager
def told_when_full(path: Path, left: str) -> Iterator[None]:
    """Name the file in the error of a write for which the disk has no room, and say what is left of it.

    Raises:
        OSError: There was no room.
    """
    try:
        yield
    except Exception as error:  # safetensors has an exception of its own, with the number in its text
        number = next((n for n in _FULL if getattr(error, "errno", None) == n or f"(os error {n})" in str(error)), None)
        if number is None:
            raise
        message = f"{os.strerror(number)}: {path} could not be written, {left}; make room, and run the same command again"
        raise OSError(number, message) from error


@contextmanager
def new_file(path: str | Path, mode: int = 0o666) -> Iterator[IO[str]]:
    """Open a UTF-8 text file for writing that appears at `path` when the block ends well, see `new_path`.

    Half a character, which UTF-8 cannot hold and a byte tokenizer may leave, is written as a backslash escape.

    Args:
        path: The file.
        mode: Its permissions, before the umask.
    """
    opener = partial(os.open, mode=mode)
    with new_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="\n", errors="backslashreplace", opener=opener) as file:
            yield file


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that appears at `path` when the block ends well, see `new_path`."""
    with new_path(path) as temporary:
        temporary.mkdir()
        yield temporary


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, see `new_file`."""
    with new_file(path) as file:
        file.write(text)


def read_lines(path: str | Path, encoding: str = "utf-8") -> list[str]:
    """Return the lines of a text file, such as sentences or a list of words, stripped and without the blank ones.

    Args:
        path: The file, plain or gzip.  Of a table (`row_files.TABLES`) it is the column `text`, or the only one.
        encoding: Of the file; older corpora are often `"latin-1"`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds only blank lines, or bytes that are not of this encoding; or a table has several columns and none is `text`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no text file at {path}")
    if kind_of(path) in TABLES:
        return _column(path)
    lines, content = [], path.read_bytes()
    content = gzip.decompress(content) if content.startswith(GZIP) else content
    for number, raw in enumerate(content.removeprefix(BOM).split(b"\n"), start=1):
        try:
            lines.append(raw.decode(encoding).strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}; save it as UTF-8, or pass the file's encoding, e.g. latin-1") from error
    if not any(lines):
        raise ValueError(f"{path} holds no lines: no sentence, no word")
    return [line for line in lines if line]


def _column(path: Path) -> list[str]:
    def text_of(row: Any) -> str:
        name = "text" if "text" in row or len(row) != 1 else next(iter(row))
        if not isinstance(row.get(name), str):
            raise RowError(f"its texts must be in a column called 'text', and it has {', '.join(row)}: rename one, or write a text a line")
        return row[name].strip()

    lines = [text for text in table_rows(path).map(text_of) if text]
    if not lines:
        raise ValueError(f"{path} holds no texts")
    return lines


def hash_file(path: Path, digest: Any) -> None:
    """Feed the bytes of a file to a hash of `hashlib`, a block at a time."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def plain(value: Any) -> Any:
    """Return the value as JSON would hold it: paths as strings, tuples as lists."""
    return json.loads(json.dumps(value, default=str))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        ValueError: The file is empty or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is empty or damaged ({error}): restore it, or run the command that wrote it again") from error


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON document a line."""
    with new_file(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def append_csv(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append a row; a new file gets the header first."""
    new = not path.is_file()
    with told_when_full(path, "its last row may be cut"), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow({key: row[key] for key in columns})
