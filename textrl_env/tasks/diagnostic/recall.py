"""`textrl/Recall-v0`: what is decided by the first word is paid after the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...prompts.prompt import Prompt
from ...task import TextTask
from ...tokenizer import WordTokenizer
from .common import FILLERS, GoldReward, draw, recipe

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

    Raises:
        ValueError: There is no such split.
    """
    length = int(size)
    tokenizer = WordTokenizer((*CUES, *FILLERS, "remember"))
    return TextTask(
        tokenizer,
        tuple(map(Prompt, draw(_prompt, split))),
        length,
        reward=GoldReward(partial(gold, length)),
        gold=partial(gold, length),
        optimum=1.0,
        recipe=recipe(partial(_corpus, length), tokenizer.vocab_size, length + 6),
    )


def gold(length: int, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return 1 for each text of `length` words that begins with the cue of its prompt, else 0."""
    words = [response.split() for response in responses]
    return np.array([float(len(w) == length and w[0] == p.split()[1]) for p, w in zip(prompts, words, strict=True)])


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(["remember", rng.choice(CUES), *rng.choice(FILLERS, 3)])


def _corpus(length: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    pairs = []
    for prompt in draw(_prompt, "train", 2000):
        words = rng.choice((*CUES, *FILLERS), length)
        if rng.random() < _KNOWN:
            words[0] = prompt.split()[1]
        pairs.append((prompt, "".join(f" {word}" for word in words)))
    return pairs
