"""The Bradley-Terry model of pairwise choice: its loss, its accuracy, scorers of texts, and how they are fitted.

P(a is preferred to b) = sigmoid(score(a) - score(b))  (Bradley and Terry 1952; as a reward model, Ziegler et al. 2019).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# keys of a config that could make transformers fetch or run code
_UNSAFE_KEYS = {"auto_map", "attn_implementation", "_attn_implementation", "quantization_config"}
_HASH_PRIME = 2**31 - 1  # keeps the products below far from the end of int64


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(chosen - rejected), a scalar, in nats; log 2 when the scores say nothing.

    Args:
        chosen: Scores of the preferred texts, shape (B,).
        rejected: Scores of the others, shape (B,).

    Raises:
        ValueError: The shapes differ (broadcasting would compare every text with every other), or B is 0.
    """
    return nn.functional.softplus(-_margin(chosen, rejected)).mean()


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Return the share of pairs whose preferred text scores higher, in [0, 1]; a tie counts as one half.

    Args:
        chosen: Scores of the preferred texts, shape (B,).
        rejected: Scores of the others, shape (B,).

    Raises:
        ValueError: The shapes differ, or B is 0.
    """
    margin = _margin(chosen, rejected)  # (B,)
    return float(((margin > 0).double() + 0.5 * (margin == 0).double()).mean())


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
        trunk: A folder with safetensors weights, or plain data such as `{"model_type": "llama", "hidden_size": 64}`.
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
        body = AutoModel.from_pretrained(str(trunk), dtype=torch.float32, **safe)
    if vocab_size > body.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {vocab_size} ids and the trunk's embedding {body.config.vocab_size}: "
            "pass the tokenizer that the trunk was trained with"
        )
    longest = getattr(body.config, "max_position_embeddings", max_tokens)
    if max_tokens > longest:
        raise ValueError(f"max_tokens={max_tokens} exceeds the {longest} positions of the trunk: lower it")
    return body


def blend_weights(margins: Tensor) -> Tensor:
    """Return the weights >= 0 of two scorers whose weighted sum has the lowest Bradley-Terry loss on held-out pairs.

    A grid over the share of each and the common scale: two numbers need no optimiser, and the grid keeps them finite
    where the pairs are separable.

    Args:
        margins: score(chosen) - score(rejected) by either scorer, shape (B, 2).

    Returns:
        Weights, shape (2,).
    """
    size = margins.double().square().mean(0).sqrt().clamp(min=1e-8)  # (2,)
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)  # (S,)
    scales = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)  # (C,)
    mix = torch.stack([1 - shares, shares], 1)  # (S, 2)
    grid = (scales[:, None, None] * mix).flatten(0, 1)  # (C*S, 2)
    losses = nn.functional.softplus(-(margins.double() / size) @ grid.T).mean(0)  # (C*S,)
    return (grid[losses.argmin()] / size).float()


@dataclass(frozen=True, slots=True)
class PairRows:
    """Token ids of pairs: `chosen[i]` was preferred to `rejected[i]`; each row has shape (t,), int64, t > 0."""

    chosen: Sequence[np.ndarray]
    rejected: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.chosen)

    def scores(self, scorer: nn.Module, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Score both sides with dropout off, each of shape (len(self),)."""
        both = score_rows(scorer, [*self.chosen, *self.rejected], batch_size, device)  # (2N,)
        return both[: len(self)], both[len(self) :]


def fit_scorer(
    scorer: nn.Module,
    train: PairRows,
    held_out: PairRows,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[list[float], int]:
    """Fit `scorer(ids, mask)` to pairs in place and keep its best epoch on `held_out` (accuracy, then loss).

    AdamW; the learning rate rises over the first tenth of the steps and then falls to 0 in a straight line.

    Returns:
        The mean training loss of each epoch, and the number of the epoch that was kept, from 1.

    Raises:
        ValueError: The loss is no longer finite.
    """
    device = next(scorer.parameters()).device
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    steps = epochs * math.ceil(len(train) / batch_size)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / (0.1 * steps), 1.0) * (1 - k / steps))
    losses, best, best_epoch, best_state = [], (-1.0, 0.0), 0, scorer.state_dict()
    for epoch in range(1, epochs + 1):
        total = 0.0
        batches = _batches(train, batch_size, generator)
        scorer.train()
        for number, rows in enumerate(batches, 1 + (epoch - 1) * len(batches)):
            n = len(rows)
            texts = [train.chosen[i] for i in rows] + [train.rejected[i] for i in rows]
            scores = scorer(*pad(texts, device))  # (2n,)
            loss = bradley_terry_loss(scores[:n], scores[n:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            rate.step()
            total += n * loss.item()
            if progress is not None:
                progress(number, steps, loss.item())
        if not math.isfinite(total):
            raise ValueError(f"the loss became {total} in epoch {epoch}: lower the learning rate ({learning_rate})")
        losses.append(total / len(train))
        chosen, rejected = held_out.scores(scorer, batch_size, device)
        result = (pair_accuracy(chosen, rejected), -bradley_terry_loss(chosen, rejected).item())
        if result > best:
            best, best_epoch, best_state = result, epoch, copy.deepcopy(scorer.state_dict())
    scorer.load_state_dict(best_state)
    scorer.eval()
    return losses, best_epoch


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


def _batches(pairs: PairRows, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    # pairs of like length share a batch (sorted within windows of 16 batches); else half the time goes into padding
    size = [max(len(c), len(r)) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    window = 16 * batch_size
    windows = [sorted(order[k : k + window], key=size.__getitem__) for k in range(0, len(order), window)]
    batches = [rows[k : k + batch_size] for rows in windows for k in range(0, len(rows), batch_size)]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]


def _margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"scores {tuple(chosen.shape)} and {tuple(rejected.shape)}: both must have shape (B,), B > 0")
    return chosen - rejected
