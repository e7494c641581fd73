"""Scores of texts that a model has read before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

_KEPT = 65_536  # texts: many rollouts, and a few tens of MB


class TextCache:
    """Scores by content, so that a text which comes again costs nothing.  The least recently seen are forgotten."""

    def __init__(self) -> None:
        self._scores: OrderedDict[Hashable, float] = OrderedDict()

    def complete(self, contents: Sequence[K], score: Callable[[list[K]], Sequence[float]]) -> list[float]:
        """Return the score of each content, in order; `score` is called with those that are new, each once.

        Args:
            contents: What the scores depend on: texts, or tuples of texts.
            score: Returns one score for each content it gets, in order.
        """
        new = [content for content in dict.fromkeys(contents) if content not in self._scores]
        if new:
            self._scores.update(zip(new, score(new), strict=True))
        scores = [self._scores[content] for content in contents]
        for content in dict.fromkeys(contents):
            self._scores.move_to_end(content)
        while len(self._scores) > _KEPT:
            self._scores.popitem(last=False)
        return scores

    def clear(self) -> None:
        """Forget everything: what the scores came from has changed."""
        self._scores.clear()
