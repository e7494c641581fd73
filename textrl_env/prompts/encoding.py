"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Iterable

from ..tokenizer import Tokenizer
from .prompt import Prompt


def encode_prompts(tokenizer: Tokenizer, prompts: Iterable[str | Prompt]) -> list[list[int]]:
    """Return the ids that each prompt is read as: a text behind the tokenizer's `bos_ids`, or what a chat template wrote, as it is."""
    rows = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    opening = list(getattr(tokenizer, "bos_ids", ()))
    ids = [[*opening, *row] for row in tokenizer.encode_batch([row.text for row in rows])]
    if hasattr(tokenizer, "encode_template"):
        for number, row in enumerate(rows):
            if row.typed is not None:
                ids[number] = tokenizer.encode_template(row.text, row.typed)
    return ids
