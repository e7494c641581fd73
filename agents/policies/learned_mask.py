"""NLPO's mask: the likeliest tokens of an earlier copy of the policy."""

from __future__ import annotations

import copy

import numpy as np
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
        rules: The policy's sampler, whose static rules apply before the cut.
    """

    def __init__(self, lm: nn.Module, vocab_size: int, top_p: float, rules: Sampler) -> None:
        self.lm = frozen(copy.deepcopy(lm))
        self._backbone = backbone_of(self.lm)
        self._vocab_size, self._rules, self._cut = vocab_size, rules, Sampler(top_p=top_p)
        self._cache = CachedDecoder()

    def refresh(self, lm: nn.Module) -> None:
        """Take over the policy's weights as they are now."""
        self.lm.load_state_dict(lm.state_dict())
        self.drop()

    def drop(self) -> None:
        """Forget keys and values."""
        self._cache.drop()

    @torch.no_grad()
    def kept(self, texts: PartialTexts, live: np.ndarray, legal: torch.Tensor | None) -> torch.Tensor:
        """Return which tokens may come next in the live rows, shape (R, V), bool."""
        hidden = self._cache.last_hidden(self._backbone, texts)  # (R, D)
        raw = self._backbone.logits(hidden)[:, : self._vocab_size]  # (R, V)
        logits = restrict(self._rules.apply_rules(raw, torch.as_tensor(texts.steps[live], device=raw.device)), legal)
        kept = self._cut.cut(logits)
        return torch.ones_like(logits, dtype=torch.bool) if kept is None else kept
