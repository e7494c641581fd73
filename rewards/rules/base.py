"""What all rules share."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from textrl_env.episode import Episode

from ..utils.base_reward import BaseReward


class Rule(BaseReward):
    """A reward model that follows a rule and never changes.

    Attributes:
        by_design: What nobody need be warned of, see `rewards.check`; a rule reads no prompt.
    """

    by_design: Collection[str] = ("prompt",)


def length_of(episode: Episode) -> int:
    """Return the number of response tokens without end-of-text, or of words where an episode has no ids."""
    return len(units(episode))


def units(episode: Episode) -> list[Any]:
    """Return the ids of the response without end-of-text, or its words where an episode has no ids."""
    if not len(episode.response_ids):  # a text that no environment produced
        return episode.response.split()
    # finish_reason tells whether the last token is end-of-text; an episode does not know its id
    return episode.response_ids[: len(episode.response_ids) - (episode.finish_reason == "eos")].tolist()


def listed(words: Sequence[str], name: str, example: str) -> tuple[str, ...]:
    """Return `words` stripped and in lower case, each once.

    Raises:
        TypeError: They are one string instead of a list, or something else than strings.
        ValueError: There are none, or a blank one.
    """
    words = words if isinstance(words, str) else tuple(words)
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"{name}={words!r}: give a list of strings, such as {example}")
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"{name}={words!r}: give at least one, and none of them blank")
    return tuple(dict.fromkeys(word.strip().lower() for word in words))


def whole_word(word: str) -> re.Pattern[str]:
    """Return a pattern that finds `word` as a whole word or phrase, in any case."""
    # \b would fail beside words that begin or end with a sign, such as "c++"
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def checked_int(value: int, name: str, least: int = 1) -> int:
    """Return `value`.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a whole number")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
    return value
