"""Encoder-decoder models of transformers: the prompt is the source, the response is what the decoder writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EncoderDecoderCache

from ..sequences import PartialTexts, SequenceBatch
from .attention_masks import attention_mask
from .base import Fed, full_precision
from .decoder_only import FromTransformers, finish_logits
from .kv_cache import States


class EncoderDecoder(FromTransformers):
    """An encoder reads the prompt once; the decoder begins with its start token, and its token t predicts response token t.

    Raises:
        ValueError: The configuration names no token that decoders start with.
    """

    reads_prompt_apart = True

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)
        config: Any = lm.config
        named = [getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id")]
        start = next((token for token in named if isinstance(token, int)), None)
        if start is None:
            raise ValueError(f"{type(lm).__name__}: set decoder_start_token_id in its configuration, the decoder's first token")
        self.start_token_id = start

    def check_room(self, prompt: int, response: int) -> None:
        """Insist that source and response fit, each by itself."""
        room = self.context_length
        if room is not None and room < max(prompt, response):
            raise ValueError(f"the model reads and writes {room} tokens, the prompt takes {prompt}, the response {response}: shorten them")

    def _side_by_side(self, batch: SequenceBatch) -> torch.Tensor:
        rows = batch.rows  # (N,)
        return self.trunk(batch)[rows, batch.steps].float()  # (B, T, D), (N, D)

    def model_logits(self, prompts: torch.Tensor) -> torch.Tensor:
        """Return the module's own logits of the first response token, shape (B, V)."""
        starts = prompts.new_full((len(prompts), 1), self.start_token_id)  # (B, 1)
        return self.lm(input_ids=prompts, decoder_input_ids=starts).logits[:, -1]  # (B, 1, V), (B, V)

    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        ids, prompts = batch.input_ids, batch.prompt_lengths.clamp(min=1)  # (B, L), (B,); an idle row has a meaningless one
        columns = torch.arange(ids.shape[1], device=ids.device)
        width = int(prompts.max())
        read = (columns[:width] < prompts[:, None]).long()  # (B, P)
        # Decoder ids: the start token, then the response, moved to the left
        moved = (columns[:-1] + prompts[:, None]).clamp(max=ids.shape[1] - 1)  # (B, L - 1)
        starts = ids.new_full((len(ids), 1), self.start_token_id)  # (B, 1)
        decoder_ids = torch.cat([starts, ids.gather(1, moved)], 1)[:, : int(batch.steps.max()) + 1]  # (B, T)
        encoded = self.lm.get_encoder()(input_ids=ids[:, :width] * read, attention_mask=read).last_hidden_state  # (B, P, D)
        return self.lm.get_decoder()(
            input_ids=decoder_ids, encoder_hidden_states=encoded, encoder_attention_mask=read, use_cache=False
        ).last_hidden_state

    def _laid_out(self, batch: SequenceBatch) -> tuple[int, int]:
        lengths, prompts = batch.lengths(), np.maximum(batch.on_host()[2], 1)  # (B,) each; the decoder reads its start token besides
        written = lengths - prompts + 1
        return len(lengths) * int(prompts.max() + written.max()), int(lengths.sum() + len(lengths))

    @property
    def head(self) -> nn.Linear | None:
        """The output embeddings, unless what they read is scaled before."""
        return None if getattr(self.lm.config, "scale_decoder_outputs", False) else super().head

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return raw logits, shape (N, V)."""
        if getattr(self.lm.config, "scale_decoder_outputs", False):  # T5 with tied embeddings
            hidden = hidden * self.lm.config.d_model**-0.5
        with full_precision(hidden.device):
            return finish_logits(self.lm, self.lm.get_output_embeddings()(hidden))

    def written(self, texts: PartialTexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the decoder's start token and the response; the prompts are sources."""
        live = texts.lengths > 0
        responses = texts.lengths - texts.prompt_lengths
        width = texts.ids.shape[1]
        columns = np.minimum(texts.prompt_lengths[:, None] + np.arange(width), width - 1)  # (B, W)
        moved = np.take_along_axis(texts.ids, columns, 1)  # (B, W)
        moved[np.arange(width) >= responses[:, None]] = -1
        starts = np.where(live, self.start_token_id, -1)[:, None]  # (B, 1)
        sources = np.where(np.arange(width) < texts.prompt_lengths[:, None], texts.ids, -1)  # (B, W)
        return np.concatenate([starts, moved], 1), np.where(live, responses + 1, 0), sources[:, : max(int(texts.prompt_lengths.max()), 1)]

    def feed(self, fed: Fed, states: States) -> torch.Tensor:
        """Run tokens through the decoder with the cache; rows that come with a source go through the encoder first."""
        plan, rows = states.plan, len(fed.ids)
        cache = EncoderDecoderCache(states.cache, states.cross)
        cache.is_updated = dict.fromkeys(range(len(states.cross.layers)), fed.sources is None)
        with self.precision(), own_positions(self.lm.get_decoder(), fed.positions):
            if fed.sources is not None:
                read = fed.sources >= 0  # (r, P)
                encoder = self.lm.get_encoder()
                encoded = encoder(input_ids=fed.sources.clamp(min=0), attention_mask=read.long()).last_hidden_state
            else:
                assert fed.seen is not None
                read = fed.seen
                encoded = torch.zeros(1, device=fed.ids.device).expand(rows, read.shape[1], self.hidden_size)  # never read
            out = self.lm.get_decoder()(
                input_ids=fed.ids,
                attention_mask=attention_mask(self.lm.config, fed.positions, fed.ids.shape[1] if plan.fresh else plan.width, self.lm.dtype),
                encoder_hidden_states=encoded,
                encoder_attention_mask=read.long(),
                past_key_values=cache,
                use_cache=True,
            )
        return out.last_hidden_state.float()


@contextmanager
def own_positions(decoder: Any, positions: torch.Tensor) -> Iterator[None]:
    """Give each row of the decoder positions of its own: these models take one position for the whole batch."""
    hooks, changed = [], []
    for module in decoder.modules():
        if getattr(module, "has_relative_attention_bias", False):  # T5: a bias by distance
            module.compute_bias = _relative_bias(module, positions)
            changed.append(module)
        elif module is getattr(decoder, "embed_positions", None):  # BART: an embedding, learned or sinusoidal
            hooks.append(decoder.embed_positions.register_forward_hook(_embed(positions)))
    try:
        yield
    finally:
        for module in changed:
            del module.compute_bias
        for hook in hooks:
            hook.remove()


def _relative_bias(attention: Any, positions: torch.Tensor) -> Any:
    def compute_bias(query_length: int, key_length: int, device: Any = None, past_seen_tokens: int = 0) -> torch.Tensor:
        distance = torch.arange(key_length, device=positions.device) - positions[:, :, None]  # (r, k, columns)
        buckets = attention._relative_position_bucket(
            distance,
            bidirectional=not attention.is_decoder,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        return attention.relative_attention_bias(buckets).permute(0, 3, 1, 2)  # (r, H, k, columns)

    return compute_bias


def _embed(positions: torch.Tensor) -> Any:
    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(positions + getattr(module, "offset", 0), module.weight)

    return hook
