"""Agreement of annotators (Krippendorff's alpha, raw agreement), and how often each is right (Dawid and Skene's model)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Label = tuple[Hashable, str, int]  # item, annotator, label: 0, 1, ...
Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: np.ndarray, level: Level = "nominal") -> float:
    """Return 1 - (observed disagreement) / (that expected by chance), by the coincidence matrix (Krippendorff 2011).

    Args:
        ratings: Shape (raters, units); NaN where a rater did not rate.
        level: What a difference between two values is: nominal 0 or 1; ordinal by the ranks between them; interval squared.

    Returns:
        1 for agreement, 0 for chance, below 0 for less than that; NaN if no unit was rated twice or all ratings are equal.

    Raises:
        ValueError: The array has not two dimensions, or the level is unknown.
    """
    if ratings.ndim != 2:
        raise ValueError(f"ratings have shape {ratings.shape}: pass (raters, units), with NaN where nobody rated")
    values = np.unique(ratings[~np.isnan(ratings)])  # (V,)
    counts = (ratings[:, :, None] == values).sum(0).astype(float)  # (units, V)
    counts = counts[counts.sum(1) >= 2]
    share = counts / (counts.sum(1, keepdims=True) - 1)
    together = counts.T @ share - np.diag(share.sum(0))  # (V, V): ordered pairs of ratings of one unit
    total = together.sum(0)  # (V,)
    apart = _differences(values, total, level)
    expected = total @ apart @ total
    return float(1 - (total.sum() - 1) * (together * apart).sum() / expected) if expected > 0 else math.nan


def _differences(values: np.ndarray, total: np.ndarray, level: Level) -> np.ndarray:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values) ** 2
    if level == "ordinal":
        middle = np.cumsum(total) - total / 2  # ratings below a value and half of those at it
        return (middle[:, None] - middle) ** 2
    raise ValueError(f"level={level!r} is not one of nominal, ordinal, interval")


def rating_matrix(answers: Sequence[Label]) -> np.ndarray:
    """Return one column for each item with the labels it got, NaN below them; of one annotator's answers to an item the last counts.

    There are as many rows as the most labels of an item, not as annotators: agreement does not ask whose they are, and many people who
    each see a few of many items would fill the memory with NaN.
    """
    given = _by_item(answers)
    matrix = np.full((max(map(len, given.values()), default=0), len(given)), math.nan)
    for column, labels in enumerate(given.values()):
        matrix[: len(labels), column] = list(labels.values())
    return matrix


def raw_agreement(answers: Sequence[Label]) -> dict[Hashable, tuple[int, int]]:
    """Return of each item that several people answered how many pairs of answers are equal, and how many there are."""
    return {
        item: (sum(math.comb(count, 2) for count in Counter(labels.values()).values()), math.comb(len(labels), 2))
        for item, labels in _by_item(answers).items()
        if len(labels) > 1
    }


def _by_item(answers: Sequence[Label]) -> dict[Hashable, dict[str, int]]:
    """Return who gave each item which label, the last one if there are several."""
    given: dict[Hashable, dict[str, int]] = {}
    for item, who, label in answers:
        given.setdefault(item, {})[who] = label
    return given


@dataclass(frozen=True)
class LabelEstimate:
    """What Dawid and Skene's model makes of the answers.

    Attributes:
        posterior: Probability of each label for each item, shape (K,), summing to 1.
        accuracy: Probability that an annotator says the true label, in [0, 1].
        confusion: For each annotator, the probability of saying label j (column) where i (row) is true, shape (K, K).
        prior: Share of the items that have each label, shape (K,); of those that several annotators answered, if there are any.
        iterations: Until the answer stood still.
    """

    posterior: Mapping[Hashable, np.ndarray]
    accuracy: Mapping[str, float]
    confusion: Mapping[str, np.ndarray]
    prior: np.ndarray
    iterations: int


def dawid_skene(
    answers: Sequence[Label], num_labels: int, known: Mapping[Hashable, int] | None = None, smoothing: float = 1.0, most: int = 500
) -> LabelEstimate:
    """Estimate the true labels and every annotator's errors together, by expectation maximisation (Dawid and Skene 1979).

    It starts from the share of votes for each label.  An item that one annotator alone answered teaches nothing about them: it is no part
    of the estimate of tables and prior, and who shares no item with others and has no gold question counts as the mean of those who do.

    Args:
        answers: Labels in 0 .. K - 1; several of one annotator for an item all count.
        num_labels: K, at least 2.
        known: True labels of gold questions.
        smoothing: Answers added to each annotator's tables, `smoothing` of them right and as many spread over the wrong labels.
        most: Iterations at most.

    Raises:
        ValueError: There are no answers, K < 2, or a label is out of range.
    """
    if not answers or num_labels < 2:
        raise ValueError(f"{len(answers)} answers with num_labels={num_labels}: at least one answer and two labels are needed")
    if not all(0 <= a[2] < num_labels for a in answers) or not all(0 <= label < num_labels for label in (known or {}).values()):
        raise ValueError(f"labels must be in 0 .. {num_labels - 1}")
    names = list(dict.fromkeys(a[0] for a in answers))
    people = sorted({a[1] for a in answers})
    item_of, who_of = ({x: i for i, x in enumerate(xs)} for xs in (names, people))
    item, who, said = np.array([(item_of[i], who_of[w], label) for i, w, label in answers]).T  # (M,) each
    fixed = {item_of[i]: label for i, label in (known or {}).items() if i in item_of}
    right = np.eye(num_labels)
    posterior = np.zeros((len(names), num_labels))  # (N, K)
    np.add.at(posterior, item, right[said])
    posterior /= posterior.sum(1, keepdims=True)
    pseudo = smoothing * (right + (1 - right) / (num_labels - 1))  # (K, K)
    teaches = np.bincount(np.unique([item, who], axis=1)[0], minlength=len(names)) > 1  # (N,): several people answered
    teaches[list(fixed)] = True
    counted = teaches[item]  # (M,)
    known_people = np.isin(np.arange(len(people)), who[counted])  # (A,)
    of_prior = teaches if teaches.any() else ~teaches
    iteration = 0
    for iteration in range(1, most + 1):  # noqa: B007 - told in the result
        for i, label in fixed.items():
            posterior[i] = right[label]
        prior = (posterior[of_prior].sum(0) + smoothing) / (of_prior.sum() + num_labels * smoothing)  # (K,)
        counts = np.zeros((len(people), num_labels, num_labels))  # (A, said, true)
        np.add.at(counts, (who[counted], said[counted]), posterior[item[counted]])
        tables = counts.transpose(0, 2, 1) + pseudo  # (A, true, said)
        confusion = tables / tables.sum(2, keepdims=True)  # (A, K, K)
        if known_people.any():
            confusion[~known_people] = confusion[known_people].mean(0)
        logs = np.tile(np.log(prior), (len(names), 1))  # (N, K)
        np.add.at(logs, item, np.log(confusion)[who, :, said])
        new = np.exp(logs - logs.max(1, keepdims=True))
        new /= new.sum(1, keepdims=True)
        for i, label in fixed.items():
            new[i] = right[label]
        moved = float(np.abs(new - posterior).max())
        posterior = new
        if moved < 1e-8:
            break
    accuracy = np.einsum("k,akk->a", prior, confusion)  # (A,)
    return LabelEstimate(
        dict(zip(names, posterior, strict=True)),
        dict(zip(people, accuracy.tolist(), strict=True)),
        dict(zip(people, confusion, strict=True)),
        prior,
        iteration,
    )
