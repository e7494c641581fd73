"""Low-rank adapters (LoRA) through peft: train a few numbers, and keep the base model as the reference for nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from rewards.models.lora import add_adapters as add_adapters
from rewards.models.lora import merge_adapters

from .backbones import Backbone
from .backbones.base import Fed
from .backbones.kv_cache import States
from .sequences import PartialTexts, SequenceBatch


def merged(lm: nn.Module) -> nn.Module:
    """Return a copy of the model with its adapters folded into the weights; the model itself if it has none."""
    if not _adapted(lm):
        return lm
    copied = copy.deepcopy(lm)
    merge_adapters(copied)
    if hasattr(copied, "_hf_peft_config_loaded"):
        copied._hf_peft_config_loaded = False  # type: ignore[assignment]  # save_pretrained would write the adapters alone
    return copied


@contextmanager
def adapters_off(lm: nn.Module) -> Iterator[None]:
    """Make the model its base model for a while."""
    layers = _adapted(lm)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class WithoutAdapters(Backbone):
    """The base model under a policy's adapters, as a reference that takes no memory of its own."""

    def __init__(self, adapted: Backbone) -> None:
        super().__init__(adapted.lm)
        self.adapted = adapted

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the head scores."""
        return self.adapted.vocab_size

    @property
    def hidden_size(self) -> int:
        """Size of the hidden state that the head reads."""
        return self.adapted.hidden_size

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-text token."""
        return self.adapted.eos_token_id

    def check_room(self, prompt: int, response: int) -> None:
        """Insist that texts of this many tokens fit."""
        self.adapted.check_room(prompt, response)

    def hidden(self, batch: SequenceBatch) -> torch.Tensor:
        """Return the hidden state that predicts each action, shape (N, D)."""
        with adapters_off(self.lm):
            return self.adapted.hidden(batch)

    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        with adapters_off(self.lm):
            return self.adapted._run_trunk(batch)

    @property
    def head(self) -> nn.Linear | None:
        """The head, unless it is adapted."""
        return self.adapted.head

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return raw logits, shape (N, V)."""
        with adapters_off(self.lm):
            return self.adapted.logits(hidden)

    def written(self, texts: PartialTexts) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return what the cached part of the model reads."""
        return self.adapted.written(texts)

    def new_states(self) -> States:
        """Return an empty cache."""
        return self.adapted.new_states()

    def feed(self, fed: Fed, states: States) -> torch.Tensor:
        """Run tokens through the model with a cache."""
        with adapters_off(self.lm):
            return self.adapted.feed(fed, states)


def _adapted(lm: nn.Module) -> list[Any]:
    return [module for module in lm.modules() if hasattr(module, "enable_adapters") and hasattr(module, "get_base_layer")]
