"""Reward models that are rules: sentiment lexicon, length, keywords, pattern.  None of them needs torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from textrl_env.episode import Episode


class _Rule:
    """A rule never changes, so a copy is the rule itself; gymnasium deep-copies the arguments of every `make`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class VaderReward(_Rule):
    """Sentiment of the response by VADER's lexicon and rules (Hutto and Gilbert 2014).

    The score is the `compound` value, in [-1, 1]; an empty response scores 0.  The lexicon has blind spots that an
    agent finds ("friend friend friend" is very positive): that makes it a good lesson in reward hacking.
    """

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the compound sentiment of each response, in [-1, 1]."""
        return [float(self._analyzer.polarity_scores(e.response)["compound"]) for e in episodes]

    @cached_property
    def _analyzer(self) -> Any:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon: pay at first use

        return SentimentIntensityAnalyzer()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the lexicon is read again rather than pickled

    def __repr__(self) -> str:
        return "VaderReward()"


class LengthReward(_Rule):
    """How close the response is to a target length.

    With n the number of response tokens (the end-of-text token left out), or of words where an episode has no ids:
    `score = max(0, 1 - |n - target| / target)`: 1 at the target, falling in a straight line to 0 at length 0 and at
    twice the target.

    Args:
        target: Wanted number of tokens, at least 1.  24 is about the length of a one-sentence review.

    Raises:
        TypeError: `target` is not a whole number.
        ValueError: `target` is below 1.
    """

    def __init__(self, target: int = 24) -> None:
        if isinstance(target, bool) or not isinstance(target, int):
            raise TypeError(f"target={target!r} is a {type(target).__name__}: give a whole number of tokens")
        if target < 1:
            raise ValueError(f"target={target} must be at least 1 token")
        self.target = target

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the closeness of each length to the target, in [0, 1]."""
        return [max(0.0, 1.0 - abs(_length(e) - self.target) / self.target) for e in episodes]

    def __repr__(self) -> str:
        return f"LengthReward(target={self.target})"


class KeywordReward(_Rule):
    """Share of the keywords that the response holds, each once or more.

    Keywords are matched as whole words and without regard to case.  Repeating one earns nothing.

    Args:
        keywords: Words or phrases, at least one.

    Raises:
        TypeError: `keywords` is one string instead of a list, or holds something else than strings.
        ValueError: It is empty or holds a blank keyword.
    """

    def __init__(self, keywords: Sequence[str]) -> None:
        keywords = keywords if isinstance(keywords, str) else tuple(keywords)
        if isinstance(keywords, str) or not all(isinstance(word, str) for word in keywords):
            raise TypeError(f"keywords={keywords!r}: give a list of strings, such as ['plot', 'cast']")
        if not keywords or not all(word.strip() for word in keywords):
            raise ValueError(f"keywords={keywords!r}: give at least one, and none of them blank")
        self.keywords = tuple(dict.fromkeys(word.strip().lower() for word in keywords))
        # \b would fail beside keywords that begin or end with a sign, such as "c++"
        self._patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in self.keywords]

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return (keywords found) / (keywords) for each response, in [0, 1]."""
        return [sum(bool(p.search(e.response)) for p in self._patterns) / len(self._patterns) for e in episodes]

    def __repr__(self) -> str:
        return f"KeywordReward({list(self.keywords)})"


class RegexReward(_Rule):
    r"""1.0 where a regular expression is found in the response, else 0.0.

    Args:
        pattern: In the syntax of Python's `re`; anchor it with `^` and `$` (or `\A`, `\Z`) to match the whole response.
        ignore_case: Whether case is disregarded.

    Raises:
        TypeError: `pattern` is not a string.
        ValueError: `pattern` does not compile.
    """

    def __init__(self, pattern: str, ignore_case: bool = False) -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"pattern={pattern!r} is a {type(pattern).__name__}: give a string")
        self._ignore_case = ignore_case
        try:
            self._pattern = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        except re.error as error:
            raise ValueError(f"pattern={pattern!r} is not a regular expression: {error}") from error

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 1.0 for each response that the pattern is found in, else 0.0."""
        return [float(self._pattern.search(e.response) is not None) for e in episodes]

    def __repr__(self) -> str:
        return f"RegexReward({self._pattern.pattern!r}{', ignore_case=True' if self._ignore_case else ''})"


def _length(episode: Episode) -> int:
    if not len(episode.response_ids):  # a text that no environment produced
        return len(episode.response.split())
    # finish_reason tells whether the last token is end-of-text; an episode does not know its id
    return len(episode.response_ids) - (episode.finish_reason == "eos")
