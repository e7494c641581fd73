"""DPO: learning from preferences without a reward model and without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from rewards.preferences.preference import Preference
from textrl_env import Tokenizer
from textrl_env.prompts.encoding import encode_prompts
from textrl_env.tokenizer import check_same_tokens

from ..distributed.ranks import digest
from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, frozen, load_lm
from ..models.log_probs import action_log_probs
from ..models.sampler import Sampler
from ..models.sequences import TextRecord, pack
from .common.supervised import Supervised, SupervisedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

Pair = tuple[list[int], list[int], list[int]]  # ids of prompt, chosen and rejected


class DPO(Supervised):
    """Direct preference optimisation (Rafailov et al. 2023), or IPO (Azar et al. 2024).

    With D = log(pi / pi_ref) of the chosen text minus that of the rejected one, the loss is -log sigmoid(beta * D), or, for IPO,
    (D - 1 / (2 beta))^2.  With preferences that follow Bradley and Terry on a reward R, DPO's optimum is that of the KL-regularised
    return: pi_ref * exp(R / beta) / Z.

    Args:
        model: What `agents.models.loading.load_lm` takes; it is trained.
        beta: Coefficient of KL, > 0.  Default: 0.1.
        loss: `"sigmoid"` or `"ipo"`.  Default: `"sigmoid"`.
        reference: What KL is measured against; None: the model as it was given.
        max_new_tokens: Responses of this many tokens were cut there, and get no end-of-text token; None: all get one.

    Raises:
        ValueError: Beta is not positive, or the loss is unknown.
    """

    __module__ = "agents"
    _defaults: ClassVar[SupervisedArguments] = {
        "learning_rate": 1e-4,  # of 1e-4, 2e-4 and 5e-4 the least is best: DPO drifts far from its reference otherwise
        "batch_size": 16,  # pairs: as many texts as in a step of SFT
        "weight_decay": 0.0,  # the reference regularises
    }

    def __init__(
        self,
        model: LMSource,
        tokenizer: Tokenizer,
        beta: float = 0.1,
        loss: Literal["sigmoid", "ipo"] = "sigmoid",
        reference: LMSource | None = None,
        max_new_tokens: int | None = None,
        **arguments: Unpack[SupervisedArguments],
    ) -> None:
        if not beta > 0 or loss not in ("sigmoid", "ipo"):
            raise ValueError(f"beta={beta}, loss={loss!r}: beta must be positive, the loss 'sigmoid' or 'ipo'")
        super().__init__(model, tokenizer, **arguments)
        self.beta, self.loss, self.max_new_tokens = beta, loss, max_new_tokens
        check_same_tokens(reference, tokenizer, "reference")
        other = load_lm(model if reference is None else reference)
        if reference is None:
            other.load_state_dict(self.lm.state_dict())  # fresh weights are drawn once
        self.reference = backbone_of(frozen(other).to(self.backbone.device))

    def _encode(self, texts: Sequence[Preference]) -> list[Pair]:
        prompts = encode_prompts(self.tokenizer, [pair.prompt for pair in texts])
        chosen, rejected = (self.tokenizer.encode_batch([getattr(pair, name) for pair in texts]) for name in ("chosen", "rejected"))
        rows = list(zip(prompts, chosen, rejected, strict=True))
        if any(not prompt for prompt, _, _ in rows):
            raise ValueError("a pair has an empty prompt: a policy needs at least one token to start from")
        closed = [(prompt, self._closed(chosen), self._closed(rejected)) for prompt, chosen, rejected in rows]
        self._check_room(texts, [(len(prompt), max(len(chosen), len(rejected))) for prompt, chosen, rejected in closed])
        return closed

    def _depends_on(self) -> dict[str, Any]:
        return {**super()._depends_on(), "reference": digest(self.reference.lm)[0]}

    def _closed(self, ids: list[int]) -> list[int]:
        if self.max_new_tokens is not None and len(ids) >= self.max_new_tokens:
            return ids[: self.max_new_tokens]
        return [*ids, self.tokenizer.eos_token_id]

    def _loss(self, rows: Sequence[Pair]) -> torch.Tensor:
        own = self._log_probs(self.backbone, rows)  # (2 B,)
        with torch.no_grad():
            of_reference = self._log_probs(self.reference, rows)  # (2 B,)
        chosen, rejected = (own - of_reference).unflatten(0, (2, -1))  # (B,) each
        if self.loss == "ipo":
            return (chosen - rejected - 1 / (2 * self.beta)).square().mean()
        return -functional.logsigmoid(self.beta * (chosen - rejected)).mean()

    def _log_probs(self, model: Backbone, rows: Sequence[Pair]) -> torch.Tensor:
        """Return the log-probabilities of all chosen, then all rejected responses, shape (2 B,)."""
        texts = [TextRecord(np.asarray(row[0]), np.asarray(row[which]), 0) for which in (1, 2) for row in rows]
        batch = pack(texts, model.device)
        actions = torch.as_tensor(np.concatenate([text.actions for text in texts]), device=model.device)  # (N,)
        log_probs, _ = action_log_probs(model, model.hidden(batch), batch, actions, Sampler(), self.tokenizer.vocab_size)  # (N,)
        rows_of = batch.predictor // batch.input_ids.shape[1]  # (N,): the text of each token
        return log_probs.new_zeros(len(texts)).index_add(0, rows_of, log_probs)  # (2 B,)
