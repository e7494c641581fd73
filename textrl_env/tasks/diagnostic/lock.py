"""`textrl/Lock-v0`: a sparse reward, paid for the whole code only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...task import TextTask
from .common import Corpus, diagnostic_task

DIGITS = tuple("0123456789")
_NOISE = 0.3  # share of the corpus's digits that are drawn anew


@cache
def lock_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt is a code, `open 3 1 4 2`; the response must repeat it.  Only the whole code is paid.  The base policy copies a digit
    rightly about seven times in ten, so a code of `size` digits opens the lock with a chance that falls exponentially: about 0.2 with
    4 digits, 0.04 with 8, 0.01 with 12.

    ## Action and observation spaces
    12 tokens: the end of text, 10 digits, `open`; see `TextGenerationEnv`.

    ## Rewards
    1 for the code and nothing else, else 0.  The optimum is 1.

    ## References
    The combination lock, as in Misra et al. 2020, "Kinematic State Abstraction and Provably Efficient Rich-Observation RL".

    ## Version History
    * v0: first version.

    Args:
        size: Digits: `"4"`, `"8"` or `"12"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a code.
    """
    length = int(size)
    corpus = Corpus(partial(_respond, length), prompts=4000, context=2 * length + 2, steps=500)
    return diagnostic_task((*DIGITS, "open"), split, partial(_prompt, length), gold, length, corpus)


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 1 for each response that is the code of its prompt, else 0."""
    return np.array([float(r.split() == p.split()[1:]) for p, r in zip(prompts, responses, strict=True)])


def _prompt(length: int, rng: np.random.Generator) -> str:
    return " ".join(["open", *rng.choice(DIGITS, length)])


def _respond(length: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    return np.where(rng.random(length) < _NOISE, rng.choice(DIGITS, length), np.array(prompt.split()[1:])).tolist()
