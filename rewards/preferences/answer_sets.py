"""Prompts with right and wrong answers, as RewardBench 2 asks reward models: a right one is to score above all wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textrl_env.utils.row_files import RowError
from textrl_env.utils.tables import table_rows

from .row_formats import is_answer_set, preferences_of

_COUNTS = {"num_correct": "chosen", "num_incorrect": "rejected"}


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """A prompt, and which of its answers are right.

    Attributes:
        prompt: What is answered.
        chosen: The right answers, at least one.
        rejected: The wrong ones, at least one.
        id: Its name in the file; in the subset Ties of RewardBench 2, `ref:N` and `tied:N` belong together.
        columns: Further columns, such as `subset`.
    """

    __module__ = "rewards"

    prompt: str
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    id: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """All of them, the right ones first."""
        return (*self.chosen, *self.rejected)


def read_answer_sets(path: str | Path, columns: Mapping[str, str] | None = None) -> list[AnswerSet]:
    """Read a file in RewardBench 2's form, or comparisons, each of which is a set of two; ties among these are left out.

    RewardBench 2 (Malik et al. 2025) has a row for each prompt: `id`, `prompt`, `chosen` and `rejected` (lists of texts), `num_correct`,
    `num_incorrect`, `total_completions`, `models`, `subset`, `additional_metadata`.  Only `prompt`, `chosen` and `rejected` are needed.

    Args:
        path: JSON Lines, CSV or Parquet, see `read_preferences`, which says too how comparisons may be given.
        columns: The file's own names of columns: `{"prompt": "question"}`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row cannot be read (the message names its line), or there is none.
    """
    rows = table_rows(path, columns)
    found = [made for index, row in enumerate(rows.map(dict)) for made in _sets(row, rows.where(index))]
    if not found:
        raise ValueError(f"{path} holds no right and wrong answers: write a JSON object with prompt, chosen and rejected (lists) a line")
    return found


def _sets(row: dict[str, Any], where: str) -> Iterator[AnswerSet]:
    name = None if row.get("id") is None else str(row["id"])
    try:
        if is_answer_set(row):
            _check(row)
            further = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected", "id")}
            yield AnswerSet(row["prompt"], tuple(row["chosen"]), tuple(row["rejected"]), name, further)
            return
        for pair in preferences_of(row):
            if not pair.is_tie:
                yield AnswerSet(pair.prompt, (pair.chosen,), (pair.rejected,), name, pair.columns)
    except RowError as error:
        raise ValueError(f"{where}: {error}") from error


def _check(row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("prompt"), str):
        raise RowError(f"'prompt' is {row.get('prompt')!r:.100}: right and wrong answers need the text that they answer")
    for side in ("chosen", "rejected"):
        if not row[side]:
            raise RowError(f"{side!r} is empty: there must be an answer on either side")
    counts = {**{name: len(row[side]) for name, side in _COUNTS.items()}, "total_completions": len(row["chosen"]) + len(row["rejected"])}
    for name, number in counts.items():
        if row.get(name) not in (None, number):
            raise RowError(f"{name!r} is {row[name]}, and the row has {number}: is it whole?")
