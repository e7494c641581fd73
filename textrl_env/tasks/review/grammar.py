"""Film reviews from a grammar whose sentiment, specificity, politeness and repetition are chosen first.

A review is an opening (the prompt) and a body (the continuation). The body is two clauses whose grades add up to the
review's sentiment, with courtesies, insults, echoes and a verdict. In `templates.json` ``$name`` stands for a rule or a
word category; after a name, ``~`` is the clause's signed grade (``+2``), ``!`` the opposite grade, ``^`` only the sign.
"""

import itertools
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .grammar_sampler import GRADES, Writer, fix_articles
from .lexicon import function_words, parse
from .repetition import count_repeats

Split = Literal["train", "validation", "test"]

OPENING_WORDS = range(3, 9)
REVIEW_WORDS = range(15, 31)  # opening and body, punctuation marks included
MAX_BODY_WORDS = 19  # keeps 98% of the bodies within 32 tokens

_OPENINGS = ("single", "plural", "joined", "clause")  # what the body goes on with: was, were, "and ...", a clause
_OPENING_SHARES = (0.45, 0.2, 0.2, 0.15)
_MAX_TOTAL = 2 * max(GRADES)
_GRADE_PAIRS = {
    total: [pair for pair in itertools.product(GRADES, repeat=2) if sum(pair) == total] for total in range(-_MAX_TOTAL, _MAX_TOTAL + 1)
}
_SPLIT_SEEDS = {"train": 11, "validation": 12, "test": 13}
_SPLIT_FOLDS = {"train": range(0, 8), "validation": range(8, 9), "test": range(9, 10)}
_FOLDS = 10


@dataclass(frozen=True)
class Latents:
    """What a review was meant to be.

    Attributes:
        sentiment: From -1 (both clauses scathing) to 1 (both rapturous), in steps of 1/6.
        specificity: Share of the two clauses that name people, crafts, scenes or places: 0, 0.5 or 1.
        politeness: -1 (rude), 0 or 1 (courteous).
        repetition: 0 (nothing said twice), 0.5 (a word doubled) or 1 (a clause said twice).
    """

    sentiment: float
    specificity: float
    politeness: int
    repetition: float


@dataclass(frozen=True)
class Review:
    """One generated review.

    Attributes:
        opening: The prompt, 3-8 words, neutral in sentiment.
        body: The continuation, without a leading space.
        attributes: What the review was meant to be.
        film: The invented title that the opening names; it decides the split.
    """

    opening: str
    body: str
    attributes: Latents
    film: str

    @property
    def text(self) -> str:
        """The opening and the body, joined by one space."""
        return f"{self.opening} {self.body}"


def sample_reviews(n: int, rng: np.random.Generator) -> list[Review]:
    """Draw reviews about any film.

    Args:
        n: How many. The first k reviews do not depend on n.
        rng: The only source of randomness.

    Returns:
        The reviews, in the order drawn.

    Raises:
        ValueError: If n is negative.
    """
    return _sample(n, rng, range(_FOLDS))


def split(name: Split, n: int) -> list[Review]:
    """Draw from one of three pools that share no film title, and therefore no opening. It has a seed of its own.

    Args:
        name: "train" (80% of the titles), "validation" (10%) or "test" (10%).
        n: How many. The first k reviews do not depend on n.

    Returns:
        The reviews, in the order drawn; the same on every call.

    Raises:
        ValueError: If there is no pool of that name, or n is negative.
    """
    if name not in _SPLIT_SEEDS:
        raise ValueError(f"split {name!r} does not exist: use one of {', '.join(map(repr, _SPLIT_SEEDS))}")
    return _sample(n, np.random.default_rng(_SPLIT_SEEDS[name]), _SPLIT_FOLDS[name])


def _sample(n: int, rng: np.random.Generator, folds: range) -> list[Review]:
    if n < 0:
        raise ValueError(f"n is {n}, but a number of reviews cannot be negative: ask for 0 or more")
    writer = Writer(rng)
    return [_review(writer, folds) for _ in range(n)]


def _review(writer: Writer, folds: range) -> Review:
    latents = _latents(writer)
    kind = writer.choose(_OPENINGS, _OPENING_SHARES)
    film = _film(writer, folds)
    while True:  # redraw the words, never the latents: the corpus stays balanced
        opening = fix_articles(writer.write(f"opening {kind}", film))
        body = fix_articles(_body(kind, latents, writer))
        if _fits(opening, body, latents):
            return Review(" ".join(opening), " ".join(body), latents, film)


def _fits(opening: list[str], body: list[str], latents: Latents) -> bool:
    if len(opening) not in OPENING_WORDS or len(body) > MAX_BODY_WORDS:
        return False
    return len(opening) + len(body) in REVIEW_WORDS and (latents.repetition > 0 or count_repeats(body) == 0)


def _latents(writer: Writer) -> Latents:
    sign = writer.choose((1, -1, 0), (0.42, 0.42, 0.16))
    size = writer.uniform()
    total = sign * (2 + int(5 * size)) if sign else int(3 * size) - 1  # clear: 2..6; mixed: -1, 0 or 1
    return Latents(
        sentiment=total / _MAX_TOTAL,
        specificity=writer.choose((0.0, 0.5, 1.0), (0.35, 0.35, 0.3)),
        politeness=writer.choose((-1, 0, 1), (0.27, 0.43, 0.3)),
        repetition=writer.choose((0.0, 0.5, 1.0), (0.7, 0.16, 0.14)),
    )


def _film(writer: Writer, folds: range) -> str:
    while True:
        film = " ".join(writer.write("film title"))
        if zlib.crc32(film.encode()) % _FOLDS in folds:
            return film


def _body(kind: str, latents: Latents, writer: Writer) -> list[str]:
    pairs = _GRADE_PAIRS[round(latents.sentiment * _MAX_TOTAL)]
    first, second = pairs[int(writer.uniform() * len(pairs))]
    early = latents.specificity == 1.0 or (latents.specificity == 0.5 and writer.uniform() < 0.5)
    late = latents.specificity == 1.0 or (latents.specificity == 0.5 and not early)
    before, after = _manners(latents.politeness, writer)
    glue = writer.write(("same" if first * second > 0 else "turn") + (" pause" if before else ""))
    first_words = _first_clause(kind, first, early, writer)
    second_words = _second_clause(second, late, latents, writer)
    body = [*first_words, *glue, *before, *second_words, *after]
    return [*body, *_ending(latents, MAX_BODY_WORDS - len(body), writer)]


def _first_clause(kind: str, grade: int, specific: bool, writer: Writer) -> list[str]:
    """What the opening calls for: the rest of its sentence, or a sentence of its own."""
    if kind in ("single", "plural"):
        be = "was" if kind == "single" else "were"
        lead = writer.write(f"{_detail(specific)} lead{grade:+d}")
        return [be if word == "@be" else word for word in lead]
    join = writer.write("join") if kind == "joined" else []
    return join + writer.write(f"{_detail(specific)}{grade:+d}")


def _second_clause(grade: int, specific: bool, latents: Latents, writer: Writer) -> list[str]:
    """A short clause where courtesies, insults or an echo take their share of the words."""
    length = " short" if latents.politeness or latents.repetition == 1.0 else ""
    clause = writer.write(f"{_detail(specific)}{length}{grade:+d}")
    if latents.repetition == 1.0:
        return [*clause, ",", *clause]
    return _double(clause) if latents.repetition else clause


def _detail(specific: bool) -> str:
    return "specific" if specific else "vague"


def _double(clause: list[str]) -> list[str]:
    """Say one word twice: an intensifier ("very very"), an adjective ("slow , slow"), or the last content word."""
    category = {unit.phrase: unit.category for unit in parse(clause)}
    for i, word in enumerate(clause):
        if category.get(word) == "intensifier":
            return [*clause[: i + 1], *clause[i:]]
    content = [i for i, word in enumerate(clause) if word not in function_words()]
    adjectives = [i for i in content if category.get(clause[i], "").startswith("adj")]
    last = (adjectives or content)[-1]
    return [*clause[: last + 1], ",", *clause[last:]]


def _ending(latents: Latents, room: int, writer: Writer) -> list[str]:
    """A verdict, now and then and where there is room for it, and the final mark."""
    verdict = [".", *writer.write(_verdict(latents.sentiment))]
    wanted = writer.uniform() < 0.5 and len(verdict) < room
    mark = "!" if latents.politeness < 1 and writer.uniform() < 0.15 else "."
    return [*verdict, mark] if wanted else [mark]


def _manners(politeness: int, writer: Writer) -> tuple[list[str], list[str]]:
    """What is said before the second clause and after it."""
    if politeness == 0:
        return [], []
    polite = politeness > 0
    if writer.uniform() < 0.5:
        return [*writer.write("polite" if polite else "rude"), ","], []
    return [], [",", *writer.write("polite_tail")] if polite else [".", *writer.write("rude ending")]


def _verdict(sentiment: float) -> str:
    if abs(sentiment) * _MAX_TOTAL < 2:
        return "verdict0"
    return "verdict+" if sentiment > 0 else "verdict-"
