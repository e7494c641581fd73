"""Warnings about reward models whose first scores look like one of the usual mistakes.

`checked_scores` shows its scores to `watch`, which looks once at each model, when it has scored `EVIDENCE` texts, and calls it no further.
`rewards.check` tests more, by scoring texts of its own.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .episode import Episode

EVIDENCE = 64  # texts: by chance, the scores of so many do not correlate with their lengths beyond 0.9
MOST_CORRELATED = 0.9


class RewardWarning(UserWarning):
    """A reward model that probably does not measure what it should; each is named once."""


@dataclass
class _Seen:
    """What a model has said so far.

    Attributes:
        model: The model or function, to tell it from a later one at the same address; None from a call says that it is gone.
        scores: Its scores.
        lengths: Lengths of the responses.
        responses: Different responses, at least 2 if there were.
        done: Whether it was looked at.
    """

    model: weakref.ref[Any]
    scores: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    responses: set[str] = field(default_factory=set)
    done: bool = False


_SEEN: dict[int, _Seen] = {}  # by id: models need not be hashable


def watch(model: Any, label: object, episodes: Sequence[Episode], scores: np.ndarray) -> None:
    """Take note of scores, and warn of a constant reward or one that follows the length, once the model has scored enough texts.

    Args:
        model: The reward model, or the function in it.  Those that weak references cannot point to (`__slots__` without
            `__weakref__`) are not watched.
        label: What the warning calls it.
        episodes: What it scored.
        scores: What it gave them, shape (len(episodes),).
    """
    seen = _seen(model)
    if seen is None or seen.done:
        return
    seen.scores += scores.tolist()
    seen.lengths += map(response_length, episodes)
    if len(seen.responses) < 2:
        seen.responses.update(e.response for e in episodes)
    if len(seen.scores) < EVIDENCE:
        return
    if len(seen.responses) < 2:  # no evidence, and none to keep
        seen.scores, seen.lengths = [], []
        return
    stop_watching(model)
    warn_of(scores_flaws(np.array(seen.scores), np.array(seen.lengths)), model, label)


def stop_watching(model: Any) -> None:
    """Have `watch` look at this model no more."""
    seen = _seen(model)
    if seen is not None:
        _SEEN[id(model)] = _Seen(seen.model, done=True)


def scores_flaws(scores: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield name and message of the flaws that scores and lengths show, both of shape (n,)."""
    if np.ptp(scores) == 0:
        yield "constant", f"gave each of {len(scores)} texts {scores[0]:g}: nothing can be learned from that, be it too coarse or broken"
        return
    r = length_correlation(scores, lengths)
    if abs(r) > MOST_CORRELATED:
        yield (
            "length",
            f"follows the length of the response (correlation {r:.2f} over {len(scores)} texts): a policy will learn to write "
            f"{'long' if r > 0 else 'short'} texts and little else",
        )


def length_correlation(scores: np.ndarray, lengths: np.ndarray) -> float:
    """Return Pearson's correlation of scores and lengths, both of shape (n,); 0 where either is constant."""
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return 0.0
    return float(np.corrcoef(scores, lengths)[0, 1])


def response_length(episode: Episode) -> int:
    """Return the response's length in tokens, or in characters where it has no ids."""
    return len(episode.response_ids) or len(episode.response)


def warn_of(flaws: Iterable[tuple[str, str]], model: Any, label: object) -> None:
    """Warn of flaws, but for those that `model` has by design: its attribute `by_design` names them."""
    for name, message in flaws:
        meant = tuple(getattr(model, "by_design", ()))
        if name not in meant:
            warnings.warn(f"{label} {message}; if that is meant, give it by_design = {(*meant, name)}", RewardWarning, stacklevel=4)


def _seen(model: Any) -> _Seen | None:
    key = id(model)
    seen = _SEEN.get(key)
    if seen is None or seen.model() is not model:
        try:
            seen = _SEEN[key] = _Seen(weakref.ref(model, partial(_forget, _SEEN, key)))
        except TypeError:
            return None
    return seen


def _forget(seen: dict[int, _Seen], key: int, _: Any) -> None:
    seen.pop(key, None)
