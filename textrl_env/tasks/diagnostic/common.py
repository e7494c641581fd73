"""The common parts of the suite's tasks: splits without overlap, a small base policy, and the task's own judgement as its reward."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...constraints import BoundConstraint, Vocabulary
from ...episode import Episode
from ...prompts.prompt import Prompt
from ...task import BaseRecipe, GoldScore, TextTask
from ...tokenizer import WordTokenizer
from ...utils.never_copied import NeverCopied

MakePrompt = Callable[[np.random.Generator], str]

FILLERS = ("tin", "oak", "sea", "rye", "fox", "jam", "hut", "bee")  # words without meaning that make prompts differ
SPLITS = {"train": 512, "validation": 128, "test": 256}
_PATIENCE = 1000  # draws without a new text, after which a small world counts as exhausted
_SEEDS = {"train": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class Limited:
    """A constraint of which nothing but the length of a text can be set.

    Attributes:
        bound: Made of the limit and the vocabulary.
        limit: Tokens of a text at most.
    """

    bound: Callable[[int, Vocabulary], BoundConstraint]
    limit: int

    def bind(self, vocabulary: Vocabulary) -> BoundConstraint:
        """Return the constraint on the tokens of `vocabulary`."""
        return self.bound(self.limit, vocabulary)


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


def draw(make: MakePrompt, split: str, count: int | None = None) -> list[str]:
    """Draw different texts of a split.

    Args:
        make: Draws one text.
        split: Texts of other splits are dropped.
        count: How many; None takes the split's own number (512, 128, 256).  A small world may have fewer.
    """
    rng = np.random.default_rng(_SEEDS.get(split, 0))
    wanted = SPLITS.get(split, 0) if count is None else count
    drawn: dict[str, None] = {}
    idle = 0
    while (len(drawn) < wanted or not drawn) and idle < _PATIENCE:
        text = make(rng)
        new = in_split(text, split) and text not in drawn
        idle = 0 if new else idle + 1
        if new:
            drawn[text] = None
    return list(drawn)


class Corpus(NamedTuple):
    """What the base policy of a task learns from: a few seconds on one core.

    Attributes:
        respond: Given a prompt, draws the words of a response, errors included.
        prompts: Prompts of the training split to draw.
        context: Longest prompt and response together, in tokens.
        responses: Responses to each prompt.
        steps: Optimizer steps.
    """

    respond: Callable[[str, np.random.Generator], Sequence[str]]
    prompts: int
    context: int
    responses: int = 1
    steps: int = 300

    def pairs(self, make_prompt: MakePrompt) -> list[tuple[str, str]]:
        """Return prompts and responses."""
        rng = np.random.default_rng(0)
        drawn = draw(make_prompt, "train", self.prompts)
        return [(prompt, "".join(f" {word}" for word in self.respond(prompt, rng))) for prompt in drawn for _ in range(self.responses)]


def diagnostic_task(
    words: Iterable[str],
    split: str,
    make_prompt: MakePrompt,
    gold: GoldScore,
    max_new_tokens: int,
    corpus: Corpus,
    as_prompt: Callable[[str], Prompt] = Prompt,
    **fields: Any,
) -> TextTask:
    """Return a task of the suite, whose base policy has two layers of width 64.

    Args:
        words: The vocabulary, end of text left out.
        split: `"train"`, `"validation"` or `"test"`.
        make_prompt: Draws the text of a prompt.
        gold: The task's own judgement, in [0, 1] with optimum 1; also its reward, unless `fields` hold another one.
        max_new_tokens: Longest response.
        corpus: What the base policy learns from.
        as_prompt: Adds references or metadata to a prompt's text.
        **fields: Further fields of `TextTask`.
    """
    tokenizer = WordTokenizer(words)
    model = {
        "model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": corpus.context, "bos_token_id": None,
        "eos_token_id": 0, "tie_word_embeddings": True, "initializer_range": 0.06,
    }  # fmt: skip
    recipe = BaseRecipe(partial(corpus.pairs, make_prompt), model, corpus.steps)
    prompts = tuple(map(as_prompt, draw(make_prompt, split)))
    own: dict[str, Any] = {"gold": gold, "reward": GoldReward(gold), "optimum": 1.0, "recipe": recipe}
    return TextTask(tokenizer, prompts, max_new_tokens, **(own | fields))


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
