"""Training on fixed texts by their log-probability under the policy and under a frozen reference: what DPO and KTO share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rewards.models.lora import adapted_layers
from textrl_env import Tokenizer
from textrl_env.tokenizer import check_same_tokens

from ...distributed.ranks import digest
from ...models.backbones import Backbone, backbone_of
from ...models.loading import LMSource, frozen, is_in_shards, load_lm
from ...models.log_probs import action_log_probs
from ...models.lora import without_adapters
from ...models.sampler import Sampler
from ...models.sequences import TextRecord, pack
from .supervised import Supervised, SupervisedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SupervisedWithReference(Supervised):
    """Holds the reference beside the model that is trained.

    Attributes:
        reference: What log-probabilities are compared with; the trained model itself where they are not.
    """

    reference: Backbone

    def __init__(self, model: LMSource, tokenizer: Tokenizer, reference: LMSource | None, **arguments: Unpack[SupervisedArguments]) -> None:
        super().__init__(model, tokenizer, **arguments)
        check_same_tokens(reference, tokenizer, "reference")
        if not self._compares:
            self.reference = self.backbone
            return
        if reference is None and adapted_layers(self.lm):
            self.reference = without_adapters(self.backbone)
            return
        other = load_lm(self._in_shards(model if reference is None else reference, arguments.get("lora")))
        if reference is None and not is_in_shards(other):
            other.load_state_dict(self.lm.state_dict())  # fresh weights are drawn once
        self.reference = backbone_of(frozen(other).to(self.backbone.device))
        self.reference.autocast = self.backbone.autocast

    @property
    def _compares(self) -> bool:
        """Whether the loss asks for a reference."""
        return True

    def _backbones(self) -> list[Backbone]:
        return [self.backbone] if self.reference.lm is self.lm else [self.backbone, self.reference]

    def _module(self) -> nn.Module:
        return self.lm if self.reference.lm is self.lm else nn.ModuleDict({"lm": self.lm, "reference": self.reference.lm})

    def _depends_on(self) -> dict[str, Any]:
        own = super()._depends_on()
        return {**own, "reference": self._first if self.reference.lm is self.lm else digest(self.reference.lm)[0]}

    def _log_ratios(self, texts: Sequence[TextRecord]) -> torch.Tensor:
        """Return log(pi / pi_ref) of responses in nats, shape (B,)."""
        with torch.no_grad():  # before the policy's pass, which keeps its activations
            of_reference = self._log_probs(self.reference, texts)  # (B,)
        return self._log_probs(self.backbone, texts) - of_reference

    def _log_probs(self, model: Backbone, texts: Sequence[TextRecord]) -> torch.Tensor:
        """Return the log-probabilities of responses, shape (B,)."""
        batch = pack(texts, model.device)
        actions = torch.as_tensor(np.concatenate([text.actions for text in texts]), device=model.device)  # (N,)
        log_probs, _ = action_log_probs(model, model.hidden(batch), batch, actions, Sampler(), self.tokenizer.vocab_size)  # (N,)
        return log_probs.new_zeros(len(texts)).index_add(0, batch.rows, log_probs)  # (B,)
