"""Models of the user's own: what such a module must offer."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from ..sequences import SequenceBatch
from .attention_masks import looks_at
from .base import Backbone, Fed, full_precision
from .kv_cache import States


class LanguageModel(Protocol):
    """A causal language model of one's own: an `nn.Module` with these attributes and methods.

    A policy builds it from plain data: `policy_kwargs={"model": {"class": "my_package.my_module:MyModel", **arguments}}`.

    Attributes:
        vocab_size: Number of tokens that `logits` scores.
        hidden_size: Size of the hidden states that `forward` returns.
        context_length: Longest text that it can read; may be absent: any.
        eos_token_id: The end-of-text token, or several; may be absent: the task names them.
        ignores_images: True: prompts with pictures are welcome though the model sees their text alone, as a baseline does; may be absent:
            they are refused.
    """

    vocab_size: int
    hidden_size: int

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None, cache: KeyValueCache | None = None
    ) -> torch.Tensor:
        """Return hidden states, shape (B, L, D).

        Args:
            input_ids: Shape (B, L), int64.  Texts begin at column 0; what is behind a text's end is padding.
            positions: Position of each token in its text, shape (B, L), int64.
            mask: Which keys each token may look at, shape (B, 1, L, K), bool, as
                `torch.nn.functional.scaled_dot_product_attention` takes it; None: plain causal attention.
            cache: If given, each layer passes its new keys and values to `cache.update` and attends to what that returns.  A
                model without this parameter works too, but every token costs a pass over its whole text.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (..., V), of hidden states of shape (..., D)."""
        ...


class KeyValueCache:
    """What a model of one's own is given to keep keys and values in."""

    def __init__(self, states: States) -> None:
        self._states = states

    def update(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, each of shape (B, H, L, Dh); return all that the mask speaks of, (B, H, K, Dh)."""
        return self._states.cache.update(keys, values, layer)


class Custom(Backbone):
    """A module that follows `LanguageModel`.

    Raises:
        TypeError: The module lacks one of its attributes or methods.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)
        wanted = [name for name in ("vocab_size", "hidden_size") if not isinstance(getattr(lm, name, None), int)]
        wanted += [] if callable(getattr(lm, "logits", None)) else ["logits()"]
        parameters = inspect.signature(lm.forward).parameters
        wanted += [f"forward(..., {name})" for name in ("input_ids", "positions", "mask") if name not in parameters]
        if wanted:
            raise TypeError(f"{type(lm).__name__} lacks {', '.join(wanted)}: see agents.LanguageModel for what a model of your own needs")
        if "cache" not in parameters:
            self.cacheable = False
        self.graphable = "cache" in parameters

    @classmethod
    def reads(cls, lm: nn.Module) -> bool:
        """Return True for every module that is not one of transformers."""
        return not isinstance(lm, PreTrainedModel)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the head scores."""
        return int(self.lm.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Size of the hidden state that the head reads."""
        return int(self.lm.hidden_size)

    @property
    def context_length(self) -> int | None:
        """Longest text that the module reads, if it says so."""
        return getattr(self.lm, "context_length", None)

    def check_images(self, shape: tuple[int, ...] | None) -> None:
        """Refuse prompts with pictures, unless the module says that it does without them."""
        if not getattr(self.lm, "ignores_images", False):
            super().check_images(shape)

    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)  # (B, L)
        return self.lm(batch.input_ids, positions, mask=None)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return raw logits, shape (N, V)."""
        with full_precision(hidden.device):
            return self.lm.logits(hidden)

    def feed(self, fed: Fed, states: States) -> torch.Tensor:
        """Run tokens through the module with the cache."""
        mask: Any = None if states.plan.fresh else looks_at(fed.positions, states.plan.width)
        with self.precision():
            return self.lm(fed.ids, fed.positions, mask=mask, cache=KeyValueCache(states)).float()
