"""The word lists of the review task, and the reading of a text as a sequence of lexicon entries.

`words.json` maps a category to its entries (words or fixed phrases), the commonest first. A category that ends in a
sign, with or without a grade, is polar: ``adj-3`` holds the harshest adjectives, ``noun+`` the nouns of praise.
"""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent
_TOKEN = re.compile(r"\w+|[^\w\s]")

# Polarity of a category: its sign times the weight of its grade. Categories without a grade count as "moderate".
GRADES = {"1": 0.4, "2": 0.75, "3": 1.1, "": 0.6}
_POLAR = re.compile(r"^[a-z]+([+-])([123]?)$")


class Unit(NamedTuple):
    """One lexicon entry found in a text, or one word that no category holds (its category is then the word itself)."""

    category: str
    phrase: str


@functools.cache
def words() -> dict[str, list[str]]:
    """The lexicon: category -> entries, commonest first. Callers must not change it."""
    return _load("words.json")


@functools.cache
def templates() -> dict[str, list[str]]:
    """The grammar's templates: rule -> alternatives, equally likely. Callers must not change it."""
    return _load("templates.json")


@functools.cache
def polarity() -> dict[str, float]:
    """Polarity of every polar category, in [-1.1, 1.1]; a category that is not polar is absent."""
    return {category: float(match[1] + "1") * GRADES[match[2]] for category in words() if (match := _POLAR.match(category))}


@functools.cache
def function_words() -> frozenset[str]:
    """Words that any fluent text repeats."""
    return frozenset(words()["function"])


def split_words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks of any text, however it is spaced."""
    return _TOKEN.findall(text.lower())


def parse(tokens: list[str]) -> list[Unit]:
    """Cut a text into lexicon entries, the longest match first.

    Args:
        tokens: The text as `split_words` gives it.

    Returns:
        The entries in order; together they cover every token once.
    """
    index = _phrase_index()
    units, start = [], 0
    while start < len(tokens):
        word = tokens[start]
        for length, entries in index.get(word, ()):
            phrase = word if length == 1 else " ".join(tokens[start : start + length])
            if phrase in entries:
                units.append(entries[phrase])
                break
        else:
            length = 1
            units.append(Unit(word, word))
        start += length
    return units


@functools.cache
def _phrase_index() -> dict[str, list[tuple[int, dict[str, Unit]]]]:
    """First word -> the entries that start with it, by length in words, longest first."""
    index: dict[str, dict[int, dict[str, Unit]]] = {}
    for category, entries in words().items():
        if category == "function":  # each function word is a class of its own: word order depends on which it is
            continue
        for phrase in entries:
            parts = phrase.split()
            by_length = index.setdefault(parts[0], {})
            by_length.setdefault(len(parts), {}).setdefault(phrase, Unit(category, phrase))
    return {first: sorted(by_length.items(), reverse=True) for first, by_length in index.items()}


def _load(name: str) -> dict[str, list[str]]:
    return json.loads((_FOLDER / name).read_text(encoding="utf-8"))
