"""`textrl/Modes-v0`: many answers are equally good, and the measure counts how many of them an agent writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from math import isqrt

import numpy as np

from ...task import TextTask
from .common import FILLERS, Corpus, diagnostic_task

KINDS = ("meal", "song")
FIRST = tuple(f"a{i}" for i in range(16))
SECOND = tuple(f"b{i}" for i in range(16))
_KNOWN = 0.4  # share of the corpus that is drawn from the good answers


@cache
def modes_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt asks for one of two kinds of thing, `name a meal tin oak`; of the 256 answers of two words, `size` are good for each kind.
    The reward pays any good answer alike, and so says nothing against writing the same one every time.  The task's own measure does.

    ## Action and observation spaces
    45 tokens: the end of text, 16 first and 16 second words, and those of the prompts; see `TextGenerationEnv`.

    ## Rewards
    1 for a good answer, else 0.  The measure of a set of texts is, averaged over the kinds, the share of good answers times
    exp(H) / `size`, where H is the entropy of the good answers in nats with Miller and Madow's correction: the effective number of
    different good answers, as a share.  The optimum is 1; a policy that always writes the same good answer has 1 / `size`.

    ## References
    Kirk et al. 2024, "Understanding the Effects of RLHF on LLM Generalisation and Diversity"; Miller 1955 for the correction.

    ## Version History
    * v0: first version.

    Args:
        size: Good answers: `"4"`, `"16"` or `"64"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
    """
    good = int(size)
    words = (*FIRST, *SECOND, "name", "a", *KINDS, *FILLERS)
    corpus = Corpus(partial(_respond, good), prompts=1000, responses=4, context=10)
    return diagnostic_task(words, split, _prompt, partial(gold, good), 2, corpus, measure=partial(measure, good))


@cache
def good_answers(kind: str, size: int) -> list[str]:
    """Return the good answers for a kind: all pairs of its good first and second words."""
    rng, side = np.random.default_rng([size, KINDS.index(kind)]), isqrt(size)
    first, second = (np.array(words)[rng.permutation(len(words))[:side]] for words in (FIRST, SECOND))
    return [f"{a} {b}" for a in first for b in second]


def gold(size: int, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 1 for each good answer, else 0."""
    good = {kind: set(good_answers(kind, size)) for kind in KINDS}
    return np.array([float(" ".join(r.split()) in good[p.split()[2]]) for p, r in zip(prompts, responses, strict=True)])


def measure(size: int, prompts: Sequence[str], responses: Sequence[str]) -> float:
    """Return the share of good answers times the share of them that is in use, averaged over the kinds that were asked for."""
    good = gold(size, prompts, responses) == 1
    kinds = np.array([p.split()[2] for p in prompts])
    shares = []
    for kind in np.unique(kinds):
        own = kinds == kind
        counts = Counter(responses[int(i)].strip() for i in np.flatnonzero(own & good))
        effective = np.exp(min(entropy(list(counts.values())), np.log(size))) if counts else 0.0
        shares.append(good[own].mean() * effective / size)
    return float(np.mean(shares))


def entropy(counts: Sequence[int]) -> float:
    """Return the entropy of what was counted, in nats, with Miller and Madow's correction (K - 1) / 2n for K kinds of n things."""
    share = np.array(counts) / np.sum(counts)
    return float(-(share * np.log(share)).sum() + (len(counts) - 1) / (2 * np.sum(counts)))


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(["name", "a", rng.choice(KINDS), *rng.choice(FILLERS, 3)])


def _respond(size: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    if rng.random() < _KNOWN:
        return [str(rng.choice(good_answers(prompt.split()[2], size)))]
    return [str(rng.choice(FIRST)), str(rng.choice(SECOND))]
