"""Which backbone a module needs."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .base import Backbone
from .custom import Custom
from .decoder_only import DecoderOnly
from .encoder_decoder import EncoderDecoder


def backbone_of(lm: nn.Module, head: bool = True) -> Backbone:
    """Return the module as a `Backbone`.

    Args:
        lm: The module.
        head: Whether it must score tokens; a critic's trunk need not.

    Raises:
        TypeError: It is neither a language model of transformers nor one that follows `LanguageModel`.
    """
    if not isinstance(lm, PreTrainedModel):
        return Custom(lm)
    config: Any = lm.config
    if config.is_encoder_decoder:
        return EncoderDecoder(lm)
    if head and lm.get_output_embeddings() is None:
        raise TypeError(f"{type(lm).__name__} has no language-model head: load it as a causal language model")
    return DecoderOnly(lm)
