"""DPO: learning from preferences without a reward model and without writing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from rewards.preferences.preference import Preference
from textrl_env import Tokenizer

from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, frozen, load_lm
from ..models.log_probs import action_log_probs
from ..models.sampler import Sampler
from ..models.sequences import TextRecord, pack
from .common.supervised import Supervised

Pair = tuple[list[int], list[int], list[int]]  # ids of prompt, chosen and rejected


class DPO(Supervised):
    """Direct preference optimisation (Rafailov et al. 2023), or IPO (Azar et al. 2024).

    With D = log(pi / pi_ref) of the chosen text minus that of the rejected one, the loss is -log sigmoid(beta * D), or, for IPO,
    (D - 1 / (2 beta))^2.  With preferences that follow Bradley and Terry on a reward R, DPO's optimum is that of the KL-regularised
    return: pi_ref * exp(R / beta) / Z.

    Args:
        model: What `agents.models.loading.load_lm` takes; it is trained.
        tokenizer: The environment's.
        beta: Coefficient of KL, > 0.
        loss: `"sigmoid"` or `"ipo"`.
        reference: What KL is measured against; None: the model as it was given.
        max_new_tokens: Responses of this many tokens were cut there, and get no end-of-text token; None: all get one.
        learning_rate: Peak of a one-cycle schedule.
        batch_size: Pairs per step.
        weight_decay: Of AdamW.
        seed: Of the order of the pairs.
        device: Where to train.

    Raises:
        ValueError: Beta is not positive, or the loss is unknown.
    """

    __module__ = "agents"

    def __init__(
        self,
        model: LMSource,
        tokenizer: Tokenizer,
        beta: float = 0.1,
        loss: Literal["sigmoid", "ipo"] = "sigmoid",
        reference: LMSource | None = None,
        max_new_tokens: int | None = None,
        learning_rate: float = 1e-4,
        batch_size: int = 16,
        weight_decay: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not beta > 0 or loss not in ("sigmoid", "ipo"):
            raise ValueError(f"beta={beta}, loss={loss!r}: beta must be positive, the loss 'sigmoid' or 'ipo'")
        super().__init__(model, tokenizer, learning_rate, batch_size, weight_decay, seed, device)
        self.beta, self.loss, self.max_new_tokens = beta, loss, max_new_tokens
        other = load_lm(model if reference is None else reference)
        if reference is None:
            other.load_state_dict(self.lm.state_dict())  # fresh weights are drawn once
        self.reference = backbone_of(frozen(other).to(device))

    def _encode(self, texts: Sequence[Preference]) -> list[Pair]:
        columns = [[getattr(pair, name) for pair in texts] for name in ("prompt", "chosen", "rejected")]
        rows = list(zip(*(self.tokenizer.encode_batch(column) for column in columns), strict=True))
        if any(not prompt for prompt, _, _ in rows):
            raise ValueError("a pair has an empty prompt: a policy needs at least one token to start from")
        return [(prompt, self._closed(chosen), self._closed(rejected)) for prompt, chosen, rejected in rows]

    def _closed(self, ids: list[int]) -> list[int]:
        if self.max_new_tokens is not None and len(ids) >= self.max_new_tokens:
            return ids[: self.max_new_tokens]
        return [*ids, self.tokenizer.eos_token_id]

    def _loss(self, rows: Sequence[Pair]) -> torch.Tensor:
        own = self._log_probs(self.backbone, rows)
        with torch.no_grad():
            theirs = self._log_probs(self.reference, rows)
        chosen, rejected = (own - theirs).unflatten(0, (2, -1))  # (B,) each
        if self.loss == "ipo":
            return (chosen - rejected - 1 / (2 * self.beta)).square().mean()
        return -functional.logsigmoid(self.beta * (chosen - rejected)).mean()

    def _log_probs(self, model: Backbone, rows: Sequence[Pair]) -> torch.Tensor:
        """Return the log-probabilities of all chosen, then all rejected responses, shape (2 B,)."""
        texts = [TextRecord(np.asarray(row[0]), np.asarray(row[which]), 0) for which in (1, 2) for row in rows]
        batch = pack(texts, model.device)
        actions = torch.as_tensor(np.concatenate([text.actions for text in texts]), device=model.device)
        log_probs, _ = action_log_probs(model, model.hidden(batch), batch, actions, Sampler(), self.tokenizer.vocab_size)
        return log_probs.new_zeros(len(texts)).index_add(0, batch.predictor // batch.input_ids.shape[1], log_probs)
