"""What studies share: their settings, and calls that run side by side in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.progress import bar


@dataclass(frozen=True)
class Study:
    """Settings of a study of `textrl/Review-v0`.

    Attributes:
        seeds: Runs of each arm or algorithm; each seed has its own comparisons and reward model.
        tokens: Tokens that a policy writes while it is trained.
        texts: Texts of each policy that are judged.
        processes: Runs side by side, one thread each.
        markdown: A file for the table; none without.
        figure: A file for the plot; none without.
    """

    seeds: int = 3
    tokens: int = 50_000
    texts: int = 500
    processes: int = 2
    markdown: Path | None = None
    figure: Path | None = None


def side_by_side(pool: Executor, title: str, calls: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """Make all calls in the pool, and yield what each returns as soon as it is there; after an error no further call begins.

    Args:
        pool: Where they run.
        title: Of the progress bar.
        calls: Functions with their arguments bound by `functools.partial`, so that they can be sent to another process.
    """
    with bar(title, len(calls), True) as shown:
        try:
            for done in as_completed([pool.submit(call) for call in calls]):
                yield done.result()
                shown.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
