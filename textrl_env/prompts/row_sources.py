"""What prompts may be read from: which rows belong to a path, a list, a dataset or a name on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.optional_imports import optional_import
from ..utils.row_files import JsonRows, Rows, quoted
from ..utils.tables import TABLES, file_rows, kind_of

FORMATS = (*TABLES, "txt")


class DatasetRows(Rows):
    """Rows of a Hugging Face dataset."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._rows, self.name = dataset, name

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Return dataset and row, from 0."""
        return f"{self.name}, row {index}"

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], Any]]:
        """Yield the reader."""
        yield self._rows.__getitem__


class ListRows(DatasetRows):
    """Rows in memory."""

    def __init__(self, rows: Sequence[Any]) -> None:
        super().__init__(tuple(rows), "the list of prompts")

    def where(self, index: int) -> str:
        """Return the position in the list, from 0."""
        return f"prompts[{index}]"


def rows_of(source: Any, format: str | None, needed: Sequence[str] | None) -> Rows:
    """Return the rows of whatever a user passed to `read_prompts`; `needed` are the columns to read, None is all."""
    if isinstance(source, str) and source.startswith("hf:"):
        return _hub_rows(source)
    if isinstance(source, (str, Path)):
        return _file_rows(Path(source), format, needed)
    if isinstance(source, Rows):
        return source
    if format is not None:
        raise ValueError(f"format={format!r} describes a file, but the source is of type {type(source).__name__}")
    if all(hasattr(source, name) for name in ("column_names", "__getitem__", "__len__")):
        return _dataset_rows(source, "the dataset")
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return ListRows(source)
    raise TypeError(f"prompts cannot come from {type(source).__name__}: pass a path, a list, or a dataset that has a length")


def _file_rows(path: Path, format: str | None, needed: Sequence[str] | None) -> Rows:
    kind = kind_of(path) if format is None else format
    if kind not in FORMATS:
        what = f"format={format!r}" if format is not None else f"{path} has the suffix {path.suffix!r}"
        raise ValueError(f"{what}: choose format= from {quoted(FORMATS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path.absolute()}")
    rows = file_rows(path, kind, needed)
    if isinstance(rows, JsonRows):
        rows.check_last_line()
    return rows


def _hub_rows(source: str) -> Rows:
    name, _, split = source.removeprefix("hf:").partition(":")  # a split may hold colons itself: train[:100]
    with optional_import("datasets", f"{source!r} needs the package datasets"):
        from datasets import load_dataset
    return _dataset_rows(load_dataset(name, split=split or "train"), source)


def _dataset_rows(dataset: Any, name: str) -> Rows:
    if isinstance(dataset, Mapping):
        raise ValueError(f"{name} has the splits {quoted(dataset)}: pass one of them, as dataset[{next(iter(dataset), 'train')!r}]")
    return DatasetRows(dataset, name)
