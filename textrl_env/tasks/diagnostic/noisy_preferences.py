"""`textrl/NoisyPref-v0`: the reward is fitted to comparisons, some of which are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from ...task import TextTask
from .common import FILLERS, Corpus, diagnostic_task

WORDS = tuple(f"w{i}" for i in range(24))
LENGTH = 6
COMPARISONS = 400
TEMPERATURE = 0.05  # a difference of one good word in six decides with odds of about 10 to 1


@cache
def noisypref_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    Each of 24 words has a worth between 0 and 1, and a text of six words is worth their mean.  The agent does not see that: its reward is a
    model fitted to 400 comparisons of random texts, of which `size` percent were turned round.  The noisier they are, the more words the
    model overrates, and the more an agent that trusts it is misled.

    ## Action and observation spaces
    35 tokens: the end of text, 24 words, and those of the prompts; see `TextGenerationEnv`.

    ## Rewards
    The fitted model's score, with mean 0 and standard deviation 1 on the corpus.  Gold is the true worth; the optimum is 1, the best word
    six times.

    ## References
    Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization"; the annotator is `rewards.preferences.simulated_annotators`.

    ## Version History
    * v0: first version.

    Args:
        size: Percent of comparisons turned round: `"0"`, `"20"` or `"40"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
    """
    annotator = {"temperature": TEMPERATURE, "flip": int(size) / 100}
    reward = {"name": "fitted", "task": f"noisypref-{size}", "annotator": annotator, "comparisons": COMPARISONS}
    corpus = Corpus(_respond, prompts=1000, responses=4, context=LENGTH + 6)
    return diagnostic_task((*WORDS, "about", *FILLERS), split, _prompt, gold, LENGTH, corpus, reward=reward)


def worths() -> dict[str, float]:
    """Return the worth of each word: evenly spread over [0, 1], in random order."""
    return dict(zip(WORDS, np.random.default_rng(0).permutation(np.linspace(0, 1, len(WORDS))).tolist(), strict=True))


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the sum of the words' worths over six, for each text."""
    worth = worths()
    return np.array([sum(worth.get(word, 0.0) for word in response.split()) / LENGTH for response in responses])


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(["about", *rng.choice(FILLERS, 4)])


def _respond(prompt: str, rng: np.random.Generator) -> Sequence[str]:
    return rng.choice(WORDS, LENGTH).tolist()
