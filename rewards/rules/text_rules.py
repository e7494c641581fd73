"""Reward models that are rules: sentiment lexicon, length, repetition, words wanted and unwanted, pattern; none needs torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from textrl_env.episode import Episode
from textrl_env.utils.files import read_lines

from ..utils.optional_imports import needed
from .base import Rule, checked_int, length_of, listed, units, whole_word

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


class VaderReward(Rule):
    """Sentiment of the response by VADER's lexicon and rules (Hutto and Gilbert 2014).

    The score is the `compound` value, in [-1, 1]; an empty response scores 0.  The lexicon has blind spots that an
    agent finds ("friend friend friend" is very positive): that makes it a good lesson in reward hacking.
    """

    __module__ = "rewards"

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


class LengthReward(Rule):
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

    __module__ = "rewards"

    by_design = ("prompt", "length")

    def __init__(self, target: int = 24) -> None:
        self.target = checked_int(target, "target")

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the closeness of each length to the target, in [0, 1]."""
        return [max(0.0, 1.0 - abs(length_of(e) - self.target) / self.target) for e in episodes]

    def __repr__(self) -> str:
        return f"LengthReward(target={self.target})"


class RepetitionReward(Rule):
    """Share of the response's n-grams that did not occur in it before: 1 without any repetition, towards 0 for a loop.

    It is 1 - seq-rep-n of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", section 6.  The n-grams are of
    tokens (the end-of-text token left out), or of words where an episode has no ids; a text shorter than n scores 1.

    Args:
        n: Length of the n-grams.

    Raises:
        TypeError: `n` is not a whole number.
        ValueError: `n` is below 1.
    """

    __module__ = "rewards"

    by_design = ("prompt", "constant")  # a guard that never strikes is no flaw

    def __init__(self, n: int = 4) -> None:
        self.n = checked_int(n, "n")

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the share of new n-grams of each response, in (0, 1]."""
        return [self._score(units(e)) for e in episodes]

    def _score(self, parts: list[Any]) -> float:
        grams = [tuple(parts[i : i + self.n]) for i in range(len(parts) - self.n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0

    def __repr__(self) -> str:
        return f"RepetitionReward(n={self.n})"


class KeywordReward(Rule):
    """Share of the keywords that the response holds, each once or more.

    Keywords are matched as whole words and without regard to case.  Repeating one earns nothing.

    Args:
        keywords: Words or phrases, at least one.

    Raises:
        TypeError: `keywords` is one string instead of a list, or holds something else than strings.
        ValueError: It is empty or holds a blank keyword.
    """

    __module__ = "rewards"

    def __init__(self, keywords: Sequence[str]) -> None:
        self.keywords = listed(keywords, "keywords", "['plot', 'cast']")
        self._patterns = [whole_word(word) for word in self.keywords]

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return (keywords found) / (keywords) for each response, in [0, 1]."""
        return [sum(bool(p.search(e.response)) for p in self._patterns) / len(self._patterns) for e in episodes]

    def __repr__(self) -> str:
        return f"KeywordReward({list(self.keywords)})"


class ForbiddenReward(Rule):
    """1.0 where the response holds none of the forbidden words, else 0.0.

    Words are matched whole and without regard to case.

    Args:
        words: Words or phrases, at least one.

    Raises:
        TypeError: `words` is one string instead of a list, or holds something else than strings.
        ValueError: It is empty or holds a blank word.
    """

    __module__ = "rewards"

    by_design = ("prompt", "constant")  # as of repetition

    def __init__(self, words: Sequence[str]) -> None:
        self.words = listed(words, "words", "['awful', 'boring']")
        self._patterns = [whole_word(word) for word in self.words]

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 1.0 for each response that is free of them, else 0.0."""
        return [float(not any(p.search(e.response) for p in self._patterns)) for e in episodes]

    def __repr__(self) -> str:
        return f"ForbiddenReward({list(self.words)})"


class KnownWordsReward(Rule):
    """Share of the response's words that are known, in any case: a guard against invented words.

    A word is a run of letters, with apostrophes inside; "film's" is known if "film" is.  A response without words scores 0.

    Args:
        words: The known words, or the path of a file (UTF-8) with one a line; None takes pyspellchecker's
            160,000 English words, in American spelling.

    Raises:
        TypeError: `words` holds something else than strings.
        ValueError: There are none, or a blank one.
        ImportError: `words` is None and pyspellchecker is not installed.
    """

    __module__ = "rewards"

    def __init__(self, words: Sequence[str] | str | Path | None = None) -> None:
        self._source = f"words={str(words)!r}" if isinstance(words, str | Path) else "" if words is None else f"<{len(words)} words>"
        if words is None:
            self._known = _english()
        else:
            known = read_lines(words) if isinstance(words, str | Path) else words
            self._known = frozenset(word.replace("\u2019", "'") for word in listed(known, "words", "['the', 'plot']"))

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return (known words) / (words) for each response, in [0, 1]."""
        return [self._score([word.lower().replace("\u2019", "'") for word in _WORD.findall(e.response)]) for e in episodes]

    def _score(self, words: list[str]) -> float:
        known = sum(word in self._known or word.removesuffix("'s") in self._known for word in words)
        return known / len(words) if words else 0.0

    def __repr__(self) -> str:
        return f"KnownWordsReward({self._source})"


class RegexReward(Rule):
    r"""1.0 where a regular expression is found in the response, else 0.0.

    Args:
        pattern: In the syntax of Python's `re`; anchor it with `^` and `$` (or `\A`, `\Z`) to match the whole response.
        ignore_case: Whether case is disregarded.

    Raises:
        TypeError: `pattern` is not a string.
        ValueError: `pattern` does not compile.
    """

    __module__ = "rewards"

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


def _english() -> frozenset[str]:
    checker = needed("spellchecker", "known_words without words=").SpellChecker(language="en")
    return frozenset(checker.word_frequency.words())
