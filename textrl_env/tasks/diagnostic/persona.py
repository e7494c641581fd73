"""`textrl/Persona-v0`: several groups of readers, and the measure is the lowest mean of a group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ...prompts.prompt import Prompt
from ...task import TextTask
from .common import FILLERS, Corpus, diagnostic_task

GROUPS = ("kids", "cooks", "sailors", "poets")
WORDS = tuple(f"w{i}" for i in range(32))
LENGTH = 4
MAJORITY = 0.7  # share of prompts that come from the first group


@cache
def persona_task(size: str, split: str = "train") -> TextTask:
    """Return the task.

    ## Description
    The prompt names its reader, `for cooks tin oak sea hut`, and each group of readers likes eight words of its own out of 32.  Seven
    prompts in ten come from the first group.  The mean reward can be high while the other readers get what the first group likes; the
    task's own measure is the mean of the group that fares worst.

    ## Action and observation spaces
    46 tokens: the end of text, 32 words, and those of the prompts; see `TextGenerationEnv`.

    ## Rewards
    The share of the four words that the prompt's group likes.  The measure of a set of texts is the smallest mean of a group; the optimum
    is 1.

    ## References
    Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts", for the worst group; Chakraborty et al. 2024,
    "MaxMin-RLHF: Alignment with Diverse Human Preferences".

    ## Version History
    * v0: first version.

    Args:
        size: Groups: `"2"`, `"3"` or `"4"`.
        split: `"train"`, `"validation"` or `"test"`; no two share a prompt.
    """
    words = (*WORDS, "for", *GROUPS, *FILLERS)
    corpus = Corpus(_respond, prompts=500, responses=6, context=LENGTH + 7)
    return diagnostic_task(words, split, partial(_prompt, int(size)), gold, LENGTH, corpus, _of_group, measure=worst_group)


def liked() -> dict[str, frozenset[str]]:
    """Return the eight words that each group likes; no two groups share one."""
    drawn = np.random.default_rng(0).permutation(WORDS).reshape(len(GROUPS), -1)
    return {group: frozenset(words.tolist()) for group, words in zip(GROUPS, drawn, strict=True)}


def gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return how many of the four places hold a word that the prompt's group likes, as a share."""
    taste = liked()
    return np.array([sum(w in taste[p.split()[1]] for w in r.split()) / LENGTH for p, r in zip(prompts, responses, strict=True)])


def worst_group(prompts: Sequence[str], responses: Sequence[str]) -> float:
    """Return the mean of the group that fares worst."""
    scores, groups = gold(prompts, responses), np.array([prompt.split()[1] for prompt in prompts])
    return float(min(scores[groups == group].mean() for group in np.unique(groups)))


def _prompt(groups: int, rng: np.random.Generator) -> str:
    others = (1 - MAJORITY) / (groups - 1)
    group = rng.choice(GROUPS[:groups], p=[MAJORITY, *[others] * (groups - 1)])
    return " ".join(["for", group, *rng.choice(FILLERS, 4)])


def _of_group(text: str) -> Prompt:
    return Prompt(text, metadata={"group": text.split()[1]})


def _respond(prompt: str, rng: np.random.Generator) -> Sequence[str]:
    return rng.choice(WORDS, LENGTH).tolist()
