"""Models of choice: Bradley and Terry's of pairs, Plackett and Luce's of rankings; their losses, and how two scorers are blended.

P(a is preferred to b) = sigmoid(score(a) - score(b))  (Bradley and Terry 1952; as a reward model, Ziegler et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, label: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
    """Return the mean of -log sigmoid(chosen - rejected), a scalar, in nats; log 2 when the scores say nothing.

    With labels y it is the cross-entropy -y log sigmoid(d) - (1 - y) log sigmoid(-d) of d = chosen - rejected, so that a tie
    (y = 0.5) pulls the scores together.  With margins m, d is chosen - rejected - m (Touvron et al. 2023, section 3.2.2): pairs
    that differ much must be scored farther apart.

    Args:
        chosen: Scores of the preferred texts, shape (B,).
        rejected: Scores of the others, shape (B,).
        label: Probability that the preferred text is the better one, shape (B,), in [0, 1], or beyond where noise is taken out of labels
            (robust DPO); None: 1.
        margin: Shape (B,), >= 0; None: 0.

    Raises:
        ValueError: The shapes differ (broadcasting would compare every text with every other), or B is 0.
    """
    difference = _margin(chosen, rejected) if margin is None else _margin(chosen, rejected) - margin  # (B,)
    if label is None:
        return nn.functional.softplus(-difference).mean()
    # softplus(d) = softplus(-d) + d: the two logarithms differ by d
    return (nn.functional.softplus(-difference) + (1 - label) * difference).mean()


def plackett_luce_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of rankings, a scalar, in nats (Luce 1959, Plackett 1975).

    P(1 before 2 before ... before K) is the product over i of exp(s_i) / sum over j >= i of exp(s_j): the best is chosen from
    all, then the next best from the rest.  Of two texts it is Bradley and Terry's model.

    Args:
        scores: Scores of the texts, best first, shape (B, K).
        mask: True where there is a text, all of a row's before its padding, shape (B, K).

    Raises:
        ValueError: The shapes are not (B, K), or B is 0.
    """
    if scores.shape != mask.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores {tuple(scores.shape)} and mask {tuple(mask.shape)}: both must have shape (B, K), B > 0")
    lowest = torch.finfo(scores.dtype).min / 4  # the gradient of logcumsumexp at -inf is NaN
    rest = scores.masked_fill(~mask, lowest).flip(1).logcumsumexp(1).flip(1)  # (B, K): over this text and all after it
    return ((rest - scores) * mask).sum(1).mean()


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


def blend_weights(differences: Tensor, *, label: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
    """Return the weights >= 0 of two scorers whose weighted sum has the lowest `bradley_terry_loss` on held-out pairs.

    A grid over the share of each and the common scale: two numbers need no optimiser, and the grid keeps them finite
    where the pairs are separable.

    Args:
        differences: score(chosen) - score(rejected) by either scorer, shape (B, 2).
        label: See `bradley_terry_loss`, shape (B,).
        margin: See `bradley_terry_loss`, shape (B,).

    Returns:
        Weights, shape (2,).
    """
    size = differences.double().square().mean(0).sqrt().clamp(min=1e-8)  # (2,)
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)  # (S,)
    scales = 2.0 ** torch.arange(-6, 4, dtype=torch.float64)  # (C,): labels near one half ask for small ones
    mix = torch.stack([1 - shares, shares], 1)  # (S, 2)
    grid = (scales[:, None, None] * mix).flatten(0, 1)  # (C*S, 2)
    nothing = torch.zeros(len(differences), dtype=torch.float64)
    mixed = (differences.double() / size) @ grid.T  # (B, C*S)
    losses = torch.stack([bradley_terry_loss(mix, nothing, label=label, margin=margin) for mix in mixed.T])  # (C*S,)
    return (grid[losses.argmin()] / size).float()


def _margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"scores {tuple(chosen.shape)} and {tuple(rejected.shape)}: both must have shape (B,), B > 0")
    return chosen - rejected
