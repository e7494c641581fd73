"""The Bradley-Terry model of pairwise choice: its loss, its accuracy, a linear scorer, a blend of scorers.

P(a is preferred to b) = sigmoid(score(a) - score(b))  (Bradley and Terry 1952; as a reward model, Ziegler et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def _margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"scores of shape {tuple(chosen.shape)} and {tuple(rejected.shape)}: both must be (B,) with B > 0")
    return chosen - rejected
