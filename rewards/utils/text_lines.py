"""Text files with one item a line: word lists, reference corpora."""

from __future__ import annotations

from pathlib import Path


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file, stripped, without the blank ones.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8, or holds no line.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    if not any(lines):
        raise ValueError(f"{path} holds no lines: write one item a line")
    return [line for line in lines if line]
