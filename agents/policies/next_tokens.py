"""The distribution of next tokens, what is drawn from it, and the one wait for a device that this takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ..models.sampler import LOG_ZERO, Sampler, draw, leaves_choice, restrict
from ..models.sequences import PartialTexts
from .sampling_record import nan_message


class NextTokens(NamedTuple):
    """The distribution of the next token of the R rows that hold a text.

    Attributes:
        texts: Of all B rows, idle ones too.
        live: Which rows hold a text, shape (R,).
        hidden: What the head reads, shape (R, D).
        raw: The model's logits, shape (R, V).
        ruled: The same under the sampler's static rules, shape (R, V).
        legal: The environment's action masks, shape (R, V), bool; None: all tokens.
        logits: What tokens are drawn from, shape (R, V).
        kept: Which tokens masks and cuts keep, shape (R, V), bool; None: all.
        sampler: The sampling rules.
    """

    texts: PartialTexts
    live: np.ndarray
    hidden: torch.Tensor
    raw: torch.Tensor
    ruled: torch.Tensor
    legal: torch.Tensor | None
    logits: torch.Tensor
    kept: torch.Tensor | None
    sampler: Sampler

    def choose(self, deterministic: bool) -> torch.Tensor:
        """Draw a token for each row, or take the likeliest, shape (R,), on the device."""
        return self.logits.argmax(-1) if deterministic else draw(self.logits)

    def fetch(self, chosen: torch.Tensor) -> torch.Tensor:
        """Bring what was chosen to the host, 0 in idle rows, shape (B,); whether it could be chosen comes along.

        Raises:
            FloatingPointError: Logits are NaN or infinite.
            ValueError: Rules and mask leave no token to some row.
        """
        sound = torch.isfinite(torch.stack(torch.aminmax(self.raw))).all()  # a tenth of the time of asking every logit
        if self.sampler.banned_tokens or self.sampler.no_repeat_ngram or self.legal is not None:
            sound &= leaves_choice(self.logits).all()
        told = torch.cat([chosen, sound[None].long()]).cpu()
        if not told[-1]:
            self._refuse()
        actions = torch.zeros(len(self.texts.ids), dtype=torch.int64)
        actions[torch.from_numpy(self.live)] = told[:-1]
        return actions

    def _refuse(self) -> None:
        unsound = ~torch.isfinite(self.raw).all(-1)  # (R,)
        if unsound.any():
            raise FloatingPointError(nan_message(self.texts, int(self.live[int(unsound.nonzero()[0])])))
        steps = self.texts.steps[self.live]
        self.sampler.check_choice(self.ruled, steps)
        assert self.legal is not None
        self.sampler.check_choice(restrict(self.ruled, self.legal), steps, self.legal)


def cut(
    sampler: Sampler, logits: torch.Tensor, kept: torch.Tensor | None, mask: Callable[[torch.Tensor], torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut what rules and masks left, shape (R, V) of the live rows, and return it with the kept sets.

    Each cut is made within the one before, so that it keeps a token: NLPO's mask and top-p may have none in common.

    Args:
        sampler: Cuts last.
        logits: Under the static rules and the environment's masks, shape (R, V).
        kept: Those masks, shape (R, V), bool; None: all.
        mask: NLPO's, see `LearnedMask.plan`.
    """
    if mask is not None:
        kept = mask(logits > LOG_ZERO / 2)
        logits = restrict(logits, kept)
    last = sampler.cut(logits)
    if last is not None:
        kept = last if kept is None else kept & last
    return restrict(logits, kept), kept
