"""Whether a reward model's probabilities mean what they say, and how sure an accuracy is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_COOLEST, _HOTTEST = 0.01, 100.0


Values = np.ndarray


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often the side that a model favours was preferred, by the model's confidence.

    Attributes:
        confidence: Mean probability of the favoured side in each bin, shape (K,), in [0.5, 1]; NaN in empty bins.
        frequency: Share of pairs in which it was preferred, ties counting one half, shape (K,); NaN in empty bins.
        count: Pairs in each bin, shape (K,).
    """

    confidence: Values
    frequency: Values
    count: Values

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean |confidence - frequency| over pairs, in [0, 1]."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.frequency))
        return float((gaps * self.count).sum() / self.count.sum())


def reliability(margins: Values, labels: Values, bins: int = 10) -> Reliability:
    """Compare the probabilities of a Bradley-Terry model with what was preferred.

    Args:
        margins: score(chosen) - score(rejected), shape (N,), N > 0.
        labels: Probability that chosen is better, shape (N,); 0.5 for ties.
        bins: Number K of bins of equal width over [0.5, 1].

    Raises:
        ValueError: The shapes differ, or N is 0.
    """
    _check(margins, labels)
    confidence = 1 / (1 + np.exp(-np.minimum(np.abs(margins), 500.0)))  # (N,), of the favoured side
    preferred = np.where(margins == 0, 0.5, np.where(margins > 0, labels, 1 - labels))  # (N,)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)  # (N,)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, values, bins) / count for values in (confidence, preferred)]
    return Reliability(means[0], means[1], count)


def fit_temperature(margins: Values, labels: Values) -> float:
    """Return the temperature T > 0 that gives sigmoid(margin / T) the lowest cross-entropy (Guo et al. 2017).

    The loss is convex in 1 / T, so that halving the interval in which its slope changes sign finds the minimum; T is held in
    [0.01, 100], where pairs that are all right (or worse than chance) would drive it to 0 (or to infinity).  Margins that are all 0
    say nothing, and give 1.

    Args:
        margins: score(chosen) - score(rejected), shape (N,), N > 0.
        labels: Probability that chosen is better, shape (N,).

    Raises:
        ValueError: The shapes differ, or N is 0.
    """
    _check(margins, labels)

    def slope(temperature: float) -> float:  # d loss / d (1 / T)
        odds = np.clip(margins / temperature, -500.0, 500.0)
        return float((margins * (1 / (1 + np.exp(-odds)) - labels)).mean())

    if not margins.any():
        return 1.0
    low, high = math.log(_COOLEST), math.log(_HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:  # too sure: warmer
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def fit_scales(margins: Values, labels: Values, group: Values, groups: int) -> list[float]:
    """Return how much each group of annotators heeds the score, see `comparisons.AnnotatorScales`; the geometric mean is 1.

    The scale of a group is the factor on the inverse temperature of all pairs that its own pairs are likeliest under, with a
    standard normal prior on its logarithm for groups of few pairs.

    Args:
        margins: score(chosen) - score(rejected), shape (N,), N > 0.
        labels: Probability that chosen is better, shape (N,).
        group: Number of the group, shape (N,), in [0, groups).
        groups: Number G of groups; one without pairs is taken for an average one.
    """
    odds = margins / fit_temperature(margins, labels)  # (N,)
    grid = np.linspace(-4, 4, 161)  # log scales, 5% apart
    chosen = []
    for g in range(groups):
        scaled = np.exp(grid)[:, None] * odds[group == g]  # (161, n)
        losses = np.logaddexp(0, -scaled) + (1 - labels[group == g]) * scaled  # (161, n)
        chosen.append(grid[(losses.sum(1) + grid**2 / 2).argmin()])
    return np.exp(np.array(chosen) - np.mean(chosen)).tolist()


def _check(margins: Values, labels: Values) -> None:
    if margins.shape != labels.shape or margins.ndim != 1 or not len(margins):
        raise ValueError(f"margins {margins.shape} and labels {labels.shape}: both must have shape (N,), N > 0")
