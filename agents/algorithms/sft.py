"""Supervised training of language models: the base policies, and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from textrl_env import Prompt, Tokenizer
from textrl_env.prompts.encoding import encode_prompts

from ..models.loading import LMSource
from ..models.sequences import TextRecord, pack
from .common.supervised import SFTText, Supervised, SupervisedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SFT(Supervised):
    """Next-token training on texts.

    A text is (prompt, response), closed with the end-of-text token, the first of several; (prompt, response, False), which goes on where
    it stops, such as a chunk of a corpus, and is not closed; or a `TextRecord` of what a policy wrote, whose actions alone are learned, as
    they are.  Special tokens that are spelled in texts are text; a `Prompt` that a chat template wrote keeps the template's.

    Args:
        train_on_prompts: Whether the prompt's tokens count in the loss, as pretraining wants and fine-tuning often not; those
            that an encoder reads never do.  Default: True.

    Raises:
        ValueError: The model has fewer tokens than the tokenizer, or `max_new_tokens` is less than 1.
    """

    __module__ = "agents"

    def __init__(
        self,
        model: LMSource | nn.Module,
        tokenizer: Tokenizer,
        *,
        train_on_prompts: bool = True,
        **arguments: Unpack[SupervisedArguments],
    ) -> None:
        super().__init__(model, tokenizer, **arguments)
        self.train_on_prompts = train_on_prompts

    def _encode(self, texts: Sequence[SFTText]) -> list[TextRecord]:
        plain = [_checked(text) for text in texts if not isinstance(text, TextRecord)]
        responses = self._responses([response for _, response, _ in plain], [ends for *_, ends in plain])
        prompts = encode_prompts(self.tokenizer, [prompt for prompt, *_ in plain])
        rows = map(self._record, prompts, responses, plain)
        return [text if isinstance(text, TextRecord) else next(rows) for text in texts]

    def _record(self, prompt: list[int], response: list[int], text: tuple[str | Prompt, str, bool]) -> TextRecord:
        ids, read = np.asarray(prompt + response, np.int64), self._read(len(prompt))
        if len(ids) <= read:
            raise ValueError(f"there is no token to learn in {text}: a text needs one besides those that are only read")
        return TextRecord(ids[:read], ids[read:], 0, image=text[0].image if isinstance(text[0], Prompt) else None)

    def _records(self, rows: Sequence[TextRecord]) -> list[TextRecord]:
        return list(rows)

    def num_targets(self, texts: Sequence[SFTText]) -> int:
        """Return how many tokens the loss of these texts is a mean of."""
        return self._weight(self._encode(texts))

    def _weight(self, rows: Sequence[TextRecord]) -> int:
        return sum(len(row.actions) for row in rows)

    def _read(self, prompt_length: int) -> int:
        # The first token of all has nothing that could predict it; an encoder's prompt is not predicted at all.
        return 1 if self.train_on_prompts and not self.backbone.reads_prompt_apart else max(prompt_length, 1)

    def _loss(self, rows: Sequence[TextRecord]) -> torch.Tensor:
        batch = pack(rows, self.backbone.device)
        targets = torch.as_tensor(np.concatenate([row.actions for row in rows]), device=self.backbone.device)  # (N,)
        logits = self.backbone.logits(self.backbone.hidden(batch))  # (N, V)
        return functional.cross_entropy(logits, targets)


def _checked(text: SFTText) -> tuple[str | Prompt, str, bool]:
    """Return prompt, response, and whether the text ends."""
    prompt, response, *ends = text if isinstance(text, (tuple, list)) and len(text) in (2, 3) else (None, None)
    if not isinstance(prompt, (str, Prompt)) or not isinstance(response, str):
        raise TypeError(f"text {text!r:.200} is a {type(text).__name__}: pass (prompt, response), two strings, with False if it goes on")
    return prompt, response, all(ends)
