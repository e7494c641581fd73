"""The record of one text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Episode:
    """One text, as reward models and people see it: a finished one, or an unfinished one where a task or reward asks for it.

    Token ids are the truth; `prompt` and `response` are views of them.  `prompt + response` is the whole text: the
    response keeps its leading space.

    Attributes:
        prompt: The text the episode started from.
        response: What was written after it, special tokens left out.
        prompt_ids: Token ids of the prompt, shape (p,), int64.
        response_ids: Token ids of the response with the end-of-text token if it was written, shape (t,), int64.
        action_mask: True where the agent chose the token, False where the environment wrote it, shape (t,), bool.
        finish_reason: `"eos"`, `"stop"`, `"length"`, `"task"`, `"turns"` or `"illegal"`, see `TextGenerationEnv`; empty while
            the text is unfinished.
        references: Texts to compare with, if the prompt has any.
        metadata: Further columns of the prompt's row of data.
        typed: See `Prompt`: whether a chat template wrote the prompt, and where people typed special tokens into it.
        image: The prompt's picture, shape (H, W, 3), uint8; None without one.
        turn_start: Where in the response the agent's last turn begins, in characters; 0 in a text of one turn.
        turns: The agent's turns that ended, where the environment replies, each cut behind its stop string.
    """

    prompt: str
    response: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    action_mask: np.ndarray
    finish_reason: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    typed: tuple[tuple[int, int], ...] | None = None
    image: np.ndarray | None = None
    turn_start: int = 0
    turns: tuple[str, ...] = ()

    @classmethod
    def from_text(
        cls,
        prompt: str,
        response: str,
        *,
        references: tuple[str, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Episode:
        """Wrap a pair of texts that no environment produced, so that any reward model can score it.

        The id arrays are empty and `finish_reason` is `"eos"`.
        """
        none = np.zeros(0, np.int64)
        return cls(prompt, response, none, none, none.astype(bool), "eos", references, metadata or {})
