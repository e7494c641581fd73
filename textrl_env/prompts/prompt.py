"""One prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One row of a task's data.

    Attributes:
        text: What the episode starts from.
        references: Texts that a reward may compare the response with.
        metadata: Further columns; they reach the reward model with the episode.
        typed: None: `text` is plain, and special tokens that are spelled in it are text.  Where a chat template wrote `text`, its special
            tokens are tokens, except in these spans (start, end): people typed them into a message.
        image: A picture that belongs to the prompt, shape (H, W, 3), uint8, red, green, blue; all prompts of a task have one, of one size,
            or none has.
    """

    text: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    typed: tuple[tuple[int, int], ...] | None = field(default=None, compare=False)
    image: np.ndarray | None = field(default=None, compare=False)
