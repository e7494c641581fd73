"""How much texts differ: within themselves, and from each other.

The environment scores together the texts that end at the same step.  A measure over the batch sees no others: let all texts end together
(`min_new_tokens` equal to `max_new_tokens`), or score whole batches yourself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt

from ..rules.base import Rule, checked_int
from ..utils.optional_imports import needed

Grams = Counter[tuple[str, ...]]


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Return the share of different word n-grams among all n-grams of the texts (Li et al. 2016), in [0, 1].

    The share falls as texts are added, so compare equal numbers of texts only.
    """
    grams = [gram for text in texts for gram in ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of `words`, in order."""
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


class DistinctReward(Rule):
    """Distinct-n (Li et al. 2016): the share of different word n-grams, in the response or in the batch.

    Over the batch each occurrence of an n-gram is worth 1 / (its occurrences in the batch), and a response scores the mean over its
    n-grams; weighted by their n-grams the scores average to the distinct-n of the batch.  A response shorter than n words scores 0.

    Args:
        n: Length of the n-grams.
        over: `"response"` or `"batch"`.

    Raises:
        TypeError: `n` is not a whole number.
        ValueError: `n` is below 1, or `over` is something else.
    """

    def __init__(self, n: int = 2, over: str = "response") -> None:
        if over not in ("response", "batch"):
            raise ValueError(f"over={over!r}: choose 'response' or 'batch'")
        self.n, self.over = checked_int(n, "n"), over

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the share for each response, in [0, 1]."""
        each = [Counter(ngrams(e.response.split(), self.n)) for e in episodes]
        if self.over == "response":
            return [len(grams) / grams.total() if grams else 0.0 for grams in each]
        batch = sum(each, Counter())
        return [sum(count / batch[gram] for gram, count in grams.items()) / max(grams.total(), 1) for grams in each]


class SelfBleuReward(Rule):
    """1 - sentence BLEU of each response with all others of the batch as references (Zhu et al. 2018, "Texygen"), in [0, 1].

    BLEU is sacrebleu's with effective order, see `BleuReward`.  An empty response scores 0: writing nothing is not variety.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    def __init__(self) -> None:
        self._bleu = needed("sacrebleu.metrics", "self_bleu").BLEU(effective_order=True)

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError for an environment of one row, whose texts have no others beside them."""
        if num_rows == 1:
            raise ValueError(
                "self_bleu compares the texts that end at one step, and the environment has one row: take several, or distinct"
            )

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return how little each response shares with the others, in [0, 1].

        Raises:
            ValueError: There is one episode only.
        """
        if len(episodes) == 1:
            raise ValueError(
                "self_bleu compares the responses of a batch and got one: let the texts end at the same step (min_new_tokens equal to "
                "max_new_tokens) in an environment of several rows, or take distinct"
            )
        words = [self._bleu.tokenizer(e.response.rstrip()).split() for e in episodes]
        each = [_grams(row, self._bleu.max_ngram_order) for row in words]
        ceilings = _two_highest(each)
        lengths = [len(row) for row in words]
        return [max(0.0, 1.0 - self._bleu_of(i, each[i], ceilings, lengths) / 100) if each[i] else 0.0 for i in range(len(episodes))]

    def _bleu_of(self, which: int, grams: Grams, ceilings: dict[tuple[str, ...], tuple[int, int, int]], lengths: list[int]) -> float:
        order = self._bleu.max_ngram_order
        correct, total = [0] * order, [max(0, lengths[which] - n) for n in range(order)]
        for gram, count in grams.items():
            highest, whose, second = ceilings[gram]
            correct[len(gram) - 1] += min(count, second if whose == which else highest)
        others = lengths[:which] + lengths[which + 1 :]
        closest = min(others, key=lambda length: (abs(length - lengths[which]), length))
        return float(self._bleu.compute_bleu(correct, total, lengths[which], closest, "exp", None, True).score)


def _grams(words: list[str], order: int) -> Grams:
    return Counter(gram for n in range(1, order + 1) for gram in ngrams(words, n))


def _two_highest(each: Sequence[Grams]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Return for each n-gram its highest count in a text, which text that is, and the highest count in another."""
    highest_counts: dict[Any, tuple[int, int, int]] = {}
    for which, grams in enumerate(each):
        for gram, count in grams.items():
            highest, whose, second = highest_counts.get(gram, (0, -1, 0))
            highest_counts[gram] = (count, which, highest) if count > highest else (highest, whose, max(second, count))
    return highest_counts
