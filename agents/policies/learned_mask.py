"""NLPO's mask: the likeliest tokens of an earlier copy of the policy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from ..models.backbones import backbone_of
from ..models.cached_decoder import CachedDecoder
from ..models.loading import frozen
from ..models.sampler import Sampler, restrict
from ..models.sequences import PartialTexts
from ..models.upload import Upload


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

    def plan(self, texts: PartialTexts, upload: Upload) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that says which tokens may come next in the live rows, see `CachedDecoder.plan`.

        It takes what the policy's rules and the environment's masks leave, at least one token a row, shape (R, V), bool; and returns
        what stays of that, at least one token a row, shape (R, V), bool.

        Args:
            texts: All rows.
            upload: What goes to the device.
        """
        last_hidden = self._cache.plan(self._backbone, texts, upload)

        @torch.no_grad()
        def kept(allowed: torch.Tensor) -> torch.Tensor:
            logits = self._backbone.logits(last_hidden())[:, : self._vocab_size].float() / self._temperature  # (R, V)
            kept = self._sampler.cut(restrict(logits, allowed))
            return allowed if kept is None else kept & allowed

        return kept
