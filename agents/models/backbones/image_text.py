"""Image-text models of transformers: an encoder's patches stand among the tokens of the text, as in LLaVA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from ..sequences import PartialTexts, SequenceBatch
from ..upload import to_device
from .base import Fed
from .decoder_only import DecoderOnly
from .pictures import ReadsPictures


def is_image_text(config: Any) -> bool:
    """Return whether transformers has an image-text model for a configuration, and no model of text alone."""
    return type(config) in AutoModelForImageTextToText._model_mapping and type(config) not in AutoModelForCausalLM._model_mapping


class ImageText(ReadsPictures, DecoderOnly):
    """A causal language model whose text holds the patches of the prompt's picture.

    They stand where the prompt has the model's token for a picture (`image_token_id` of the configuration), which may be there once, and
    before the prompt if it is not there.  No policy writes that token.  The encoder reads a picture once a text.  Texts are not
    joined.

    Raises:
        ValueError: The model is built otherwise, or its encoder wants more than the pixels of one picture.
    """

    def __init__(self, lm: nn.Module) -> None:
        config: Any = lm.config
        lacks = [name for name in ("image_token_id", "vision_config") if getattr(config, name, None) is None]
        lacks += [name for name in ("language_model", "get_image_features") if not hasattr(lm.base_model, name)]
        if lacks:
            raise ValueError(
                f"model_type {config.model_type!r} has no {' and no '.join(lacks)}: of image-text models those are read that are built as "
                "'llava' is, and models of model_type 'vision-encoder-decoder'"
            )
        super().__init__(lm)
        self.placeholders = (int(config.image_token_id),)

    @classmethod
    def reads(cls, lm: nn.Module) -> bool:
        """Return whether it is such a model."""
        return hasattr(lm, "config") and is_image_text(lm.config)

    @property
    def _encoder_config(self) -> Any:
        return self.lm.config.vision_config

    @property
    def _writer(self) -> Any:
        return self.lm.base_model.language_model

    @property
    def context_length(self) -> int | None:
        """Longest text beside a picture that the positions of the model reach."""
        reach = super().context_length
        return None if reach is None else reach - self.patches

    @property
    def joins(self) -> bool:
        """A joined row would need several pictures."""
        return False

    def source_lengths(self, sources: np.ndarray) -> np.ndarray:
        """Pictures become part of the text: they take no states of their own, shape (B,)."""
        return np.zeros(len(sources), np.int64)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        name = type(self.lm).__name__
        try:
            found = self.lm.base_model.get_image_features(pixel_values=self._pixels(images))
            features = torch.stack(list(getattr(found, "pooler_output", found)))  # (B, patches, D)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            raise ValueError(
                f"the encoder of {name} wants more than the pixels of one picture ({error}): such models are not read"
            ) from error
        if features.shape[1:] != (features.shape[1], self.hidden_size):
            raise ValueError(f"the encoder of {name} makes {tuple(features.shape[1:])} of a picture, not patches of {self.hidden_size}")
        return features

    def _widened(self, ids: np.ndarray, prompts: np.ndarray, fill: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Make room for the picture in each text.

        Args:
            ids: Token ids (B, L).
            prompts: Tokens of each prompt, shape (B,).
            fill: What stands beyond each text.

        Returns:
            The ids (B, L + patches) with the token for a picture at each patch; the column of the first, (B,); and by how many columns
            the tokens from there on moved, (B,).

        Raises:
            ValueError: The token for a picture is in a response, or in a prompt more than once.
        """
        (token,), columns = self.placeholders, np.arange(ids.shape[1])
        held = ids == token  # (B, L)
        often = (held & (columns < prompts[:, None])).sum(1)  # (B,)
        if (often > 1).any() or (held.sum(1) > often).any():
            where = f"a prompt holds it {often.max()} times" if (often > 1).any() else "a response holds it"
            raise ValueError(
                f"token {token} stands for the picture in {type(self.lm).__name__}: a prompt may hold it once, nothing else may; {where}"
            )
        first = np.where(often > 0, held.argmax(1), 0)  # (B,)
        moved = self.patches - often  # (B,)
        there = columns + np.where(columns >= first[:, None], moved[:, None], 0)  # (B, L)
        wide = np.full((len(ids), ids.shape[1] + self.patches), fill, np.int64)
        np.put_along_axis(wide, there, ids, 1)
        inside = np.arange(wide.shape[1]) - first[:, None]
        wide[(inside >= 0) & (inside < self.patches)] = token
        return wide, first, moved

    def _wide_batch(self, batch: SequenceBatch) -> SequenceBatch:
        """Return the batch with room for its pictures."""
        ids, predictor, prompts = batch.on_host()
        wide, first, moved = self._widened(ids, prompts, 0)
        rows, columns = np.divmod(predictor, ids.shape[1])  # (N,) each
        columns = columns + np.where(columns >= first[rows], moved[rows], 0)
        host = (wide, rows * wide.shape[1] + columns, prompts + moved)
        there, predictor_there, prompts_there = to_device(batch.input_ids.device, host)
        return batch._replace(input_ids=there, predictor=predictor_there, prompt_lengths=prompts_there, host=host)

    def _embedded(self, ids: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens (B, L), with those of the pictures in their places, shape (B, L, D)."""
        held = ids == self.placeholders[0]  # (B, L)
        embedded = self.lm.get_input_embeddings()(ids.masked_fill(held, 0))  # (B, L, D)
        return embedded.masked_scatter(held[:, :, None], self._encode(images).to(embedded.dtype))

    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        embedded = self._embedded(batch.input_ids, self._there(batch.images))
        return self._trunk(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def _side_by_side(self, batch: SequenceBatch) -> torch.Tensor:
        return super()._side_by_side(self._wide_batch(batch))

    def model_logits(self, prompts: torch.Tensor) -> torch.Tensor:
        """Return the module's own logits behind each prompt, shape (B, V)."""
        number, length = prompts.shape
        wide, _, moved = self._widened(prompts.cpu().numpy(), np.full(number, length), 0)
        pixels = self._pixels(torch.as_tensor(self.example_images(number), device=prompts.device))
        logits = self.lm(input_ids=torch.as_tensor(wide, device=prompts.device), pixel_values=pixels).logits  # (B, L, V)
        return logits[np.arange(number), length - 1 + moved]

    def written(self, texts: PartialTexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the texts with room for their pictures; the pictures are sources."""
        wide, _, moved = self._widened(texts.ids, texts.prompt_lengths, -1)
        idle = texts.lengths == 0
        wide[idle] = -1
        return wide, np.where(idle, 0, texts.lengths + moved), self._there(texts.images)

    def _inputs(self, fed: Fed) -> dict[str, torch.Tensor]:
        return super()._inputs(fed) if fed.sources is None else {"inputs_embeds": self._embedded(fed.ids, fed.sources)}
