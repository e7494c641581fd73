"""Vision-encoder-decoder models of transformers: an encoder reads the prompt's picture, a decoder the prompt, and writes the response."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EncoderDecoderCache, VisionEncoderDecoderModel

from ..sequences import PartialTexts, SequenceBatch
from .attention_masks import attention_mask
from .base import Fed, full_precision
from .decoder_only import finish_logits
from .encoder_decoder import own_positions
from .kv_cache import States
from .pictures import ReadsPictures


class VisionEncoderDecoder(ReadsPictures):
    """Prompt and response are the decoder's text, as in a decoder-only model; at every layer it also looks at the encoder's patches."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)
        self._takes_positions = "position_ids" in inspect.signature(self._trunk.forward).parameters

    @classmethod
    def reads(cls, lm: nn.Module) -> bool:
        """Return whether it is such a model."""
        return isinstance(lm, VisionEncoderDecoderModel)

    @property
    def _encoder_config(self) -> Any:
        return self.lm.config.encoder

    @property
    def _writer(self) -> Any:
        return self.lm.decoder

    @property
    def _trunk(self) -> Any:
        return self.lm.decoder.base_model

    def source_lengths(self, sources: np.ndarray) -> np.ndarray:
        """Return how many patches each picture becomes, shape (B,)."""
        return np.full(len(sources), self.patches)

    def model_logits(self, prompts: torch.Tensor) -> torch.Tensor:
        """Return the module's own logits behind each prompt, shape (B, V)."""
        pixels = self._pixels(torch.as_tensor(self.example_images(len(prompts)), device=prompts.device))
        return self.lm(pixel_values=pixels, decoder_input_ids=prompts).logits[:, -1]  # (B, P, V), (B, V)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the decoder looks at, of pictures (B, H, W, 3), uint8; shape (B, patches, D)."""
        encoded = self.lm.encoder(pixel_values=self._pixels(images)).last_hidden_state
        return self.lm.enc_to_dec_proj(encoded) if hasattr(self.lm, "enc_to_dec_proj") else encoded

    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        # Texts begin at column 0 and the decoder never looks ahead: neither mask nor positions are needed.
        encoded = self._encode(self._there(batch.images))  # (B, patches, D)
        return self._trunk(input_ids=batch.input_ids, encoder_hidden_states=encoded, use_cache=False).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return raw logits, shape (N, V)."""
        with full_precision(hidden.device):
            return finish_logits(self.lm.decoder, self.lm.get_output_embeddings()(hidden))

    def written(self, texts: PartialTexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the texts; the pictures are sources."""
        return texts.ids, texts.lengths, self._there(texts.images)

    def feed(self, fed: Fed, states: States) -> torch.Tensor:
        """Run tokens through the decoder with the cache; rows that come with a picture go through the encoder first."""
        plan = states.plan
        cache = EncoderDecoderCache(states.cache, states.cross)
        cache.is_updated = dict.fromkeys(range(len(states.cross.layers)), fed.sources is None)
        kwargs: dict[str, Any] = {"position_ids": fed.positions} if self._takes_positions else {}
        if not plan.fresh:
            kwargs["attention_mask"] = attention_mask(self._writer.config, fed.positions, plan.width, self.lm.dtype)
        with self.precision(), nullcontext() if self._takes_positions else own_positions(self._trunk, fed.positions):
            if fed.sources is not None:
                encoded = self._encode(fed.sources)
            else:
                encoded = torch.zeros(1, device=fed.ids.device).expand(len(fed.ids), states.source_columns, self.hidden_size)  # never read
            out = self._trunk(input_ids=fed.ids, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True, **kwargs)
        return out.last_hidden_state.float()
