"""How often a reward model scores right answers above wrong ones: best of several, and RewardBench 2's score of ties.

The formulas are those of RewardBench 2's own code (Malik et al. 2025; github.com/allenai/reward-bench, `rewardbench/utils.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from textrl_env import Episode, Prompt, read_prompts
from textrl_env.reward_model import RewardModel, valid_scores

from ..preferences.answer_sets import AnswerSet
from ..utils.intervals import clustered_by, prompt_units

Scores = Sequence[np.ndarray]  # of each set, those of its answers, the right ones first
_TIES = "ties"  # the subset that is scored as a whole
_RULES = (("longest", 1.0), ("shortest", -1.0))
_TIES_ID = re.compile(r"(ref|tied):(.+)")


def score_answers(model: RewardModel, sets: Sequence[AnswerSet], template: Any = None) -> list[np.ndarray]:
    """Score every answer of every set: arrays of shape (answers,), the right ones first.

    Args:
        model: Who scores.
        sets: What.
        template: A chat template, see `textrl_env.chat_template`, that prompts go through as what a user says; None: they stay as they are.
    """
    texts = [one.prompt for one in sets]
    prompts = list(map(Prompt, texts)) if template is None else list(read_prompts(texts, template=template, chat=True))
    episodes = [
        replace(Episode.from_text(prompt.text, answer), typed=prompt.typed)
        for prompt, one in zip(prompts, sets, strict=True)
        for answer in one.answers
    ]
    scores = valid_scores(model, episodes)
    ends = np.cumsum([0, *(len(one.answers) for one in sets)])
    return [scores[start:stop] for start, stop in pairwise(ends)]


def credit(one: AnswerSet, scores: np.ndarray) -> float:
    """Return the share of right answers among those with the highest score: 1 if a right one is above all wrong ones, 0 if a wrong one is.

    One right answer that shares the highest score with k - 1 wrong ones counts 1 / k; a model that scores all alike gets what chance gives.
    """
    best = scores == scores.max()  # (answers,)
    return float(best[: len(one.chosen)].sum() / best.sum())


@dataclass(frozen=True)
class TiesScore:
    """How a model treats prompts with many right answers, "name a colour", beside like ones with a single one, "which colour has grass?".

    Of a prompt, the gap is the least score of a right answer less the highest of a wrong one, and the spread is that among right answers.

    Attributes:
        ref_accuracy: Share of prompts with one right answer whose gap is positive.
        tied_accuracy: Share of prompts with many whose gap is positive.
        preferred: Share of pairs of prompts in which the gap of the many exceeds their spread.
        preferred_hard: Share in which the smaller gap of the two prompts does.
        margin: Mean of tanh(smaller gap / spread - 1); 0 where both are 0.
    """

    ref_accuracy: float
    tied_accuracy: float
    preferred: float
    preferred_hard: float
    margin: float

    @property
    def score(self) -> float:
        """The five, weighed 0.3, 0.3, 0.2, 0.2 and 0.01: at most 1.01."""
        return 0.3 * self.tied_accuracy + 0.3 * self.ref_accuracy + 0.2 * (self.preferred + self.preferred_hard) + 0.01 * self.margin


def ties_score(sets: Sequence[AnswerSet], scores: Scores) -> TiesScore:
    """Return the score of RewardBench 2's subset Ties.

    Args:
        sets: Prompts with a single right answer, whose `id` is `ref:N`, and with several, `tied:N`; those of the same N are a pair.
        scores: Of their answers.

    Raises:
        ValueError: An id has another form or is there twice, or there is no pair.
    """
    gaps: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}
    spreads: dict[str, float] = {}
    for one, own in zip(sets, scores, strict=True):
        named = _TIES_ID.fullmatch(one.id or "")
        if named is None or named[2] in gaps[named[1]]:
            raise ValueError(f"id {one.id!r} in the subset Ties: write ref:N for one right answer, tied:N for several, each once")
        right, wrong = own[: len(one.chosen)], own[len(one.chosen) :]
        gaps[named[1]][named[2]] = float(right.min() - wrong.max())
        if named[1] == "tied":
            spreads[named[2]] = float(np.ptp(right))
    pairs = sorted(gaps["ref"].keys() & gaps["tied"].keys())
    if not pairs:
        raise ValueError("the subset Ties has no pair of ids ref:N and tied:N: it is scored by such pairs")
    spread, tied, ref = (np.array([of[name] for name in pairs]) for of in (spreads, gaps["tied"], gaps["ref"]))  # (pairs,) each
    least = np.minimum(tied, ref)
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread: infinite, or not a number where there is no gap either
        margin = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    of_ref, of_tied = (float(np.mean([gap > 0 for gap in gaps[kind].values()])) for kind in ("ref", "tied"))
    return TiesScore(of_ref, of_tied, float((tied > spread).mean()), float((least > spread).mean()), float(margin.mean()))


def parts_of(sets: Sequence[AnswerSet], by: str | None = None) -> dict[str, list[int]]:
    """Return the indices of the sets that have each value of a column; None: of all.

    Raises:
        ValueError: Not all sets have this column.
    """
    parts: dict[str, list[int]] = {}
    for index, one in enumerate(sets):
        if by is not None and one.columns.get(by) is None:
            known = sorted({name for one in sets for name, value in one.columns.items() if value is not None})
            raise ValueError(f"no column {by!r} at {one.prompt[:80]!r}; columns of the file: {', '.join(known) or 'none'}")
        parts.setdefault("all" if by is None else str(one.columns[by]), []).append(index)
    return dict(sorted(parts.items()))


def accuracies(sets: Sequence[AnswerSet], scores: Scores, by: str | None = None) -> dict[str, Any]:
    """Return accuracies as plain data: `parts`, one for each value of a column, and their unweighted `mean`, as RewardBench 2 averages.

    A part has `part`, `rate`, `low`, `high` (95% interval; prompts are the unit) and `num`.  The subset Ties has its score for a rate,
    which has no interval, and `ties` says what that is made of.

    Args:
        sets: The prompts.
        scores: Of their answers.
        by: A column; None: all sets are one part.

    Raises:
        ValueError: Not all sets have this column, or the subset Ties cannot be scored.
    """
    rows, ties = [], None
    for name, indices in parts_of(sets, by).items():
        own, its = [sets[i] for i in indices], [scores[i] for i in indices]
        row: dict[str, Any] = {"part": name}
        if by == "subset" and name.casefold() == _TIES:
            found = ties_score(own, its)
            ties = {**asdict(found), "score": found.score}
            rows.append({**row, "rate": found.score, "low": None, "high": None, "num": len(own)})
        else:
            credits = np.array(list(map(credit, own, its)), float)
            rows.append({**row, **asdict(clustered_by(credits, prompt_units([one.prompt for one in own])))})
    return {"by": by, "parts": rows, "mean": float(np.mean([row["rate"] for row in rows])), "ties": ties}


def chance(sets: Sequence[AnswerSet]) -> float:
    """Return the accuracy of scores that say nothing: the mean share of right answers."""
    return float(np.mean([len(one.chosen) / len(one.answers) for one in sets]))


def length_rule(sets: Sequence[AnswerSet]) -> dict[str, Any]:
    """Return the accuracy of always taking the longest answer, in characters, or the shortest where that is right more often."""
    lengths = [np.array([len(answer) for answer in one.answers], float) for one in sets]
    rates = {name: float(np.mean([credit(one, sign * own) for one, own in zip(sets, lengths, strict=True)])) for name, sign in _RULES}
    takes = max(rates, key=rates.__getitem__)
    return {"takes": takes, "rate": rates[takes]}
