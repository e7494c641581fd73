"""Which pairs of samples annotators are asked about first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations_with_replacement
from typing import Literal

import numpy as np

from textrl_env.episode import Episode
from textrl_env.reward_model import RewardModel, valid_scores

from ..preferences.label_consensus import lot
from ..preferences.preference import names
from .items import EQUAL, Item, Source, written_by_both

How = Literal["random", "balanced", "uncertain"]


@dataclass(frozen=True)
class Sample:
    """A response that somebody wrote.

    Attributes:
        prompt: What it answers.
        response: The text.
        source: Who wrote it, such as the name of a checkpoint; the names of several who did.
        group: What results are broken down by.
    """

    prompt: str
    response: str
    source: Source = ""
    group: str | None = None


def choose_pairs(
    samples: Sequence[Sample], number: int, how: How = "random", ensemble: Sequence[RewardModel] = (), seed: int = 0
) -> list[Item]:
    """Return pairs of different responses to one prompt, each at most once, those that should be asked first at the front.

    Responses that several sources wrote are pairs of their own, equal to themselves: ties, which stand where they are drawn, are not asked
    (`items.EQUAL`) and do not count towards `number`.

    Args:
        samples: Of one or several sources; with several, pairs of different sources come first.
        number: How many pairs at most.
        how: `random`; `balanced`: the same number for each prompt, as far as its responses go; `uncertain`: where the members of the
            ensemble disagree most about who wins (standard deviation of their probabilities; Lakshminarayanan et al. 2017,
            Gleave and Irving 2022).
        ensemble: At least 2 reward models, for `uncertain`.
        seed: Of the drawing.

    Raises:
        ValueError: `how` is unknown, or an ensemble is missing.
    """
    if how not in ("random", "balanced", "uncertain"):
        raise ValueError(f"how={how!r} is not one of random, balanced, uncertain")
    if how == "uncertain" and len(ensemble) < 2:
        raise ValueError(f"uncertainty is the disagreement of an ensemble: {len(ensemble)} reward models are given, at least 2 are needed")
    rng = np.random.default_rng(seed)
    by_prompt: dict[tuple[str, str | None], dict[str, Sample]] = defaultdict(dict)
    for sample in samples:
        own = by_prompt[sample.prompt, sample.group]
        known = own.get(sample.response, sample)
        own[sample.response] = replace(known, source=written_by_both([known.source], [sample.source])[0])
    # by lot: the same order whatever other samples there are, so that a pair which was asked before is known
    sorted_samples = [sorted(own.values(), key=lambda s: lot(s.prompt, s.response)) for own in by_prompt.values()]
    pairs = [(a, b) for own in sorted_samples for a, b in combinations_with_replacement(own, 2) if a is not b or len(names(a.source)) > 1]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    pairs.sort(key=lambda pair: len({*names(pair[0].source), *names(pair[1].source)}) == 1)  # stable: the drawn order stays
    if how == "balanced":
        pairs = _round_robin(pairs)
    elif how == "uncertain" and pairs:
        pairs = _most_doubtful(pairs, disagreement(pairs, ensemble))
    asked = accumulate(a is not b for a, b in pairs)
    return [
        Item(a.prompt, (a.response, b.response), (a.source, b.source), a.group, EQUAL if a is b else None)
        for (a, b), count in zip(pairs, asked, strict=True)
        if count <= number
    ]


def _most_doubtful(pairs: Sequence[tuple[Sample, Sample]], doubt: np.ndarray) -> list[tuple[Sample, Sample]]:
    """Sort what is asked by doubt, pairs of different sources first; texts that several wrote, of which nobody is asked, stay in place."""
    is_asked = [a is not b for a, b in pairs]
    alike = [len({*names(a.source), *names(b.source)}) == 1 for a, b in pairs]
    order = iter(sorted((i for i, asked in enumerate(is_asked) if asked), key=lambda i: (alike[i], -doubt[i])))
    return [pairs[next(order)] if asked else pair for asked, pair in zip(is_asked, pairs, strict=True)]


def disagreement(pairs: Sequence[tuple[Sample, Sample]], ensemble: Sequence[RewardModel]) -> np.ndarray:
    """Return the standard deviation, over the ensemble, of the probability that the first response wins; shape (pairs,)."""
    first, second = ([Episode.from_text(pair[i].prompt, pair[i].response) for pair in pairs] for i in (0, 1))
    margins = np.array([valid_scores(model, first) - valid_scores(model, second) for model in ensemble])  # (M, pairs)
    return (0.5 * (1 + np.tanh(margins / 2))).std(0)


def _round_robin(pairs: Sequence[tuple[Sample, Sample]]) -> list[tuple[Sample, Sample]]:
    """Deal one pair of each prompt, then the second of each, and so on."""
    turns: dict[str, int] = defaultdict(int)
    keyed = []
    for pair in pairs:
        keyed.append((turns[pair[0].prompt], pair))
        turns[pair[0].prompt] += 1
    return [pair for _, pair in sorted(keyed, key=lambda entry: entry[0])]
