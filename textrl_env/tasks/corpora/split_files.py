"""Which files of a corpus hold which split, and the split of a corpus that comes without any."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...prompts.reader import split_of_text

Row = dict[str, Any]

# A split is named by a word of a file's name or, failing that, of a folder's: dev-v2.0.json, newstest2014.de, train/00.parquet
_NAMES = {
    "train": re.compile(r"(?<![a-z])(train|training)(?![a-z])"),
    "validation": re.compile(r"(?<![a-z])(validation|valid|val|dev|newsdev)(?![a-z])"),
    "test": re.compile(r"(?<![a-z])(test|tst|newstest)(?![a-z])"),
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}")  # how the hub cuts one table into files


def named_split(path: Path, base: Path | None = None) -> str | None:
    """Return the split that a file's name says, or the nearest folder's between it and `base`; None if none does."""
    parts = [path.name] if base is None else list(path.relative_to(base).parts)
    for part in reversed(parts):
        named = [split for split, pattern in _NAMES.items() if pattern.search(part.lower())]
        if named:
            return named[0]
    return None


def split_files(
    path: str, split: str, suffixes: Iterable[str], accept: Callable[[Path], bool] = lambda file: True
) -> tuple[list[Path], bool]:
    """Return the files of a split: several only where the hub cut one table into numbered files.

    Args:
        path: A file, or a folder that holds files named after the splits, or one file that is named after none.
        split: `"train"`, `"validation"` or `"test"`.
        suffixes: Of the files that may be meant, as `".json"`.
        accept: Says of a file in a folder whether it may be meant.

    Returns:
        The files, and whether they are the whole corpus, of which `deal` makes the splits.

    Raises:
        FileNotFoundError: There is no such file, or none of this split.
        ValueError: The file is another split's by its name, or several files may be meant.
    """
    base, suffixes = Path(path), tuple(suffixes)
    if base.is_file():
        own = named_split(base)
        if own not in (None, split):
            raise ValueError(f"{base} is the {own} split by its name, not split={split!r}: pass the folder, or that split's file")
        return [base], own is None
    if not base.is_dir():
        raise FileNotFoundError(f"there is no {base.absolute()}")
    found = [file for file in sorted(base.rglob("*")) if file.is_file() and file.name.lower().endswith(suffixes) and accept(file)]
    named = {file: named_split(file, base) for file in found}
    files = [file for file in found if named[file] == split]
    whole = not files and not any(named.values())
    files = files or (found if whole else [])
    if not files:
        there = ", ".join(str(file.relative_to(base)) for file in found[:8]) or f"no file that ends in {', '.join(suffixes)}"
        raise FileNotFoundError(
            f"{base} has no {split} split; it holds {there}.  Another split never takes its place: ask for one that is there"
        )
    if len({_SHARD.sub("", str(file)) for file in files}) > 1:
        exact = [file for file in files if file.name.partition(".")[0].lower() == split]  # train.jsonl beside train_socratic.jsonl
        if len(exact) != 1:
            names = ", ".join(str(file.relative_to(base)) for file in files[:8])
            raise ValueError(f"{base} holds {len(files)} files of its {split} split ({names}): pass one of them, or keep one there")
        files = exact
    return files, whole


def parallel_files(path: str, split: str, source: str, target: str) -> tuple[list[tuple[Path, Path]], bool] | None:
    """Return the pairs of files that are a parallel corpus's split, source side first, and whether they are the whole corpus.

    Args:
        path: A folder, or the file of the source side.
        split: `"train"`, `"validation"` or `"test"`.
        source: Code of the source language, the last word of its files' names.
        target: Code of the target language.

    Returns:
        None if the folder holds no pair at all.

    Raises:
        FileNotFoundError: There is no such path, no other side, or no pair of this split.
        ValueError: The file is another split's by its name, or several pairs may be the test or validation split.
    """
    base = Path(path)
    folder = base.parent if base.is_file() else base
    if not base.exists():
        raise FileNotFoundError(f"there is no {base.absolute()}")
    left, right = (_sides(folder, language, first) for language, first in ((source, "src"), (target, "ref")))
    pairs = {file: right[stem] for stem, file in left.items() if stem in right and base in (folder, file)}
    if not pairs:
        if base.is_file():
            raise FileNotFoundError(f"{base} has no other side: name both files alike but for the ends .{source} and .{target}")
        return None
    named = {file: named_split(file, folder) for file in pairs}
    whole = not any(named.values())
    # WMT's training files are named after where they come from: europarl-v7.de-en.de
    files = [file for file in pairs if whole or (named[file] or "train") == split]
    if not files:
        there = ", ".join(f"{file.name} ({named[file] or 'train'})" for file in list(pairs)[:8])
        raise FileNotFoundError(f"{base} has no {split} split from {source} to {target}; it holds {there}")
    if len(files) > 1 and split != "train" and not whole:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:8])
        raise ValueError(f"{base} holds {len(files)} files of its {split} split ({names}): pass one of them, or keep one there")
    return [(file, pairs[file]) for file in files], whole


def _sides(folder: Path, language: str, role: str) -> dict[str, Path]:
    """Return the files of a language by their names without it, `-src` and `-ref`; of WMT's two the one of the role."""
    sides: dict[str, Path] = {}
    for file in sorted(folder.rglob(f"*.{language}*"), key=lambda file: (f"-{role}." in file.name, file)):
        match = re.fullmatch(rf"(.*?)(-src|-ref)?\.{re.escape(language)}(\.sgm|\.xml)?", str(file.relative_to(folder)))
        if match and file.is_file():
            sides[match[1]] = file
    return sides


def deal(rows: list[Row], split: str, unit: str) -> list[Row]:
    """Return a split's share of a corpus without splits: 80% train, 10% validation, 10% test, by a hash of a column.

    Rows of equal value in the column, `unit`, fall into the same split, in every run.
    """
    return [row for row in rows if split_of_text(_text(row[unit])) == split]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value))
