"""What reward models need of the prompts, checked before the first text is written.

A reward model may have the method `see_prompts(prompts, num_rows)`.  It is called when a task or an environment takes the model (a task
has no `num_rows`, the number of texts side by side, and passes None), and raises ValueError for prompts that it cannot score texts of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .prompt import Prompt


def see_prompts(model: Any, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
    """Show a reward model the prompts, if it asks for them.

    Raises:
        ValueError: The prompts lack what the model needs, or texts of so many rows cannot be scored.
    """
    if hasattr(model, "see_prompts"):
        model.see_prompts(prompts, num_rows)


def check_references(name: str, prompts: Sequence[Prompt]) -> None:
    """Insist on references of every prompt.

    Raises:
        ValueError: A prompt has none.
    """
    known = at_hand(prompts)
    without = [prompt for prompt in known if not prompt.references]
    if without:
        raise ValueError(
            f"{name} compares with references, and {len(without)} of {len(known)} prompts have none, first {without[0].text[:100]!r}: give "
            "Prompt(text, references=(...)), read_prompts(..., references='column'), or another reward"
        )


def check_columns(name: str, columns: Iterable[str], prompts: Sequence[Prompt]) -> None:
    """Insist on metadata that at least one prompt has.

    Raises:
        ValueError: No prompt has a column.
    """
    known = at_hand(prompts)
    for column in columns:
        if not any(column in prompt.metadata for prompt in known):
            there = ", ".join(sorted({key for prompt in known for key in prompt.metadata})) or "none"
            raise ValueError(f"{name} needs the column {column!r}, which no prompt has as metadata (columns: {there})")


def check_no_pictures(name: str, prompts: Sequence[Prompt]) -> None:
    """Insist on prompts that are text alone, for who judges a response to its prompt and cannot see a picture.

    Raises:
        ValueError: Prompts have pictures.
    """
    if prompts[0].image is not None:
        raise ValueError(
            f"{name} judges responses to their prompts, and cannot see the pictures of these: take a reward that reads Episode.image or "
            "Episode.metadata, compares with references, or judges the text alone"
        )


def at_hand(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts of a list or tuple, and of others, which are read one by one, the first."""
    return prompts if isinstance(prompts, (list, tuple)) else [prompts[0]]
