"""How far a text reads like a review: the share of its word-class trigrams that the grammar produces."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .grammar import sample_reviews
from .lexicon import Unit, parse

FULL_LENGTH = 6  # units; a shorter text is a fragment and gets credit in proportion
TRUNCATION = 0.15  # taken off a text that stops without a final mark
FINAL_MARKS = frozenset(".!?")

_REFERENCE_SIZE, _REFERENCE_SEED = 8_000, 7
_END = "<end>"


def coherence(prompt: Sequence[Unit], response: Sequence[Unit]) -> float:
    """Share of familiar word order in a response, less for fragments and for texts that stop in mid-sentence.

    Args:
        prompt: The prompt, parsed; its last two units are the context of the response's first.
        response: The response, parsed.

    Returns:
        From 0 (nothing like a review, or empty) to 1 (every three classes in a row occur in the grammar's own reviews).
    """
    if not response:
        return 0.0
    known = _known_trigrams()
    share = sum(trigram in known for trigram in _trigrams(prompt, response)) / (len(response) + 1)
    truncated = response[-1].phrase not in FINAL_MARKS
    return max(0.0, share * min(1.0, len(response) / FULL_LENGTH) - TRUNCATION * truncated)


def _trigrams(prompt: Sequence[Unit], response: Sequence[Unit]) -> Iterator[tuple[str, str, str]]:
    """One trigram for each unit of the response and one for its end."""
    context = ["", "", *map(_word_class, prompt)][-2:]
    classes = [*context, *map(_word_class, response), _END]
    return zip(classes, itertools.islice(classes, 1, None), itertools.islice(classes, 2, None), strict=False)


def _word_class(unit: Unit) -> str:
    """The category without sign and grade: word order says nothing about praise or blame."""
    return unit.category.rstrip("+-0123456789")


@functools.cache
def _known_trigrams() -> frozenset[tuple[str, str, str]]:
    reviews = sample_reviews(_REFERENCE_SIZE, np.random.default_rng(_REFERENCE_SEED))
    parsed = ((parse(review.opening.split()), parse(review.body.split())) for review in reviews)
    return frozenset(trigram for prompt, response in parsed for trigram in _trigrams(prompt, response))
