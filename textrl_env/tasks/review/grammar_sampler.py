"""A context-free grammar that writes at random: rules from `templates.json`, words from `words.json`."""

import functools
import itertools
from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from .lexicon import templates, words

T = TypeVar("T")

GRADES = (-3, -2, -1, 1, 2, 3)

_BLOCK = 4096
_FLATTENING = 3  # the entry of rank r weighs 1 / (r + 3): Zipf's law with a flattened head, for more variety
_SPOKEN_CONSONANTS = ("uni", "use", "one", "eu")  # "a useful", not "an useful"
_SILENT_H = ("honest", "hour", "hourglass", "heiress")


class Writer:
    """Expands symbols of the grammar at random.

    Args:
        rng: The only source of randomness, advanced by whole blocks of uniforms (one call of the generator per number
            would take most of the time).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._uniforms = _stream(rng)
        self._rules = _rules()

    def uniform(self) -> float:
        """The next number, uniform in [0, 1)."""
        return next(self._uniforms)

    def choose(self, options: Sequence[T], shares: Sequence[float]) -> T:
        """Draw one option with probability in proportion to its share."""
        return _pick(options, list(itertools.accumulate(shares)), self.uniform())

    def write(self, symbol: str, film: str = "") -> list[str]:
        """Expand a rule or a word category into words.

        Args:
            symbol: The name, with its grade if the rule has one, such as "vague-2".
            film: The title that stands for ``$film``.

        Returns:
            Words and punctuation marks, with "a" before every noun (see `fix_articles`).
        """
        if symbol == "film":
            return film.split()
        out: list[str] = []
        alternatives, cumulative = self._rules[symbol]
        for part in _pick(alternatives, cumulative, self.uniform()):
            if part[0] == "$":
                out += self.write(part[1:], film)
            else:
                out.append(part)
        return out


def fix_articles(tokens: list[str]) -> list[str]:
    """The same words with "an" for "a" before a vowel."""
    following = [*tokens[1:], ""]
    pairs = zip(tokens, following, strict=True)
    return ["an" if word == "a" and _starts_with_vowel(after) else word for word, after in pairs]


def _starts_with_vowel(word: str) -> bool:
    if word in _SILENT_H:
        return True
    return word.startswith(tuple("aeiou")) and not word.startswith(_SPOKEN_CONSONANTS)


def _stream(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(_BLOCK).tolist()


def _pick(options: Sequence[T], cumulative: Sequence[float], uniform: float) -> T:
    return options[bisect(cumulative, uniform * cumulative[-1])]


Rule = tuple[list[list[str]], list[float]]  # the alternatives as words, and their cumulative weights


@functools.cache
def _rules() -> dict[str, Rule]:
    rules = {category: _zipf(entries) for category, entries in words().items()}
    for name, alternatives in templates().items():
        if not name.endswith("~"):
            rules[name] = _even(alternatives)
            continue
        for grade in GRADES:
            rules[f"{name[:-1]}{grade:+d}"] = _even([_with_grade(text, grade) for text in alternatives])
    return rules


def _with_grade(template: str, grade: int) -> str:
    """Fill in the grade marks, which follow the name of a symbol directly, as in ``$adj~``."""
    return " ".join(
        part[:-1] + {"~": f"{grade:+d}", "!": f"{-grade:+d}", "^": f"{grade:+d}"[0]}[part[-1]]
        if part[0] == "$" and part[-1] in "~!^"
        else part
        for part in template.split()
    )


def _zipf(entries: list[str]) -> Rule:
    weights = [1 / (rank + _FLATTENING) for rank in range(len(entries))]
    return [entry.split() for entry in entries], list(itertools.accumulate(weights))


def _even(alternatives: list[str]) -> Rule:
    return [text.split() for text in alternatives], [float(i + 1) for i in range(len(alternatives))]
