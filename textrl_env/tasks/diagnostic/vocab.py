"""`textrl/Vocab-v0`: one good word at each position, among many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...task import TextTask
from .common import FILLERS, Corpus, diagnostic_task

DOORS = ("red", "blue", "green", "white")
LENGTH = 4
_KNOWN = 0.1  # chance of the good word at each position of the corpus


@cache
def vocab_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt names a door, `door red tin oak sea`, and each door has one good word at each of four positions, among `size` words.  The
    base policy writes it one time in ten and otherwise any word: how do exploration and credit scale with the number of actions?

    ## Action and observation spaces
    `size` + 14 tokens: the end of text, the words `w0`, `w1`, ..., and those of the prompts; see `TextGenerationEnv`.

    ## Rewards
    The share of the four positions that hold the good word; 0 for a text of another length.  The optimum is 1.

    ## References
    Dulac-Arnold et al. 2015, "Deep Reinforcement Learning in Large Discrete Action Spaces".

    ## Version History
    * v0: first version.

    Args:
        size: Words to choose from: `"64"`, `"512"` or `"4096"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
    """
    number = int(size)
    words = (*(f"w{i}" for i in range(number)), "door", *DOORS, *FILLERS)
    corpus = Corpus(partial(_respond, number), prompts=1000, responses=4, context=LENGTH + 6)
    return diagnostic_task(words, split, _prompt, partial(gold, number), LENGTH, corpus)


@cache
def good_words(words: int) -> dict[str, list[str]]:
    """Return the good words of each door."""
    drawn = np.random.default_rng(words).choice(words, (len(DOORS), LENGTH), replace=False)
    return {door: [f"w{i}" for i in row] for door, row in zip(DOORS, drawn, strict=True)}


def gold(words: int, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the share of good words in each text of four words; 0 for others."""
    good = good_words(words)
    rows = [(good[p.split()[1]], r.split()) for p, r in zip(prompts, responses, strict=True)]
    return np.array([np.mean([a == b for a, b in zip(g, w, strict=True)]) if len(w) == LENGTH else 0.0 for g, w in rows])


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(["door", rng.choice(DOORS), *rng.choice(FILLERS, 3)])


def _respond(words: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    drawn = [f"w{i}" for i in rng.integers(words, size=LENGTH)]
    known = rng.random(LENGTH) < _KNOWN
    return [g if k else w for g, k, w in zip(good_words(words)[prompt.split()[1]], known, drawn, strict=True)]
