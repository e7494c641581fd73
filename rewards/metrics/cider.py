"""CIDEr: consensus with the references, n-gram by n-gram (Vedantam et al. 2015)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_references
from textrl_env.utils.files import read_lines

from ..rules.base import Rule
from ..rules.references import references_of
from .diversity import ngrams

Gram = tuple[str, ...]
_ORDERS = range(1, 5)


class CiderReward(Rule):
    """Mean over n = 1 to 4 of the cosine of TF-IDF weighted n-gram vectors of response and reference, averaged over its references.

    Vedantam et al. 2015, equations 1 to 3, without stemming and without the factor 10 of later versions, hence in [0, 1].  Words are runs
    of letters and digits in lower case.  With I the documents of the corpus, an n-gram that stands in d of them has the IDF
    log(|I| / max(1, d)).  A text shorter than n words has cosine 0 at n, even with itself.

    Args:
        corpus: What document frequencies are counted in: texts, or the lists of references that belong together (a list is one document),
            or the path of a file with one text a line.  None takes the references of all prompts of the first task or environment that
            the reward is given to, a prompt's being one document; where there is none, those of the batch, those of equal episodes once:
            then the score of a response depends on the batch.

    Raises:
        TypeError: The corpus holds something else.
        ValueError: It has fewer than 2 documents.
    """

    def __init__(self, corpus: Sequence[str | Sequence[str]] | str | Path | None = None) -> None:
        self._source = (
            f"corpus={str(corpus)!r}" if isinstance(corpus, str | Path) else "" if corpus is None else f"<{len(corpus)} documents>"
        )
        self._frequencies: Frequencies | None = None  # of the corpus or the first task
        if corpus is not None:
            texts = read_lines(corpus) if isinstance(corpus, str | Path) else corpus
            self._frequencies = Frequencies([_document(text) for text in texts])

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Count document frequencies in the references of the prompts, if there is no corpus.

        Raises:
            ValueError: A prompt has no references, or there is one prompt only and no corpus.
        """
        check_references("cider", prompts)
        if self._frequencies is None:
            self._frequencies = Frequencies([prompt.references for prompt in prompts])

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the consensus of each response with its references, in [0, 1].

        Raises:
            ValueError: An episode has no references, or there is no corpus and all episodes have the same references.
        """
        if not episodes:
            return []
        references = [references_of(e, "cider") for e in episodes]
        known = self._frequencies or Frequencies(list(dict.fromkeys(references)))
        return [_consensus(known, e.response, texts) for e, texts in zip(episodes, references, strict=True)]

    def __repr__(self) -> str:
        return f"CiderReward({self._source})"


class Frequencies:
    """How many documents hold each n-gram.

    Args:
        documents: Lists of texts that belong together, at least 2.

    Raises:
        ValueError: There are fewer.
    """

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        if len(documents) < 2:
            raise ValueError(
                f"cider weighs n-grams by how few documents hold them, and {len(documents)} tell nothing: give corpus= with many, or a "
                "task with more prompts, whose references are the documents"
            )
        self._log_total = math.log(len(documents))
        self._counts = Counter(
            gram for texts in documents for gram in {g for text in texts for n in _ORDERS for g in ngrams(_words(text), n)}
        )

    def vector(self, text: str, n: int) -> dict[Gram, float]:
        """Return the TF-IDF weights of the n-grams of a text (equation 1)."""
        counts = Counter(ngrams(_words(text), n))
        total = counts.total()
        return {gram: count / total * (self._log_total - math.log(max(1, self._counts[gram]))) for gram, count in counts.items()}


def _consensus(known: Frequencies, response: str, references: Iterable[str]) -> float:
    """Return equation 3: the mean of equation 2 over n."""
    cosines = [_cosine(known.vector(response, n), known.vector(text, n)) for n in _ORDERS for text in references]
    return sum(cosines) / len(cosines)


def _cosine(a: dict[Gram, float], b: dict[Gram, float]) -> float:
    norms = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
    return min(1.0, sum(weight * b.get(gram, 0.0) for gram, weight in a.items()) / norms) if norms else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _document(texts: str | Sequence[str]) -> Sequence[str]:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"corpus holds {texts!r}: give texts, or lists of texts that belong together")
    return texts
