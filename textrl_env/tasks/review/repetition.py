"""How often a text says the same thing again: one count, shared by the grammar and by the annotator."""

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from .lexicon import function_words


def count_repeats(tokens: Sequence[str]) -> int:
    """Count the repetitions in a text.

    The sum of three counts: adjacent duplicates ("very very"), further occurrences of words that are neither function
    words nor punctuation, and further occurrences of the same three tokens in a row. Bigrams are left out, since "it
    was" twice is good style; a loop such as "of the of the" shows in its trigrams.

    Args:
        tokens: Words and punctuation marks.

    Returns:
        0 for a text that never repeats itself; it grows without limit for one that loops.
    """
    ignored = function_words()
    adjacent = sum(first == second for first, second in itertools.pairwise(tokens))
    content = _extra(token for token in tokens if token not in ignored and token.isalnum())
    trigrams = _extra(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return adjacent + content + trigrams


def _extra(items: Iterable[Hashable]) -> int:
    counts = Counter(items)
    return counts.total() - len(counts)
