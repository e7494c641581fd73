"""Rows of data in files, read one at a time: a file is indexed in one pass and never loaded whole."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from .optional_imports import optional_import

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"

Made = TypeVar("Made")


class RowError(ValueError):
    """What is wrong with a row; whoever knows where the row is adds its place.

    Attributes:
        reason: The kind of fault in a few words, to count by; the message has the details.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class Rows(ABC):
    """Rows of data that never change: a text, a mapping or a `Prompt` each."""

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Return the place of a row, for error messages."""

    @abstractmethod
    @contextmanager
    def opened(self) -> Iterator[Callable[[int], Any]]:
        """Yield a function that reads the row at an index and raises `RowError` if it cannot be parsed."""

    def map(self, function: Callable[[Any], Made], indices: Iterable[int] | None = None) -> Iterator[Made]:
        """Yield what a function makes of rows.

        Args:
            function: Called with each row; it may raise `RowError`.
            indices: Of the rows; None is all, in order.

        Raises:
            ValueError: A row cannot be parsed, or the function refused it; the message has the row's place.
        """
        with self.opened() as read:
            for index in range(len(self)) if indices is None else indices:
                try:
                    made = function(read(index))
                except RowError as error:
                    raise ValueError(f"{self.where(index)}: {error}") from error
                yield made


class FileRows(Rows):
    """Rows of a file, plain or gzip, that must stay as it was when it was indexed.

    No file stays open between reads, so that rows pickle and forked workers share no file position.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.name = str(self.path)
        self._stamp = self._stamp_now()

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], Any]]:
        """Yield the reader."""
        self._check_unchanged()
        yield self._read

    def _read(self, index: int) -> Any:
        raise NotImplementedError

    def _stamp_now(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def _check_unchanged(self) -> None:
        size, modified = self._stamp_now()
        if (size, modified) != self._stamp:
            what = f"{self._stamp[0]} bytes then, {size} now" if size != self._stamp[0] else "same size, later modification time"
            raise ValueError(f"{self.path} changed since it was indexed ({what}): call read_prompts again")

    @contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        """Open the file; gzip is recognised by its first bytes, whatever the name."""
        with open(self.path, "rb") as raw:
            zipped = raw.read(len(GZIP)) == GZIP
            raw.seek(0)
            try:
                with gzip.open(raw) if zipped else raw as file:
                    yield file  # type: ignore[misc]  # gzip's files read like any other
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{self.path} is damaged gzip ({error}): was it copied whole?") from error


class LineRows(FileRows):
    """Plain text, one row a line; blank lines are no rows.

    Args:
        path: The file, UTF-8.

    Attributes:
        offsets: Where each row starts, in bytes, and at last where the file ends, shape (N + 1,), int64.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        with self._bytes() as file:
            start = len(BOM) if file.read(len(BOM)) == BOM else 0
            file.seek(start)
            self.offsets = np.array(self._starts(file, start), np.int64)
        self._check_unchanged()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def where(self, index: int) -> str:
        """Return file and line; counts the lines before it, since the index keeps no line numbers."""
        line, left = 1, int(self.offsets[index])
        with self._bytes() as file:
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                line += block.count(b"\n")
                left -= len(block)
        return f"{self.path}, line {line}"

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], Any]]:
        """Yield the reader, on a file that is open until the block ends."""
        self._check_unchanged()
        with self._bytes() as file:
            yield lambda index: self._parse(_decoded(self._raw(file, index)))

    def _raw(self, file: IO[bytes], index: int) -> bytes:
        """Return the bytes of a row, and of blank lines that follow it."""
        start, end = self.offsets[index : index + 2].tolist()
        file.seek(start)
        return file.read(end - start)

    def _starts(self, file: IO[bytes], position: int) -> array[int]:
        starts = array("q")  # 8 bytes a row while it grows; a list of int takes 40
        for line in file:
            if not line.isspace():
                starts.append(position)
            position += len(line)
        starts.append(position)
        return starts

    def _parse(self, text: str) -> Any:
        return text.split("\n", 1)[0].removesuffix("\r")


class JsonRows(LineRows):
    """JSON Lines: one object a line."""

    def is_array(self) -> bool:
        """Return whether the file is one JSON array instead."""
        with self._bytes() as file:
            return len(self) > 0 and _starts_array(self._raw(file, 0).strip())

    def check_last_line(self) -> None:
        """Check that writing did not stop in the middle of the last line.

        Raises:
            ValueError: The last line has no end and cannot be parsed.
        """
        with self._bytes() as file:
            last = self._raw(file, len(self) - 1) if len(self) else b"\n"
        if not last.endswith(b"\n"):
            try:
                self._parse(_decoded(last))
            except RowError as error:
                place = self.where(len(self) - 1)
                raise ValueError(f"{place}: the last line is half-written ({error}): finish or delete it") from error

    def _parse(self, text: str) -> Any:
        shown = excerpt(text.strip())
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            what = f"{error.msg} at column {error.colno}: {shown}"
            raise RowError(f"not valid JSON: not one JSON object on one line, {what}", "not valid JSON") from error
        except RecursionError as error:
            raise RowError(f"not valid JSON that can be read: nested too deeply: {shown}", "not valid JSON") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise RowError(f"a {kind} is no row: a JSON value ({kind}), not an object with named columns: {shown}", "not an object")
        return row


class CsvRows(LineRows):
    """Values separated by commas, semicolons or tabs, with a header; a quoted field may hold newlines.

    The separator is the one of the three by which the header has the most fields.  The csv module itself finds where records end, so that
    index and reader agree on every quote.

    Args:
        path: The file, UTF-8.
        longest: Characters that a field may have; None keeps the csv module's limit.

    Raises:
        ValueError: A malformed record, a quote that is never closed, or a header that names a column twice.
    """

    header: list[str]
    separator: str

    def __init__(self, path: str | Path, longest: int | None = None) -> None:
        self.longest = longest
        super().__init__(path)

    def _starts(self, file: IO[bytes], position: int) -> array[int]:
        end, line = position, 1

        def lines() -> Iterator[str]:
            nonlocal end
            for raw in file:
                end += len(raw)
                yield _decoded(raw)

        self.header, starts, texts = [], array("q"), lines()
        first = next(texts, "")
        self.separator = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
        reader = csv.reader(chain([first], texts), strict=True, delimiter=self.separator)
        try:
            with _field_limit(self.longest):
                for record in reader:
                    if record and self.header:
                        starts.append(position)
                    self.header = self.header or record
                    position, line = end, reader.line_num + 1
        except (csv.Error, RowError) as error:
            raise ValueError(f"{self.path}, record from line {line}: {_csv_fault(error)}") from error
        starts.append(position)
        if len(set(self.header)) < len(self.header):
            twice = sorted({name for name in self.header if self.header.count(name) > 1})
            raise ValueError(f"{self.path}: the file names a column twice: the header names {twice} more than once; rename one")
        return starts

    def _parse(self, text: str) -> dict[str, str]:
        with _field_limit(self.longest):
            fields = next(csv.reader(io.StringIO(text, newline="\n"), strict=True, delimiter=self.separator))
        if len(fields) != len(self.header):
            counts = f"{len(fields)} fields, but the header has {len(self.header)} ({', '.join(self.header)})"
            raise RowError(f"{counts}: quote fields that hold {self.separator!r}", "wrong number of fields")
        return dict(zip(self.header, fields, strict=True))


class ParquetRows(FileRows):
    """Parquet, a row group at a time; the last one read is kept.

    Rows drawn in random order read a whole group each: write the file with small row groups for that.

    Args:
        path: The file.
        columns: Columns to read; None reads all.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: It is no Parquet file, or half-written.
    """

    def __init__(self, path: str | Path, columns: Sequence[str] | None = None) -> None:
        super().__init__(path)
        parquet = _pyarrow_parquet()
        try:
            with parquet.ParquetFile(self.path) as file:
                groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                names = file.schema_arrow.names
        except Exception as error:  # pyarrow raises ArrowInvalid or OSError, as the damage goes
            raise ValueError(f"{self.path} is no whole Parquet file: {error}") from error
        # pyarrow skips names that it does not know: read all then, so that the error can list the columns there are
        self.columns = list(columns) if columns is not None and set(columns) <= set(names) else None
        self.ends = np.cumsum([0, *groups], dtype=np.int64)[1:]
        self._cached: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def where(self, index: int) -> str:
        """Return file and row, from 0."""
        return f"{self.path}, row {index}"

    def _read(self, index: int) -> Any:
        group = int(np.searchsorted(self.ends, index, side="right"))
        cached = self._cached  # read once: another thread may put another group there
        if cached is None or cached[0] != group:
            with _pyarrow_parquet().ParquetFile(self.path) as file:
                cached = self._cached = (group, file.read_row_group(group, columns=self.columns))
        table = cached[1]
        return table.slice(index - (int(self.ends[group]) - len(table)), 1).to_pylist()[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}


def excerpt(text: str, limit: int = 120) -> str:
    """Return `text` quoted and cut, for an error message."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def quoted(names: Iterable[Any]) -> str:
    """Return names as a list for an error message."""
    return ", ".join(map(repr, names)) or "none"


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1} of the row"
        raise RowError(f"not UTF-8 ({byte}): convert the file, e.g. with iconv", "not UTF-8") from error


def _starts_array(line: bytes) -> bool:
    # an array that ends on its line is a row, though no object
    return line.startswith(b"[") and (not line.endswith(b"]") or line[1:].lstrip().startswith(b"{"))


@contextmanager
def _field_limit(longest: int | None) -> Iterator[None]:
    """Let a field of a CSV file have so many characters; by default it has at most 131,072, less than a long conversation."""
    before = csv.field_size_limit()
    csv.field_size_limit(longest or before)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_fault(error: Exception) -> str:
    if "unexpected end of data" in str(error):
        return f"{error}: a quote is opened and never closed; the record is half-written"
    if "field limit" in str(error):
        return f"{error}: raise it with csv.field_size_limit(...)"
    return str(error)


def _pyarrow_parquet() -> Any:
    with optional_import("parquet", "Parquet files need pyarrow"):
        import pyarrow.parquet
    return pyarrow.parquet
