"""NLPO's mask: the likeliest tokens of an earlier copy of the policy."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..models.backbones import backbone_of
from ..models.cached_decoder import CachedDecoder
from ..models.loading import frozen
from ..models.sampler import Sampler, restrict
from ..models.sequences import PartialTexts


class LearnedMask:
    """The top-p tokens of a frozen copy of the policy, made anew from time to time.

    Args:
        lm: The policy's model, which is copied.
        vocab_size: Tokens of the environment.
        top_p: Mass of the tokens that stay.
        temperature: The policy's.
    """

    def __init__(self, lm: nn.Module, vocab_size: int, top_p: float, temperature: float = 1.0) -> None:
        self.lm = frozen(copy.deepcopy(lm))
        self._backbone = backbone_of(self.lm)
        self._vocab_size, self._temperature, self._sampler = vocab_size, temperature, Sampler(top_p=top_p)
        self._cache = CachedDecoder()

    def refresh(self, lm: nn.Module) -> None:
        """Take over the policy's weights as they are now."""
        self.lm.load_state_dict(lm.state_dict())
        self.drop()

    def drop(self) -> None:
        """Forget keys and values."""
        self._cache.drop()

    @torch.no_grad()
    def kept(self, texts: PartialTexts, allowed: torch.Tensor) -> torch.Tensor:
        """Return which tokens may come next in the live rows, shape (R, V), bool; at least one each.

        Args:
            texts: All rows.
            allowed: What the policy's rules and the environment's masks leave in the live rows, at least one token each, shape (R, V).
        """
        hidden = self._cache.last_hidden(self._backbone, texts)  # (R, D)
        logits = self._backbone.logits(hidden)[:, : self._vocab_size].float() / self._temperature  # (R, V)
        kept = self._sampler.cut(restrict(logits, allowed))
        return allowed if kept is None else kept & allowed
