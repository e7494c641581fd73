"""Comparisons as rows of token ids: pairs and rankings, each with its loss and its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..models.scorers import pad, score_rows
from ..preferences.preference import is_decided
from .losses import bradley_terry_loss, pair_accuracy, plackett_luce_loss

Ids = np.ndarray  # one text, shape (t,), int64, t > 0


class AnnotatorScales(nn.Module):
    """How much each group of annotators heeds the score: P(a over b) = sigmoid(scale * (score(a) - score(b))).

    The scale is an inverse temperature: 0 is chance, large is certainty.  All groups share one score, so that a common factor
    could wander between score and scales: the scales' geometric mean is held at 1.

    Args:
        groups: Number of groups G.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(groups))

    def forward(self, group: Tensor) -> Tensor:
        """Return the scale of each comparison, shape (B,), from the number of its group, shape (B,), int64."""
        return (self.log_scale - self.log_scale.mean()).exp()[group]

    def penalty(self) -> Tensor:
        """Return minus the log density of a standard normal prior on the log scales, for groups with few comparisons."""
        return 0.5 * (self.log_scale - self.log_scale.mean()).square().sum()


class Comparisons(Protocol):
    """What `fit_scorer` fits to."""

    def __len__(self) -> int:
        """Return the number of comparisons."""
        ...

    def sizes(self) -> list[int]:
        """Return the longest text of each, in tokens."""
        ...

    def loss(self, scorer: nn.Module, rows: Sequence[int], device: torch.device, scales: AnnotatorScales | None = None) -> Tensor:
        """Return the mean loss of some of them, a scalar, in nats."""
        ...

    def evaluate(self, scorer: nn.Module, batch_size: int, device: torch.device) -> tuple[float, float]:
        """Return pair accuracy, in [0, 1], and loss, in nats, with dropout off and without margins and scales."""
        ...

    def pairs(self) -> PairRows:
        """Return the pairs that they imply."""
        ...

    def first(self, n: int) -> Comparisons:
        """Return the first n of them."""
        ...


@dataclass(frozen=True, slots=True)
class PairRows:
    """Token ids of pairs: `chosen[i]` was preferred to `rejected[i]`.

    Attributes:
        chosen: Preferred texts.
        rejected: The others.
        label: Probability that the chosen one is the better, shape (N,); None: 1.
        margin: See `bradley_terry_loss`, shape (N,); None: 0.
        group: Number of the annotators' group, shape (N,), int64; None where nobody asks for it.
        smoothing: Share of labels taken to be wrong while learning, in [0, 0.5).
    """

    chosen: Sequence[Ids]
    rejected: Sequence[Ids]
    label: Tensor | None = None
    margin: Tensor | None = None
    group: Tensor | None = None
    smoothing: float = 0.0

    def __len__(self) -> int:
        return len(self.chosen)

    def sizes(self) -> list[int]:
        """Return the longer text of each pair, in tokens."""
        return [max(len(c), len(r)) for c, r in zip(self.chosen, self.rejected, strict=True)]

    def scores(self, scorer: nn.Module, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Score both sides with dropout off, each of shape (len(self),)."""
        both = score_rows(scorer, [*self.chosen, *self.rejected], batch_size, device)  # (2N,)
        return both[: len(self)], both[len(self) :]

    def loss(self, scorer: nn.Module, rows: Sequence[int], device: torch.device, scales: AnnotatorScales | None = None) -> Tensor:
        """Return the Bradley-Terry loss of some pairs, a scalar, in nats."""
        n = len(rows)
        scores = scorer(*pad([self.chosen[i] for i in rows] + [self.rejected[i] for i in rows], device))  # (2n,)
        if scales is not None and self.group is not None:
            scores = scores * scales(self.group[rows].to(device)).repeat(2)
        label, margin = (None if of is None else of[rows].to(device) for of in (self.label, self.margin))
        if self.smoothing:
            label = (1 - 2 * self.smoothing) * (torch.ones(n, device=device) if label is None else label) + self.smoothing
        return bradley_terry_loss(scores[:n], scores[n:], label=label, margin=margin)

    def evaluate(self, scorer: nn.Module, batch_size: int, device: torch.device) -> tuple[float, float]:
        """Return the accuracy on pairs that are no ties (0.5 if all are), and the loss."""
        chosen, rejected = self.scores(scorer, batch_size, device)
        return self.accuracy(chosen, rejected), bradley_terry_loss(chosen, rejected, label=self.label).item()

    def accuracy(self, chosen: Tensor, rejected: Tensor) -> float:
        """Return the pair accuracy of scores, each of shape (len(self),), on pairs that are no ties; 0.5 if all are."""
        decided = self.decided()  # (N,)
        return pair_accuracy(chosen[decided], rejected[decided]) if decided.any() else 0.5

    def decided(self) -> Tensor:
        """Return which pairs are no ties, see `preference.is_decided`, shape (N,), bool."""
        return torch.ones(len(self), dtype=torch.bool) if self.label is None else is_decided(self.label)

    def pairs(self) -> PairRows:
        """Return itself."""
        return self

    def first(self, n: int) -> PairRows:
        """Return the first n pairs."""
        label, margin, group = (None if of is None else of[:n] for of in (self.label, self.margin, self.group))
        return PairRows(self.chosen[:n], self.rejected[:n], label, margin, group, self.smoothing)


@dataclass(frozen=True, slots=True)
class RankingRows:
    """Token ids of rankings.

    Attributes:
        texts: The texts of each, best first.
        group: Number of the annotators' group, shape (N,), int64; None where nobody asks for it.
    """

    texts: Sequence[Sequence[Ids]]
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def sizes(self) -> list[int]:
        """Return the longest text of each ranking, in tokens."""
        return [max(map(len, texts)) for texts in self.texts]

    def loss(self, scorer: nn.Module, rows: Sequence[int], device: torch.device, scales: AnnotatorScales | None = None) -> Tensor:
        """Return the Plackett-Luce loss of some rankings, a scalar, in nats."""
        scores, mask = self._grid(scorer(*pad([ids for i in rows for ids in self.texts[i]], device)), rows)  # (n, K)
        if scales is not None and self.group is not None:
            scores = scores * scales(self.group[rows].to(device))[:, None]
        return plackett_luce_loss(scores, mask)

    def evaluate(self, scorer: nn.Module, batch_size: int, device: torch.device) -> tuple[float, float]:
        """Return the accuracy on the pairs that the rankings imply, and the loss."""
        flat = score_rows(scorer, [ids for texts in self.texts for ids in texts], batch_size, device)  # (total,)
        scores, mask = self._grid(flat, range(len(self)))  # (N, K)
        better, worse = zip(*combinations(range(scores.shape[1]), 2), strict=True)
        real = mask[:, worse]  # (N, K(K-1)/2): the worse one is there only if the better one is
        return pair_accuracy(scores[:, better][real], scores[:, worse][real]), plackett_luce_loss(scores, mask).item()

    def pairs(self) -> PairRows:
        """Return every two texts of a ranking as a pair."""
        chosen, rejected = zip(*(two for texts in self.texts for two in combinations(texts, 2)), strict=True)
        counts = [len(texts) * (len(texts) - 1) // 2 for texts in self.texts]
        group = None if self.group is None else self.group.repeat_interleave(torch.tensor(counts))
        return PairRows(chosen, rejected, group=group)

    def first(self, n: int) -> RankingRows:
        """Return the first n rankings."""
        return RankingRows(self.texts[:n], None if self.group is None else self.group[:n])

    def _grid(self, flat: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(self.texts[i]) for i in rows])
        mask = (torch.arange(int(counts.max())) < counts[:, None]).to(flat.device)  # (n, K)
        return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask
