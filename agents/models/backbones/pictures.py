"""What models that read the prompt's picture have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .decoder_only import FromTransformers


class ReadsPictures(FromTransformers):
    """A model of transformers with an encoder for pictures of one size.

    Pixels are divided by 255, less `image_mean`, divided by `image_std` (of the configuration, one number a colour; 0.5 without), as
    transformers' image processors do; sizes are the model's own.

    Attributes:
        image_shape: (H, W, 3) of the pictures that the encoder reads.

    Raises:
        ValueError: The encoder does not say which pictures it reads, or reads others than colour pictures.
    """

    reads_images = True

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)
        config = self._encoder_config
        size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
        if not isinstance(size, (int, list, tuple)) or channels != 3:
            raise ValueError(
                f"the encoder of {type(self.lm).__name__} has image_size={size} and num_channels={channels} in its configuration: it must "
                "read colour pictures of one size, as a ViT does"
            )
        height, width = (size, size) if isinstance(size, int) else size
        self.image_shape = (height, width, 3)
        self._patches: int | None = None

    @property
    def _encoder_config(self) -> Any:
        raise NotImplementedError

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the text is written from, of pictures (B, H, W, 3), uint8; shape (B, patches, D)."""
        raise NotImplementedError

    @property
    def patches(self) -> int:
        """How many states a picture becomes."""
        if self._patches is None:
            with torch.no_grad():
                self._patches = self._encode(torch.as_tensor(self.example_images(1), device=self.device)).shape[1]
        return self._patches

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
