"""From several people's answers to one label: by counting them, or by how reliable each of them is."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import partial

from textrl_env.reward_warnings import RewardWarning

from .preference import Preference
from .rater_agreement import Label, LabelEstimate, dawid_skene, krippendorff_alpha, rating_matrix

LOW_ALPHA = 0.2  # below it answers have little in common; Krippendorff asks for 0.667 before conclusions are drawn

Pair = tuple[str, str, str]  # prompt and the two responses, in the order of their hashes


def votes(preferences: Sequence[Preference]) -> list[tuple[Pair, str, int]]:
    """Return one answer for each comparison: the label is 0 or 1 for the preferred response of the pair, 2 for a tie.

    The order of a pair has nothing to do with what is written in it, so that what annotators agree on by chance is not mistaken.
    """
    answers: list[tuple[Pair, str, int]] = []
    for p in preferences:
        first, second = sorted((p.chosen, p.rejected), key=partial(_lot, p.prompt))
        answers.append(((p.prompt, first, second), p.annotator or "", 2 if p.is_tie else int(p.chosen == second)))
    return answers


def _lot(prompt: str, response: str) -> bytes:
    return hashlib.sha256(f"{prompt}\0{response}".encode("utf-8", "surrogatepass")).digest()


def agreement(preferences: Sequence[Preference]) -> float:
    """Return Krippendorff's alpha of comparisons, ties being a label of their own; NaN if no pair was compared twice."""
    return krippendorff_alpha(rating_matrix([*votes(preferences)]))


def warn_of_disagreement(preferences: Sequence[Preference]) -> None:
    """Warn if annotators who compared the same pairs agree little more than chance would."""
    named = [p for p in preferences if p.annotator is not None]
    if len({p.annotator for p in named}) < 2:
        return
    alpha = agreement(named)
    if alpha < LOW_ALPHA:
        warnings.warn(
            f"annotators agree little: Krippendorff's alpha is {alpha:.2f}, below {LOW_ALPHA}; look at `textrl feedback report`, or weigh "
            "the answers with rewards.preferences.label_consensus.consensus",
            RewardWarning,
            stacklevel=3,
        )


def estimate(preferences: Sequence[Preference], known: Mapping[Pair, int] | None = None) -> LabelEstimate:
    """Fit Dawid and Skene's model to comparisons; `known` has the right label of gold questions, as `votes` numbers them."""
    answers: list[Label] = [*votes(preferences)]
    truth: dict[Hashable, int] = {pair: label for pair, label in (known or {}).items()}
    return dawid_skene(answers, 3 if any(a[2] == 2 for a in answers) else 2, truth)


def consensus(preferences: Sequence[Preference], weigh: bool = True, known: Mapping[Pair, int] | None = None) -> list[Preference]:
    """Return one comparison for each pair, labelled with the probability that its chosen response is the better one.

    Args:
        preferences: Answers of several annotators; answers without one count as those of one person.
        weigh: Dawid and Skene's posterior, in which reliable annotators count for more; else the share of the votes.
        known: Right labels of gold questions, as `votes` numbers them.
    """
    groups: dict[Pair, list[Preference]] = defaultdict(list)
    labels: dict[Pair, list[int]] = defaultdict(list)
    for preference, (pair, _, label) in zip(preferences, votes(preferences), strict=True):
        groups[pair].append(preference)
        labels[pair].append(label)
    posterior = estimate(preferences, known).posterior if weigh else {}
    merged = []
    for pair, own in groups.items():
        if weigh:
            chance = posterior[pair]
            second = float(chance[1] + (chance[2] / 2 if len(chance) > 2 else 0))
        else:
            second = sum((label == 1) + 0.5 * (label == 2) for label in labels[pair]) / len(own)
        _, x, y = pair
        chosen, rejected = (y, x) if second >= 0.5 else (x, y)
        merged.append(Preference(own[0].prompt, chosen, rejected, min(1.0, max(second, 1 - second)), group=own[0].group))
    return merged
