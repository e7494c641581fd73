"""From several people's answers to one label: by counting them, or by how reliable each of them is."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import partial

from textrl_env.reward_warnings import RewardWarning

from .preference import Preference, is_decided, words_of
from .rater_agreement import Label, LabelEstimate, dawid_skene, krippendorff_alpha, rating_matrix

LOW_ALPHA = 0.2  # below it answers have little in common; Krippendorff asks for 0.667 before conclusions are drawn

Pair = tuple[str, str, str]  # prompt and the two responses, in the order of their hashes


def votes(preferences: Sequence[Preference]) -> list[tuple[Pair, str, int]]:
    """Return one answer for each comparison: the label is 0 or 1 for the preferred response of the pair, 2 for a tie.

    The order of a pair has nothing to do with what is written in it, so that what annotators agree on by chance is not mistaken.  Case and
    white space make no other pair of it, unless they are all that its responses differ in.
    """
    answers: list[tuple[Pair, str, int]] = []
    known: dict[tuple[str, frozenset[str]], Pair] = {}
    for p in preferences:
        same = words_of if words_of(p.chosen) != words_of(p.rejected) else str
        first, second = sorted((p.chosen, p.rejected), key=partial(lot, p.prompt))
        pair = known.setdefault((words_of(p.prompt), frozenset(map(same, (first, second)))), (p.prompt, first, second))
        answers.append((pair, p.annotator or "", 2 if p.is_tie else int(same(p.chosen) == same(pair[2]))))
    return answers


def lot(prompt: str, response: str) -> bytes:
    """Return what the responses to a prompt are sorted by, so that their order tells nothing of which is better."""
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

    Its margin is the mean margin of the answers that prefer that response.  Ties and answers for the other response lower the label alone,
    and where the label is that of a tie, or nobody prefers the response, the margin is 0.

    Args:
        preferences: Answers of several annotators; answers without one count as those of one person.
        weigh: Dawid and Skene's posterior, in which reliable annotators count for more; else the mean of the labels, a tie being one half.
        known: Right labels of gold questions, as `votes` numbers them.

    Raises:
        ValueError: With `weigh`, a label is a probability: the model is one of answers; or no pair has answers of two annotators or a known
            label, so that nothing tells who is reliable.
    """
    soft = next((p.label for p in preferences if not p.is_tie and p.label < 1), None)
    if weigh and soft is not None:
        raise ValueError(f"label={soft} is a probability, and Dawid and Skene's model takes answers, 1 or a tie: weigh=False takes means")
    groups: dict[Pair, list[tuple[Preference, int]]] = defaultdict(list)
    people: dict[Pair, set[str]] = defaultdict(set)
    for preference, (pair, who, label) in zip(preferences, votes(preferences), strict=True):
        groups[pair].append((preference, label))
        people[pair].add(who)
    if weigh and preferences and not any(len(own) > 1 or pair in (known or {}) for pair, own in people.items()):
        raise ValueError(
            f"each of {len(groups)} pairs has the answers of one person, and none is a gold question: nothing tells who is reliable; ask "
            "two or three people, or take the answers as they are (weigh=False, export without --consensus)"
        )
    posterior = estimate(preferences, known).posterior if weigh else {}
    merged = []
    for pair, own in groups.items():
        if weigh:
            chance = posterior[pair]
            second = float(chance[1] + (chance[2] / 2 if len(chance) > 2 else 0))
        else:
            second = sum((1 - p.label, p.label, 0.5)[label] for p, label in own) / len(own)
        prompt, x, y = pair
        chosen, rejected = (y, x) if second >= 0.5 else (x, y)
        sure = min(1.0, max(second, 1 - second))
        margins = [p.margin for p, label in own if label == int(second >= 0.5)] if is_decided(sure) else []
        merged.append(Preference(prompt, chosen, rejected, sure, sum(margins) / max(len(margins), 1), group=own[0][0].group))
    return merged
