"""A rollout that several processes wrote, as if one had written it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SegmentStart = tuple[int, int, np.ndarray, int, int]  # row, step, context, response length, index of the prompt


class RankRecording(NamedTuple):
    """What a `SequenceRolloutBuffer` recorded in L steps of E rows, before rewards are shaped.

    Attributes:
        columns: Actions, rewards, starts, values, log-probabilities and whether the row was live, shape (L, E) each.
        ended: Whether each row's text ended at the last step, shape (E,).
        openings: Where texts began, in their order.
        replies: By row: the environment's tokens, and before which step they came.
        kept: Packed kept sets of the tokens, text after text, shape (N, ceil(V / 8)); None: everything.
    """

    columns: list[np.ndarray]
    ended: np.ndarray
    openings: list[SegmentStart]
    replies: dict[int, list[tuple[int, np.ndarray]]]
    kept: np.ndarray | None

    def without_idle_rows(self) -> RankRecording:
        """Leave out the rows in which nothing was written."""
        used = self.columns[-1].any(0)  # (E,)
        number = np.cumsum(used) - 1  # (E,): the row's new number
        return RankRecording(
            [column[:, used] for column in self.columns],
            self.ended[used],
            [(int(number[row]), *rest) for row, *rest in self.openings],  # type: ignore[misc]
            {int(number[row]): replies for row, replies in self.replies.items()},
            self.kept,
        )


def merge(parts: Sequence[RankRecording]) -> RankRecording:
    """Lay recordings of whole texts side by side: rows and texts of the first part, then those of the next."""
    steps = max(len(part.columns[0]) for part in parts)
    openings: list[SegmentStart] = []
    replies: dict[int, list[tuple[int, np.ndarray]]] = {}
    offset = 0
    for part in parts:
        openings += [(row + offset, *rest) for row, *rest in part.openings]  # type: ignore[misc]
        replies |= {row + offset: of_row for row, of_row in part.replies.items()}
        offset += len(part.ended)
    columns = [np.concatenate(column, axis=1) for column in zip(*(_padded(part, steps) for part in parts), strict=True)]  # (L, E)
    kept = [part.kept for part in parts if part.kept is not None]
    ended = np.concatenate([part.ended & (len(part.columns[0]) == steps) for part in parts])
    return RankRecording(columns, ended, openings, replies, np.concatenate(kept) if kept else None)


def _padded(part: RankRecording, steps: int) -> list[np.ndarray]:
    """Return the columns with idle steps at their end, `steps` in all."""
    more = steps - len(part.columns[0])
    if not more:
        return part.columns
    padded = [np.concatenate([column, np.zeros((more, column.shape[1]), column.dtype)]) for column in part.columns]  # (L, E) each
    padded[2][-more] = part.ended  # the starts of the first idle step say, as SB3's do, which texts ended before it
    return padded
