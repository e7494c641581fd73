"""A rollout that several processes wrote, as if one had written it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SegmentStart = tuple[int, int, np.ndarray, int]  # row, step, context, response length


class RankRecording(NamedTuple):
    """What a `SequenceRolloutBuffer` recorded in S steps of E rows, before rewards are shaped.

    Attributes:
        columns: Actions, rewards, starts, values, log-probabilities and whether the row was live, shape (S, E) each.
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
        used = self.columns[-1].any(0)
        number = np.cumsum(used) - 1
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
        replies |= {row + offset: found for row, found in part.replies.items()}
        offset += len(part.ended)
    columns = [np.concatenate(column, axis=1) for column in zip(*(_longer(part, steps) for part in parts), strict=True)]
    kept = [part.kept for part in parts if part.kept is not None]
    ended = np.concatenate([part.ended & (len(part.columns[0]) == steps) for part in parts])
    return RankRecording(columns, ended, openings, replies, np.concatenate(kept) if kept else None)


def _longer(part: RankRecording, steps: int) -> list[np.ndarray]:
    """Return the columns with idle steps up to `steps`; the first of them tells, as always, which texts ended before it."""
    more = steps - len(part.columns[0])
    if not more:
        return part.columns
    longer = [np.concatenate([column, np.zeros((more, column.shape[1]), column.dtype)]) for column in part.columns]
    longer[2][-more] = part.ended
    return longer
