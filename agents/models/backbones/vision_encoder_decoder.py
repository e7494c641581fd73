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
from .decoder_only import FromTransformers, finish_logits
from .encoder_decoder import own_positions
from .kv_cache import States


class VisionEncoderDecoder(FromTransformers):
    """Prompt and response are the decoder's text, as in a decoder-only model; at every layer it also looks at the encoder's patches.

    Pixels are divided by 255, less `image_mean`, divided by `image_std` (of the configuration, one number a colour; 0.5 without), as
    transformers' image processors do; sizes are the model's own.

    Raises:
        ValueError: The encoder does not say which pictures it reads, or reads others than colour pictures.
    """

    reads_images = True

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)
        config: Any = self.lm.config
        size, channels = getattr(config.encoder, "image_size", None), getattr(config.encoder, "num_channels", None)
        if not isinstance(size, (int, list, tuple)) or channels != 3:
            raise ValueError(
                f"{type(self.lm.encoder).__name__} has image_size={size} and num_channels={channels} in its configuration: the encoder "
                "must read colour pictures of one size, as a ViT does"
            )
        height, width = (size, size) if isinstance(size, int) else size
        self.image_shape = (height, width, 3)
        self._takes_positions = "position_ids" in inspect.signature(self._trunk.forward).parameters
        self._patches: int | None = None

    @classmethod
    def reads(cls, lm: nn.Module) -> bool:
        """Return whether it is such a model."""
        return isinstance(lm, VisionEncoderDecoderModel)

    @property
    def _writer(self) -> Any:
        return self.lm.decoder

    @property
    def _trunk(self) -> Any:
        return self.lm.decoder.base_model

    def check_images(self, shape: tuple[int, ...] | None) -> None:
        """Insist on pictures of the encoder's size.

        Raises:
            ValueError: The task has others, or none.
        """
        if shape is None:
            raise ValueError(f"{type(self.lm).__name__} reads pictures, and the task's prompts have none: give Prompt(text, image=...)")
        if shape != self.image_shape:
            raise ValueError(
                f"the task's pictures have shape {shape}, the model's encoder reads {self.image_shape}: resize them before they go into "
                "Prompt(image=...), or take an encoder with another image_size"
            )

    def example_images(self, number: int) -> np.ndarray:
        """Return pictures of noise, each another one, shape (number, H, W, 3)."""
        return np.random.default_rng(0).integers(256, size=(number, *self.image_shape), dtype=np.uint8)

    def source_lengths(self, sources: np.ndarray) -> np.ndarray:
        """Return how many patches each picture becomes, shape (B,)."""
        if self._patches is None:
            with torch.no_grad():
                self._patches = self._encode(torch.as_tensor(self.example_images(1), device=self.device)).shape[1]
        return np.full(len(sources), self._patches)

    def model_logits(self, prompts: torch.Tensor) -> torch.Tensor:
        """Return the module's own logits behind each prompt, shape (B, V)."""
        pixels = self._pixels(torch.as_tensor(self.example_images(len(prompts)), device=prompts.device))
        return self.lm(pixel_values=pixels, decoder_input_ids=prompts).logits[:, -1]  # (B, P, V), (B, V)

    def _there(self, images: Any) -> Any:
        """Return the pictures, once it is clear that there are some."""
        if images is None:
            raise ValueError(f"{type(self.lm).__name__} reads pictures, and these texts came without: their prompts need Prompt(image=...)")
        return images

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return pictures (B, H, W, 3), uint8, as the encoder takes them, (B, 3, H, W)."""
        scaling = (getattr(self.lm.config, name, [0.5] * 3) for name in ("image_mean", "image_std"))
        mean, std = (images.new_tensor(numbers, dtype=torch.float32) for numbers in scaling)  # (3,) each
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(self.lm.dtype)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the decoder looks at, shape (B, patches, D)."""
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
