"""The class that each module is used through."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .base import Backbone
from .custom import Custom
from .decoder_only import DecoderOnly
from .encoder_decoder import EncoderDecoder
from .image_text import ImageText
from .vision_encoder_decoder import VisionEncoderDecoder

# The first one that `reads` a module takes it
BACKBONES: tuple[type[Backbone], ...] = (VisionEncoderDecoder, ImageText, EncoderDecoder, DecoderOnly, Custom)


def backbone_of(lm: nn.Module, head: bool = True) -> Backbone:
    """Return the module as a `Backbone`.

    Args:
        lm: The module.
        head: Whether it must score tokens; a critic's trunk need not.

    Raises:
        TypeError: It is neither a language model of transformers nor one that follows `LanguageModel`.
    """
    if head and isinstance(lm, PreTrainedModel) and lm.get_output_embeddings() is None:
        raise TypeError(f"{type(lm).__name__} has no language-model head: load it as a causal language model")
    return next(backbone for backbone in BACKBONES if backbone.reads(lm))(lm)
