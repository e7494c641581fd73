"""Columns that have other names in a file."""

from __future__ import annotations


def columns_of(text: str | None) -> dict[str, str] | None:
    """Return what `--columns` names, as in `prompt=instruction,chosen=output_1`: our name of a column, and the file's.

    Raises:
        ValueError: It is not of this form, or names a column twice.
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    columns = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    if len(columns) < len(pairs) or not all(ours and theirs for ours, theirs in columns.items()):
        raise ValueError(f"--columns {text}: write prompt=instruction,chosen=output_1: the name here, then the file's, each name once")
    return columns
