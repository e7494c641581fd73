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
from .common.supervised import Supervised, SupervisedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


Text = tuple[str | Prompt, str]


class SFT(Supervised):
    """Next-token training on (prompt, response) texts, each closed with the end-of-text token, the first of several.

    Special tokens that are spelled in texts are text; a `Prompt` that a chat template wrote keeps the template's.

    Args:
        train_on_prompts: Whether the prompt's tokens count in the loss, as pretraining wants and fine-tuning often not; those
            that an encoder reads never do.  Default: True.

    Raises:
        ValueError: The model has fewer tokens than the tokenizer.
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

    def _encode(self, texts: Sequence[Text]) -> list[tuple[list[int], int]]:
        prompts = encode_prompts(self.tokenizer, [prompt for prompt, _ in texts])
        responses = self.tokenizer.encode_batch([response for _, response in texts])
        eos = self.tokenizer.eos_token_id
        self._check_room(texts, [(len(p), len(r) + 1) for p, r in zip(prompts, responses, strict=True)])
        return [(p + r + [eos], len(p)) for p, r in zip(prompts, responses, strict=True)]

    def num_targets(self, texts: Sequence[Text]) -> int:
        """Return how many tokens the loss of these texts is a mean of."""
        return sum(len(ids) - self._read(prompt_length) for ids, prompt_length in self._encode(texts))

    def _read(self, prompt_length: int) -> int:
        # The first token of all has nothing that could predict it; an encoder's prompt is not predicted at all.
        return 1 if self.train_on_prompts and not self.backbone.reads_prompt_apart else max(prompt_length, 1)

    def _loss(self, rows: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        texts = []
        for ids, prompt_length in rows:
            read = self._read(prompt_length)
            texts.append(TextRecord(np.asarray(ids[:read]), np.asarray(ids[read:]), 0))
        batch = pack(texts, self.backbone.device)
        targets = torch.as_tensor(np.concatenate([text.actions for text in texts]), device=self.backbone.device)  # (N,)
        logits = self.backbone.logits(self.backbone.hidden(batch))  # (N, V)
        return functional.cross_entropy(logits, targets)
