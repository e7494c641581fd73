"""Causal language models of transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from ..sequences import SequenceBatch
from .attention_masks import attention_mask
from .base import Backbone, Fed, full_precision
from .joined_texts import JoinedTexts, attending, join_texts, probe
from .kv_cache import States

_WIDE = 256  # hidden size from which joining pays: in a model of 128, what attention does besides takes most of what is spared
JOINED_UP_TO = 0.9  # of the tokens, padding included, that a joined batch may have at most


class FromTransformers(Backbone):
    """What every model of transformers answers from its configuration."""

    @classmethod
    def reads(cls, lm: nn.Module) -> bool:
        """Return whether it is a model of transformers, with an encoder or without as this class wants it."""
        return isinstance(lm, PreTrainedModel) and bool(lm.config.is_encoder_decoder) == cls.reads_prompt_apart

    @property
    def _writer(self) -> Any:
        """The module that scores tokens."""
        return self.lm

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the head scores."""
        return int(self._writer.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Size of the hidden state that the head reads."""
        return int(self._writer.config.hidden_size)

    @property
    def context_length(self) -> int | None:
        """Longest text that the positions of the model reach."""
        return getattr(self._writer.config, "max_position_embeddings", None)

    @property
    def checkpoints(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        renamed = hasattr(type(self.lm), "is_activation_checkpointing")  # in transformers 5.2x
        return bool(self.lm.is_activation_checkpointing if renamed else self.lm.is_gradient_checkpointing)

    @property
    def head(self) -> nn.Linear | None:
        """The output embeddings; None if they are adapted or hooked, or if their outputs are changed before they are logits."""
        layer = self.lm.get_output_embeddings()
        if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        return layer if all(setting is None for setting in _finish(self._writer)) else None


class DecoderOnly(FromTransformers):
    """A causal language model: prompt and response are one text.

    Attributes:
        joinable: Whether joined texts give what texts side by side give, see `joined_texts`; None until it was tried.
        joinable_up_to: Tokens of the texts up to which that was tried.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)
        self.joinable: bool | None = None
        self.joinable_up_to = 0
        accepted = inspect.signature(self._trunk.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        self._recurrent = _recurrent_layers(lm.config)
        if self._recurrent is None:
            self.cacheable = False
        self.graphable = self._recurrent is not None and not any(self._recurrent)

    @property
    def _trunk(self) -> Any:
        return self.lm.base_model

    def model_logits(self, prompts: torch.Tensor) -> torch.Tensor:
        """Return the module's own logits behind each prompt, shape (B, V)."""
        return self.lm(input_ids=prompts).logits[:, -1]  # (B, P, V), (B, V)

    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        # Texts begin at column 0 and a causal model never looks ahead: neither mask nor positions are needed.
        return self._trunk(input_ids=batch.input_ids, use_cache=False).last_hidden_state

    def hidden(self, batch: SequenceBatch) -> torch.Tensor:
        """Return the hidden state that predicts each action, shape (N, D), float32; equal prompts are read once where that pays."""
        joined = self._joined(batch)
        return super().hidden(batch) if joined is None else self._run_joined(joined)

    def _joined(self, batch: SequenceBatch) -> JoinedTexts | None:
        """Return the batch joined; None: side by side it costs no more, or this model cannot."""
        if len(batch.input_ids) == 1 or not self.joins:
            return None
        joined = join_texts(batch)
        if joined.ids.numel() > JOINED_UP_TO * batch.input_ids.numel():
            return None
        if (longest := batch.input_ids.shape[1]) > self.joinable_up_to:
            self.joinable, self.joinable_up_to = self._joins_exactly(longest), longest
        return joined if self.joinable else None

    @property
    def joins(self) -> bool:
        """Whether batches of which that makes enough fewer tokens are joined."""
        if self.hidden_size < _WIDE or self.joinable is False or not (self.graphable and self._takes_positions):
            return False
        attends = self.lm.config._attn_implementation == "sdpa"
        return attends and not (self._compiles or self.checkpoints)  # layers run again attend as usual

    @torch.no_grad()
    def _joins_exactly(self, longest: int) -> bool | None:
        """Try texts of up to `longest` tokens; None if the model's numbers are not finite."""
        batch = probe(self.vocab_size, longest, self.device)
        autocast, self.autocast = self.autocast, None
        try:
            plain, alone = (self._side_by_side(texts) for texts in (batch, batch.split(1)[0][0]))  # (N, D), (n, D)
            if not torch.isfinite(plain).all():
                return None
            rounding = float((plain[: len(alone)] - alone).abs().max())  # the same text in a larger batch
            worst = float((self._run_joined(join_texts(batch)) - plain).abs().max())
            return worst <= max(10 * rounding, 3e-6 * float(plain.abs().max()))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError):
            return False  # it takes no such argument, or has an attention of its own
        finally:
            self.autocast = autocast

    def _run_joined(self, joined: JoinedTexts) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.positions += joined.ids.numel()
        with self.precision(), attending(self._trunk.config):
            out = self._trunk(input_ids=joined.ids, position_ids=joined.positions, use_cache=False, joined=joined)
        return out.last_hidden_state[0][joined.predictor].float()  # (1, M, D), (N, D)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return raw logits, shape (N, V)."""
        with full_precision(hidden.device):
            return finish_logits(self._writer, self.lm.get_output_embeddings()(hidden))

    def new_states(self) -> States:
        """Return an empty cache."""
        return States(self._recurrent if self._recurrent and any(self._recurrent) else None)

    def feed(self, fed: Fed, states: States) -> torch.Tensor:
        """Run tokens through the trunk with the cache."""
        plan = states.plan
        kwargs: dict[str, Any] = {self._cache_name: states.cache}
        if self._takes_positions:
            kwargs["position_ids"] = fed.positions
        if not plan.fresh and not (self._recurrent and all(self._recurrent)):
            kwargs["attention_mask"] = attention_mask(self._writer.config, fed.positions, plan.width, self._trunk.dtype)
        with self.precision():
            out = self._trunk(**self._inputs(fed), use_cache=True, **kwargs)
        return out.last_hidden_state.float()

    def _inputs(self, fed: Fed) -> dict[str, torch.Tensor]:
        """Return the tokens as the trunk takes them."""
        return {"input_ids": fed.ids}


def finish_logits(lm: Any, logits: torch.Tensor) -> torch.Tensor:
    """Apply what some architectures do after their head; `load_lm` checks that nothing else is done."""
    cap, scale, scaling, bias = _finish(lm)
    if cap:
        logits = torch.tanh(logits / cap) * cap
    if scale:
        logits = logits * scale
    if scaling:
        logits = logits / scaling
    return logits if bias is None else logits + bias[0]


def _finish(lm: Any) -> tuple[Any, Any, Any, Any]:
    """Return what `finish_logits` applies, None for what a model does not have."""
    return (
        getattr(lm.config, "final_logit_softcapping", None),  # Gemma 2 and 3
        getattr(lm, "logit_scale", None),  # Cohere
        getattr(lm.config, "logits_scaling", None),  # Granite
        getattr(lm, "final_logits_bias", None),  # BART
    )


def _recurrent_layers(config: Any) -> list[bool] | None:
    """Return which layers carry a recurrent state; None if some layer is of a kind that the cache does not know."""
    layers = list(DynamicCache(config=config).layers)
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) and type(layer) is not LinearAttentionLayer for layer in layers):
        return None
    return [isinstance(layer, LinearAttentionLayer) for layer in layers]
