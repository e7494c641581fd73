"""Ratings of single texts by several people each: the comparisons that they hold, and how far people agree with one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from textrl_env.utils.row_files import RowError

from .preference import Preference

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RatedText:
    """A text that people rated.

    Attributes:
        prompt: What it answers; empty if it stands alone.
        text: The response, or the whole text.
        ratings: One a person, higher is better, shape (R,).
    """

    prompt: str
    text: str
    ratings: np.ndarray


@dataclass(frozen=True)
class NoiseCeiling:
    """How often people agree on which of two texts is better: no reward model can be expected to do better.

    Attributes:
        panel: Share of comparisons in which a panel drawn anew from the same ratings prefers the text that the panel prefers: no more than
            that can be asked of a judge, and other people would agree less, since the two share what is chance in the ratings (.75 of
            comparisons of equally good texts with 20 ratings each, where other people have .5).
        rater: Share in which one rating of each text, against the mean of the others, does; half where the two are equal.
        comparisons: How many were counted: those in which the panels' means differ.
    """

    panel: float
    rater: float
    comparisons: int


@dataclass(frozen=True)
class RatingReliability:
    """How far mean ratings of texts are repeatable, and so the most that any judge can agree with them.

    Attributes:
        half: Correlation of the mean ratings by a random half of each text's raters with those by the other half.
        panel: The same of all raters with as many others, 2 half / (1 + half) (Spearman 1910, Brown 1910).
        correlation: The most that a judge can correlate with the mean ratings, the square root of `panel` (Spearman 1904).
        pairs: Share of pairs of texts that this judge orders as the mean ratings do, 1/2 + arcsin(correlation) / pi (Sheppard 1899); exact
            where ratings and errors are normal.
    """

    half: float
    panel: float
    correlation: float
    pairs: float


def has_text_ratings(row: Row) -> bool:
    """Return whether a row holds one text and people's ratings of it."""
    return "text" in row and "ratings" in row and not {"chosen", "responses"} & row.keys()


def rated_text(row: Row) -> RatedText:
    """Read a row with `text`, `ratings` and perhaps `prompt`.

    Raises:
        RowError: The text is no text, or the ratings are not at least one finite number each.
    """
    text, ratings, prompt = row["text"], row["ratings"], row.get("prompt") or ""
    if not isinstance(text, str) or not isinstance(prompt, str):
        raise RowError(f"text={text!r:.60}, prompt={prompt!r:.60}: both must be texts", "text is no text")
    numbers = [r for r in ratings if type(r) in (int, float) and math.isfinite(r)] if isinstance(ratings, list) else []
    if not numbers or len(numbers) < len(ratings):
        raise RowError(f"ratings={ratings!r:.60}: a list of numbers, one a person, is needed", "ratings that are no numbers")
    return RatedText(prompt, text, np.array(numbers, float))


def comparisons_of_ratings(rated: Sequence[RatedText], group_size: int = 6, seed: int = 0) -> list[Preference]:
    """Return comparisons of rated texts: every two of a small group of texts with the same prompt.

    Groups rather than pairs drawn from all texts, so that the comparisons fall apart into many parts without a common text, and can be
    split without a leak.  A comparison's label is the share of pairs of people, one who rated the one text and one who rated the other,
    in which the first rated higher, equal ratings counting half (the statistic of Mann and Whitney 1947, divided by its largest value).
    The difference of mean ratings is in its metadata as `rating_difference`: points of the raters' scale, not the reward's, so it is no
    margin.

    Args:
        rated: The texts; of equal texts for one prompt the ratings are joined.
        group_size: Texts that are compared with one another; the last group of a prompt may be smaller.
        seed: Of the groups.

    Raises:
        ValueError: `group_size` is below 2, or no prompt has two texts.
    """
    if group_size < 2:
        raise ValueError(f"group_size={group_size}: at least 2 texts are compared")
    joined: dict[tuple[str, str], list[np.ndarray]] = {}
    for it in rated:
        joined.setdefault((it.prompt, it.text), []).append(it.ratings)
    by_prompt: dict[str, list[RatedText]] = {}
    for (prompt, text), ratings in joined.items():
        by_prompt.setdefault(prompt, []).append(RatedText(prompt, text, np.concatenate(ratings)))
    rng = np.random.default_rng(seed)
    made = []
    for texts in by_prompt.values():
        order = rng.permutation(len(texts))
        for start in range(0, len(texts), group_size):
            group = [texts[i] for i in order[start : start + group_size]]
            made += [_comparison(a, b) for i, a in enumerate(group) for b in group[i + 1 :]]
    if not made:
        raise ValueError(f"{len(rated)} rated texts hold no comparison: no two different texts have the same prompt")
    return made


def _comparison(one: RatedText, other: RatedText) -> Preference:
    differences = np.sign(one.ratings[:, None] - other.ratings)  # (R, S)
    label = float(0.5 + differences.mean() / 2)
    if label < 0.5:
        return _comparison(other, one)
    metadata = {"rating_difference": float(one.ratings.mean() - other.ratings.mean())}
    return Preference(one.prompt, one.text, other.text, label, metadata=metadata)


def ceiling_of(rated: Sequence[RatedText], comparisons: Sequence[Preference]) -> NoiseCeiling | None:
    """Return the noise ceiling of comparisons of rated texts; None if in none of them the mean ratings differ."""
    ratings: dict[tuple[str, str], list[np.ndarray]] = {}
    for it in rated:
        ratings.setdefault((it.prompt, it.text), []).append(it.ratings)
    pairs = [tuple(np.concatenate(ratings[p.prompt, text]) for text in (p.chosen, p.rejected)) for p in comparisons]
    differ = [(one, other) for one, other in pairs if one.mean() != other.mean()]
    return noise_ceiling(differ) if differ else None


def noise_ceiling(pairs: Sequence[tuple[np.ndarray, np.ndarray]], draws: int = 20, seed: int = 0) -> NoiseCeiling:
    """Return how often people agree with people about which of two texts is better, by mean rating.

    Args:
        pairs: The ratings of the two texts of each comparison, shapes (R,) and (S,).
        draws: Panels, and single ratings, drawn for each comparison.
        seed: Of the draws.

    Raises:
        ValueError: In no comparison do the means differ.
    """
    rng = np.random.default_rng(seed)
    panel, rater = [], []
    for one, other in pairs:
        preferred = np.sign(one.mean() - other.mean())
        if not preferred:
            continue
        again = rng.choice(one, (draws, len(one))).mean(1) - rng.choice(other, (draws, len(other))).mean(1)  # (draws,)
        panel.append(_agreement(again, preferred))
        if len(one) > 1 and len(other) > 1:
            i, j = rng.integers(len(one), size=draws), rng.integers(len(other), size=draws)
            rest = (one.sum() - one[i]) / (len(one) - 1) - (other.sum() - other[j]) / (len(other) - 1)  # (draws,), without the two raters
            rater.append(_agreement(one[i] - other[j], np.sign(rest)))
    if not panel:
        raise ValueError(f"in none of {len(pairs)} comparisons do the mean ratings differ")
    return NoiseCeiling(float(np.mean(panel)), float(np.mean(rater)) if rater else math.nan, len(panel))


def _agreement(differences: np.ndarray, preferred: np.ndarray | float) -> float:
    return float(0.5 + (np.sign(differences) * preferred).mean() / 2)


def rating_reliability(ratings: Sequence[np.ndarray], draws: int = 20, seed: int = 0) -> RatingReliability:
    """Return how far one half of the people predicts the other, and what follows for all of them.

    Args:
        ratings: Of each text, shape (R,); R may differ, and texts with one rating are left out.  Of an odd number one is not used.
        draws: Ways of dealing each text's raters into halves; the mean of their correlations is taken.
        seed: Of the halves.

    Raises:
        ValueError: Fewer than 3 texts have two ratings, or halves do not agree better than by chance.
    """
    several = [given for given in ratings if len(given) > 1]
    if len(several) < 3:
        raise ValueError(f"{len(several)} texts have two ratings or more: 3 are the least that a correlation says something of")
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        dealt = [rng.permutation(given)[: len(given) // 2 * 2].reshape(2, -1).mean(1) for given in several]  # (2,) each
        found.append(np.corrcoef(np.array(dealt).T)[0, 1])
    half = float(np.mean(found))
    if not half > 0:
        raise ValueError(f"the halves correlate by {half:.2f}: these people do not agree, and there is nothing to predict")
    panel = 2 * half / (1 + half)
    return RatingReliability(half, panel, math.sqrt(panel), 0.5 + math.asin(math.sqrt(panel)) / math.pi)
