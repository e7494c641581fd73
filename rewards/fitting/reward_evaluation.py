"""How well a fitted reward model agrees with comparisons that it never saw: accuracy, calibration, length, subgroups, mistakes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.reward_model import RewardModel, valid_scores

from ..preferences.leak_free_split import independent_units
from ..preferences.preference import Preference, is_decided
from ..utils.intervals import Rate, clustered_by, wins
from .calibration import reliability

_MISTAKES = 10
_MOST_GROUPS = 20  # values of a column that is taken for one of subgroups
_EXCERPT = 600  # characters


@dataclass(frozen=True)
class JudgedComparisons:
    """Test comparisons and what the model makes of them.

    Attributes:
        pairs: All of them, ties too.
        margins: score(chosen) - score(rejected), shape (n,).
        longer: Characters that the chosen response has more than the rejected one, shape (n,).
    """

    pairs: Sequence[Preference]
    margins: np.ndarray
    longer: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Return the probability that chosen is better, shape (n,)."""
        return np.array([pair.label for pair in self.pairs])

    def decided(self) -> JudgedComparisons:
        """Return those that are no ties."""
        rows = np.flatnonzero(is_decided(self.labels)).tolist()
        return JudgedComparisons([self.pairs[i] for i in rows], self.margins[rows], self.longer[rows])

    def accuracy(self, rows: Any = slice(None)) -> Rate:
        """Return how often the likelier response of decided comparisons scores higher, equal scores counting one half.

        The interval takes prompts as the unit, see `independent_units`.
        """
        kept = np.arange(len(self.pairs))[rows]
        kept = kept[is_decided(self.labels[kept])]
        return clustered_by(wins(self.margins[kept]), independent_units([self.pairs[i] for i in kept]))


def judge(model: RewardModel, pairs: Sequence[Preference]) -> JudgedComparisons:
    """Score both responses of each comparison.

    Raises:
        ValueError: All comparisons are ties.
    """
    if all(pair.is_tie for pair in pairs):
        raise ValueError("all comparisons that were kept aside are ties: there is nothing to measure")
    chosen, rejected = (
        valid_scores(model, [Episode.from_text(p.prompt, getattr(p, side)) for p in pairs]) for side in ("chosen", "rejected")
    )
    return JudgedComparisons(pairs, chosen - rejected, np.array([len(p.chosen) - len(p.rejected) for p in pairs]))


def measures(judged: JudgedComparisons, temperature: float) -> dict[str, Any]:
    """Return what the test comparisons say, as plain data: of all for the calibration, of those that are no ties for the rest."""
    calibration = [reliability(judged.margins / t, judged.labels).error for t in (1.0, temperature)]
    judged = judged.decided()
    spread = judged.margins.std() > 0 and judged.longer.std() > 0
    longer_wins = float(wins(judged.longer).mean())
    return {
        "accuracy": asdict(judged.accuracy()),
        "longer_wins": longer_wins,
        "length_rule": {"takes": "longer" if longer_wins >= 0.5 else "shorter", "rate": max(longer_wins, 1 - longer_wins)},
        "length_correlation": float(np.corrcoef(judged.margins, judged.longer)[0, 1]) if spread else 0.0,
        "calibration_error": calibration[0],
        "calibration_error_with_temperature": calibration[1],
        "by_length": [{"part": name, **asdict(judged.accuracy(rows))} for name, rows in _length_parts(judged.longer)],
        "groups": {
            column: [{"part": name, **asdict(judged.accuracy(rows))} for name, rows in parts.items()]
            for column, parts in subgroups(judged.pairs).items()
        },
        "gaps": {column: _gap(judged, parts) for column, parts in subgroups(judged.pairs).items()},
    }


def doubts(facts: Mapping[str, Any]) -> list[str]:
    """Return what should be known before the accuracy in `measures` is believed, in sentences."""
    low, high, length = facts["accuracy"]["low"], facts["accuracy"]["high"], facts["length_rule"]
    found = []
    if high < 0.5:
        found.append("The interval lies below 50%: the model prefers what people reject.")
    if length["rate"] > high:
        found.append(f"Always taking the {length['takes']} response is right more often than the model.")
    elif low <= 0.5:
        found.append("The interval holds 50%: this file has not taught the model anything that can be shown.")
    elif low <= length["rate"]:
        found.append("The interval holds what length alone gives: the model may have learned little else.")
    return found


def _length_parts(longer: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return fifths of the comparisons by how much longer the chosen response is."""
    edges = np.unique(np.quantile(longer, [0.2, 0.4, 0.6, 0.8]))
    index = np.searchsorted(edges, longer, side="right")
    parts = [np.flatnonzero(index == k) for k in range(len(edges) + 1)]
    return [(f"{longer[rows].min():+d} to {longer[rows].max():+d}", rows) for rows in parts if len(rows)]


def subgroups(pairs: Sequence[Preference]) -> dict[str, dict[str, list[int]]]:
    """Return the rows of each subgroup: of `group`, `annotator`, and further columns with 2 to 20 different short texts."""
    columns: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, pair in enumerate(pairs):
        for name, value in pair.columns.items():
            if isinstance(value, (str, bool, int)) and len(str(value)) <= 60:
                columns[name][str(value)].append(row)
    return {name: dict(sorted(parts.items())) for name, parts in columns.items() if 2 <= len(parts) <= _MOST_GROUPS}


def _gap(judged: JudgedComparisons, parts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the subgroups that the model agrees with most and least, the difference, and whether their 95% intervals do not overlap."""
    accuracies = {name: judged.accuracy(rows) for name, rows in parts.items()}
    best, worst = (choose(accuracies, key=lambda name: accuracies[name].rate) for choose in (max, min))
    shown = accuracies[worst].high < accuracies[best].low
    return {"best": best, "worst": worst, "size": accuracies[best].rate - accuracies[worst].rate, "shown": shown}


def mistakes(judged: JudgedComparisons) -> list[dict[str, Any]]:
    """Return the comparisons, without ties, that the model is surest and wrong about."""
    judged = judged.decided()
    worst = [i for i in np.argsort(judged.margins)[:_MISTAKES] if judged.margins[i] < 0]
    return [
        {
            "margin": float(judged.margins[i]),
            "prompt": _end(judged.pairs[i].prompt),
            "chosen": judged.pairs[i].chosen[:_EXCERPT],
            "rejected": judged.pairs[i].rejected[:_EXCERPT],
        }
        for i in worst
    ]


def _end(text: str) -> str:
    return text if len(text) <= _EXCERPT else "... " + text[-_EXCERPT:]
