"""Rows of JSON Lines and CSV files, plain or gzip, one at a time, each with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


class UnreadableRowError(ValueError):
    """What is wrong with a row.

    Attributes:
        reason: The kind of fault in a few words, to count by; the message has the details.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Place = tuple[str, dict[str, Any] | UnreadableRowError]


def read_rows(path: str | Path) -> Iterator[Place]:
    """Yield the place and the object of every row; where a row cannot be parsed, the error instead of the object.

    `.csv` and `.csv.gz` are comma-separated values with a header, anything else JSON Lines; blank lines are skipped.  Gzip is
    recognised by its first bytes, whatever the name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is a JSON array, damaged gzip, or CSV that is not UTF-8 or has no usable header.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    with _opened(Path(path)) as file:
        yield from (_csv_rows if suffixes[-1:] == [".csv"] or suffixes[-2:] == [".csv", ".gz"] else _json_rows)(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        try:
            with gzip.open(raw) if zipped else raw as file:
                yield file  # type: ignore[misc]  # gzip's files read like any other
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged gzip ({error}): was it copied whole?") from error


def _json_rows(file: IO[bytes], path: str | Path) -> Iterator[Place]:
    # only "\n" ends a line: splitlines() would also cut at U+2028, which JSON strings may hold
    for n, line in enumerate(file, 1):
        line = line.removeprefix(_BOM) if n == 1 else line
        if n == 1 and line.lstrip().startswith(b"[") and _starts_array(line):
            raise ValueError(f"{path} is a JSON array: write one object a line, as `jq -c '.[]'` does")
        if line.strip():
            yield f"{path}, line {n}", _parsed(line)


def _starts_array(line: bytes) -> bool:
    # an array that ends on its line is a row, though no object
    return not line.rstrip().endswith(b"]") or line.lstrip()[1:].lstrip().startswith(b"{")


def _parsed(line: bytes) -> dict[str, Any] | UnreadableRowError:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return UnreadableRowError("not UTF-8", f"not UTF-8 ({error}): save the file as UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        return UnreadableRowError("not valid JSON", f"not valid JSON: {error}")
    if not isinstance(row, dict):
        return UnreadableRowError("not an object", f"a {type(row).__name__}, not an object with named columns")
    return row


def _csv_rows(file: IO[bytes], path: str | Path) -> Iterator[Place]:
    limit = csv.field_size_limit(sys.maxsize)  # 131,072 letters by default, less than a long conversation has
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            lines = [(reader.line_num, fields) for fields in reader if fields]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}, record that ends in line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    header = lines[0][1] if lines else []
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: the header names a column twice: {', '.join(header)}")
    for n, fields in lines[1:]:
        where = f"{path}, record that ends in line {n}"
        if len(fields) == len(header):
            yield where, dict(zip(header, fields, strict=True))
        else:
            counts = f"{len(fields)} fields, but the header has {len(header)} ({', '.join(header)})"
            yield where, UnreadableRowError("wrong number of fields", f"{counts}: quote commas")
