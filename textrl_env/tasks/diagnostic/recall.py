"""`textrl/Recall-v0`: the first word decides the reward, which comes after the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...task import TextTask
from .common import FILLERS, Corpus, diagnostic_task

CUES = ("sun", "moon", "star", "rain", "snow", "wind", "fog", "hail")
_KNOWN = 0.3  # share of the corpus whose first word is the cue


@cache
def recall_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt names a cue among other words: `remember rain tin oak sea`.  The agent writes `size` words.  Its text scores 1 if the
    first of them is the cue, else 0: the reward comes `size` - 1 tokens after the only choice that matters, and all other choices are
    noise that an agent must not learn from.  The base policy names the cue in about three texts out of ten.

    ## Action and observation spaces
    17 tokens: the end of text, 8 cues, 8 fillers and `remember`; see `TextGenerationEnv`.  A text ends with its last word; one that ends
    early scores 0.

    ## Rewards
    0 or 1 for the whole text, at its end.  The optimum is 1.

    ## References
    The umbrella environments of bsuite: Osband et al. 2020, "Behaviour Suite for Reinforcement Learning".

    ## Version History
    * v0: first version.

    Args:
        size: Words to write: `"4"`, `"16"` or `"64"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
    """
    length = int(size)
    corpus = Corpus(partial(_respond, length), prompts=2000, context=length + 6)
    return diagnostic_task((*CUES, *FILLERS, "remember"), split, _prompt, partial(gold, length), length, corpus)


def gold(length: int, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 1 for each text of `length` words that begins with the cue of its prompt, else 0."""
    words = [response.split() for response in responses]
    return np.array([float(len(w) == length and w[0] == p.split()[1]) for p, w in zip(prompts, words, strict=True)])


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(["remember", rng.choice(CUES), *rng.choice(FILLERS, 3)])


def _respond(length: int, prompt: str, rng: np.random.Generator) -> Sequence[str]:
    words = rng.choice((*CUES, *FILLERS), length)
    if rng.random() < _KNOWN:
        words[0] = prompt.split()[1]
    return words.tolist()
