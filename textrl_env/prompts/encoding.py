"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Iterable

from ..tokenizer import Tokenizer
from .prompt import Prompt


def encode_prompts(tokenizer: Tokenizer, prompts: Iterable[str | Prompt]) -> list[list[int]]:
    """Return the ids of each prompt: a text between the tokenizer's `bos_ids` and `closing_ids`, or what a template wrote, as it is."""
    rows = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    opening, closing = (getattr(tokenizer, name, ()) for name in ("bos_ids", "closing_ids"))
    ids = [[*opening, *row, *closing] for row in tokenizer.encode_batch([row.text for row in rows])]
    if hasattr(tokenizer, "encode_template"):
        for number, row in enumerate(rows):
            if row.typed is not None:
                ids[number] = tokenizer.encode_template(row.text, row.typed)
    return ids
