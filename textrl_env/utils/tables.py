"""Tables in files of any kind: which reader takes which, arrays, and columns of other names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .row_files import BOM, CsvRows, FileRows, JsonRows, LineRows, ParquetRows, RowError, Rows, quoted

TABLES = ("jsonl", "json", "csv", "tsv", "parquet")  # kinds of files with named columns


class ArrayRows(FileRows):
    """One JSON array of objects; it is read whole, for it has no lines to index.

    Raises:
        ValueError: The file is no JSON array.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        with self._bytes() as file:
            raw = file.read().removeprefix(BOM)
        try:
            self._rows = json.loads(raw.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{self.path} is no whole JSON array: {error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Return file and place in the array, from 0."""
        return f"{self.path}, item {index}"

    def _read(self, index: int) -> Any:
        row = self._rows[index]
        if not isinstance(row, dict):
            raise RowError(f"a JSON value ({type(row).__name__}) is no row: an object with named columns is needed", "not an object")
        return row


class RenamedRows(Rows):
    """Rows whose columns have other names in the file.

    Args:
        rows: As the file has them.
        columns: Our name of a column, and the file's.
    """

    def __init__(self, rows: Rows, columns: Mapping[str, str]) -> None:
        self.rows, self.columns, self.name = rows, dict(columns), rows.name

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """Return the place of a row."""
        return self.rows.where(index)

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], Any]]:
        """Yield the reader; a column that a row lacks is an error of the row."""
        with self.rows.opened() as read:
            yield lambda index: self._renamed(read(index))

    def _renamed(self, row: Any) -> Any:
        missing = [theirs for theirs in self.columns.values() if theirs not in row]
        if missing:
            raise RowError(f"there is no column {quoted(missing)}; it has {quoted(row)}", "no column of the given name")
        taken = {*self.columns.values(), *self.columns}
        return {**{name: value for name, value in row.items() if name not in taken}, **{o: row[t] for o, t in self.columns.items()}}


def kind_of(path: str | Path) -> str:
    """Return what the name of a file says that it holds: its last suffix without the dot, in lower case; `.gz` does not count."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix[1:]


def file_rows(path: str | Path, kind: str, columns: Sequence[str] | None = None, longest: int | None = None) -> Rows:
    """Return the rows of a file of one of `TABLES` or `txt`; see `ParquetRows` for `columns`, `CsvRows` for `longest`."""
    if kind == "parquet":
        return ParquetRows(path, columns)
    if kind in ("csv", "tsv"):
        return CsvRows(path, longest)
    if kind == "txt":
        return LineRows(path)
    rows = JsonRows(path)
    return ArrayRows(path) if rows.is_array() else rows


def table_rows(path: str | Path, columns: Mapping[str, str] | None = None) -> Rows:
    """Return the rows of a table: CSV or Parquet if its name says so, else JSON Lines or an array; raises what the readers raise.

    Args:
        path: The file.
        columns: The table's own name of a column, where it has another than ours.
    """
    kind = kind_of(path)
    rows = file_rows(path, kind if kind in TABLES else "jsonl", longest=sys.maxsize)
    return RenamedRows(rows, columns) if columns else rows


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of `table_rows` whole.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row cannot be read; the message says which.
    """
    return list(table_rows(path).map(dict))
