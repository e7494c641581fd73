"""`textrl/Review-v0`: go on with the opening of a film review."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from ...prompts.prompt import Prompt
from ...task import BaseRecipe, TextTask
from ...tokenizer import FileTokenizer
from .annotator import OFFSET, POLITENESS, SENTIMENT, SPECIFICITY, gold_score
from .grammar import split

MAX_NEW_TOKENS = 26
_CORPUS_SIZE = 20_000
_MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
}


@cache
def review_task(name: str = "train") -> TextTask:
    """Return the task with the prompts of one split.

    ## Description
    Reviews from a grammar with latent sentiment, specificity, politeness and repetition.  The prompt is the opening of a
    review.  The gold score of a text is the utility that a simulated annotator compares texts by; see `annotator`.

    ## Version History
    * v0: first version.

    Args:
        name: `"train"` (4,000 openings), `"validation"` or `"test"` (500 each); their film titles are disjoint.

    Raises:
        ValueError: There is no such split.
    """
    openings = json.loads(Path(__file__).with_name("openings.json").read_text(encoding="utf-8"))  # see `build_data`
    if name not in openings:
        raise ValueError(f"split={name!r}: choose one of {', '.join(openings)}")
    tokenizer = FileTokenizer(Path(__file__).with_name("tokenizer.json"))
    return TextTask(
        tokenizer=tokenizer,
        prompts=tuple(map(Prompt, openings[name])),
        max_new_tokens=MAX_NEW_TOKENS,
        max_prompt_tokens=16,
        reward="vader",
        gold=gold_score,
        optimum=SENTIMENT + SPECIFICITY + POLITENESS + OFFSET,
        recipe=BaseRecipe(corpus=_corpus, model={**_MODEL, "vocab_size": tokenizer.vocab_size}, steps=1400, batch_size=16),
    )


@cache
def _corpus() -> list[tuple[str, str]]:
    return [(review.opening, review.body) for review in split("train", _CORPUS_SIZE)]
