"""Networks that score texts: words and word pairs, a transformer trunk, and their blend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from textrl_env.utils.model_files import model_folder
from textrl_env.utils.suggestions import insist_on_path

# keys of a config that could make transformers fetch or run code
_UNSAFE_KEYS = {"auto_map", "attn_implementation", "_attn_implementation", "quantization_config"}
_HASH_PRIME = 2**31 - 1  # keeps the products below far from the end of int64


class NgramScorer(nn.Module):
    """A linear Bradley-Terry scorer: one weight for every token and every hashed pair of neighbouring tokens.

    A feature counts once however often it occurs (presence beats frequency for opinions: Pang et al. 2002; token pairs
    help further: Wang and Manning 2012), and the sum is divided by the square root of the number of features, so that
    repeating a good word never pays.

    Args:
        vocab_size: Number of token ids V.
        buckets: Number of hashed pairs N; pairs that collide share a weight.
    """

    def __init__(self, vocab_size: int, buckets: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.buckets = buckets
        self.weight = nn.Parameter(torch.zeros(vocab_size + buckets))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return scores, shape (B,), from token ids, shape (B, T), and a mask that is True on real tokens, (B, T)."""
        none = self.vocab_size + self.buckets
        pairs = (ids[:, :-1] * 1000003 + ids[:, 1:] * 7919 + 17) % _HASH_PRIME % self.buckets  # (B, T-1)
        pairs = (pairs + self.vocab_size).masked_fill(~(mask[:, :-1] & mask[:, 1:]), none)
        features = torch.cat([ids.masked_fill(~mask, none), pairs], 1).sort(1).values  # (B, 2T-1)
        real = features < none
        real[:, 1:] &= features[:, 1:] != features[:, :-1]  # the first of equal features stands for all of them
        weights = self.weight[features.clamp(max=none - 1)] * real  # (B, 2T-1)
        return weights.sum(1) / real.sum(1).clamp(min=1).sqrt()  # (B,)


class TrunkScorer(nn.Module):
    """A transformer without its language-model head, masked mean of its hidden states, a linear head.

    Args:
        trunk: A transformers base model (`AutoModel`) that returns `last_hidden_state`.
        dropout: Probability used on the embeddings and on the pooled state while training, in [0, 1).
    """

    def __init__(self, trunk: Any, dropout: float) -> None:
        super().__init__()
        trunk.config.use_cache = False
        width = trunk.config.hidden_size
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1))  # Stiennon et al. 2020
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return scores, shape (B,), from token ids, shape (B, T), and a mask that is True on real tokens, (B, T)."""
        embedded = self.dropout(self.trunk.get_input_embeddings()(ids))  # (B, T, D)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # (B, T); padding is on the right
        output = self.trunk(inputs_embeds=embedded, attention_mask=mask.long(), position_ids=positions)
        weight = mask / mask.sum(1, keepdim=True)  # (B, T)
        pooled = (output.last_hidden_state * weight[..., None]).sum(1)  # (B, D)
        return self.head(self.dropout(pooled)).squeeze(-1)  # (B,)


class PreferenceNetwork(nn.Module):
    """A blend of an n-gram scorer and a trunk scorer; either may be absent.

    Attributes:
        parts: The scorers by name, `"ngrams"` and `"trunk"`.
        blend: Weight of each part in that order, shape (number of parts,).
    """

    def __init__(self, vocab_size: int, ngram_buckets: int, trunk: Any | None, dropout: float) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        if ngram_buckets:
            self.parts["ngrams"] = NgramScorer(vocab_size, ngram_buckets)
        if trunk is not None:
            self.parts["trunk"] = TrunkScorer(trunk, dropout)
        self.blend: Tensor
        self.register_buffer("blend", torch.ones(len(self.parts)))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return scores, shape (B,), from token ids, shape (B, T), and a mask that is True on real tokens, (B, T)."""
        scores = torch.stack([part(ids, mask) for part in self.parts.values()], 1)  # (B, parts)
        return scores @ self.blend  # (B,)


def build_trunk(trunk: str | Path | Mapping[str, Any], vocab_size: int, max_tokens: int) -> Any:
    """Return a base model of transformers: read from a folder, or randomly initialised from its config.

    Args:
        trunk: A folder with safetensors weights, a `.gguf` file, the id of a model on the hub, or plain data such as
            `{"model_type": "llama", "hidden_size": 64}`.
        vocab_size: Number of token ids it must know; a new trunk gets this many unless its config says more.
        max_tokens: Longest text it must read.

    Raises:
        ValueError: `model_type` is missing or unknown, or the trunk is too small for the tokenizer or for the texts.
    """
    from transformers import AutoConfig, AutoModel

    if isinstance(trunk, Mapping):
        settings = {"vocab_size": vocab_size, **{k: v for k, v in trunk.items() if k not in _UNSAFE_KEYS}}
        if "model_type" not in settings:
            raise ValueError(f"the trunk's config needs 'model_type', such as 'llama'; it has {sorted(trunk)}")
        body = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32, trust_remote_code=False)
    else:
        safe = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        insist_on_path(trunk)
        body = AutoModel.from_pretrained(str(model_folder(trunk)), dtype=torch.float32, **safe)
    if vocab_size > body.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocab_size} ids and the trunk's embedding {body.config.vocab_size}: "
            "pass the tokenizer that the trunk was trained with"
        )
    longest = getattr(body.config, "max_position_embeddings", max_tokens)
    if max_tokens > longest:
        raise ValueError(f"max_tokens={max_tokens} exceeds the {longest} positions of the trunk: lower it")
    return body


def pad(rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return right-padded ids, shape (B, T), int64, and the mask of real tokens, shape (B, T), bool."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)  # (B, T)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row)
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def score_rows(network: nn.Module, rows: Sequence[np.ndarray], batch_size: int, device: torch.device) -> Tensor:
    """Score token id rows, neighbours in length together, with dropout off.

    Returns:
        Scores in the order of `rows`, shape (len(rows),), float32, on the CPU.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.zeros(len(rows))  # (N,)
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scores[batch] = network(*pad([rows[i] for i in batch], device)).float().cpu()
    return scores
