"""What the tasks of the suite share: splits without overlap, a small base model, and a reward that is the task's own judgement."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from ...episode import Episode
from ...task import BaseRecipe, GoldScore
from ...utils.never_copied import NeverCopied

FILLERS = ("tin", "oak", "sea", "rye", "fox", "jam", "hut", "bee")  # words without meaning that make prompts differ
SPLITS = {"train": 512, "validation": 128, "test": 256}
_PATIENCE = 1000  # draws without a new text, after which a small world counts as exhausted
_SEEDS = {"train": 1, "validation": 2, "test": 3}


def in_split(key: str, split: str) -> bool:
    """Return whether a text belongs to a split; every text belongs to exactly one.

    Four texts in eight are `train`, one is `validation`, three are `test`; which, only the text itself decides, so that no order of
    drawing can mix the splits.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    lot = int.from_bytes(hashlib.sha256(key.encode()).digest()[:2], "big") % 8
    return split == ("train" if lot < 4 else "validation" if lot < 5 else "test")


def draw(make: Callable[[np.random.Generator], str], split: str, count: int | None = None) -> list[str]:
    """Draw different texts of a split.

    Args:
        make: Draws one text.
        split: Texts of other splits are dropped.
        count: How many; None takes the split's own number (512, 128, 256).  A small world may have fewer.
    """
    rng = np.random.default_rng(_SEEDS.get(split, 0))
    wanted = SPLITS.get(split, 0) if count is None else count
    found: dict[str, None] = {}
    idle = 0
    while (len(found) < wanted or not found) and idle < _PATIENCE:
        text = make(rng)
        new = in_split(text, split) and text not in found
        idle = 0 if new else idle + 1
        if new:
            found[text] = None
    return list(found)


def recipe(corpus: Callable[[], list[tuple[str, str]]], vocab_size: int, context: int, steps: int = 300) -> BaseRecipe:
    """Return how the suite pretrains: two layers of width 64, a few seconds on one core.

    Args:
        corpus: Returns (prompt, response) pairs.
        vocab_size: V.
        context: Longest prompt and response together.
        steps: Optimizer steps.
    """
    model = {
        "model_type": "llama", "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": context, "bos_token_id": None, "eos_token_id": 0,
        "tie_word_embeddings": True, "initializer_range": 0.06,
    }  # fmt: skip
    return BaseRecipe(corpus, model, steps)


class GoldReward(NeverCopied):
    """The task's own judgement as its reward.

    Args:
        gold: Scores (prompts, responses).
    """

    def __init__(self, gold: GoldScore) -> None:
        self.gold = gold

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the score of each text."""
        return np.asarray(self.gold([e.prompt for e in episodes], [e.response for e in episodes]), float).tolist()

    def __repr__(self) -> str:
        return "GoldReward()"
