"""Several reward models as one: sum, product, minimum, ensemble, and gold beside proxy.

Each keeps what its terms said of the last batch in `last_terms`, which environments hand on as `info["reward_terms"]` and training
logs as `reward/...`.  A term is anything that an environment takes as its reward.  A term that scores a text None does not apply to it:
the others alone make up its score, and the log has the share of texts that each term applied to (`reward_applied/...`).  Where no term
applies, the combination does not either; an environment refuses a text without a score.
"""

from __future__ import annotations

import itertools
import math
import numbers
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import see_prompts
from textrl_env.reward_model import DENSE, Begun, RewardModel, as_reward_model, begin_scoring, checked_scores, terms_of, valid_scores
from textrl_env.reward_warnings import EVIDENCE, RewardWarning

from ..utils.base_reward import BaseReward

Weight = float | Sequence[Sequence[float]]


class Combination(BaseReward):
    """What all combinations share.

    Args:
        terms: Reward models by name.

    Attributes:
        last_terms: Each term's scores of the last batch, shape (n,), by name, NaN where it did not apply; those of a term's own terms as
            `name/term`.

    Raises:
        TypeError: `terms` is no mapping of names to rewards.
        ValueError: It is empty, or a term scores steps or turns, which only sums pass on.
    """

    name = "combination"
    dense = False  # whether terms may score unfinished texts

    def __init__(self, terms: Mapping[str, Any]) -> None:
        if not isinstance(terms, Mapping) or not all(isinstance(name, str) for name in terms):
            raise TypeError(f"{self.name}: terms={terms!r} must map names to rewards, as in {{'sentiment': 'vader'}}")
        if not terms:
            raise ValueError(f"{self.name} needs at least one term")
        self.terms: dict[str, RewardModel] = {name: as_reward_model(reward) for name, reward in terms.items()}
        self.last_terms: dict[str, np.ndarray] = {}
        self._unapplied = dict.fromkeys(self.terms, 0)  # texts seen of each term that did not apply to any yet
        pass_on_begin(self, self.terms.values())
        if not self.dense:
            for model in self.terms.values():
                refuse_dense(model, self.name)

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if a term cannot score texts of these prompts."""
        for model in self.terms.values():
            see_prompts(model, prompts, num_rows)

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return one score per episode, in order; None where no term applies."""
        self.last_terms = {name: valid_scores(model, episodes, optional=True) for name, model in self.terms.items()}
        scores = np.ma.masked_invalid([*self.last_terms.values()])  # (terms, n)
        self._watch(episodes)
        for name, model in self.terms.items():
            self.last_terms |= {f"{name}/{inner}": values for inner, values in terms_of(model, len(episodes)).items()}
        return self._combined(scores).tolist()  # None where masked

    def _combined(self, scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
        """Go from (terms, n), masked where a term does not apply, to (n,)."""
        raise NotImplementedError

    def _watch(self, episodes: Sequence[Episode]) -> None:
        """Warn of a term that applied to none of the first texts."""
        for name in [*self._unapplied]:
            self._unapplied[name] += len(episodes)
            if not np.isnan(self.last_terms[name]).all():
                del self._unapplied[name]
            elif self._unapplied[name] >= EVIDENCE:
                seen, shown = self._unapplied.pop(name), ", ".join(repr(e.prompt + e.response)[:200] for e in episodes[:3])
                message = f"{self.name}: term {name!r} gave None ('does not apply') to each of the first {seen} texts, among them {shown}"
                warnings.warn(message, RewardWarning, stacklevel=3)

    def get_state(self) -> dict[str, Any]:
        """Return the states of the terms that have one, as plain data."""
        return {name: state for name, model in self.terms.items() if (state := state_of(model)) is not None}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Undo `get_state`."""
        for name, model in self.terms.items():
            if name in state:
                model.set_state(state[name])  # type: ignore[attr-defined]  # it had one

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={model!r}' for name, model in self.terms.items())})"


class SumReward(Combination):
    """A weighted sum.  Terms that score steps or turns do so here too, with the same weight.

    Args:
        terms: Reward models by name.
        weights: Their weights by name, 1 where none is given.  A weight may change while texts are scored, for a curriculum: a list
            of `[texts, weight]` means that weight once so many texts were scored, a straight line between, and the first and last
            weight before and after.

    Raises:
        TypeError: `terms` is no mapping.
        ValueError: A weight belongs to no term, is no finite number, or its texts do not rise.
    """

    name = "sum"
    dense = True

    def __init__(self, terms: Mapping[str, Any], weights: Mapping[str, Weight] | None = None) -> None:
        super().__init__(terms)
        weights = weights or {}
        unknown = sorted(set(weights) - set(self.terms))
        if unknown:
            raise ValueError(f"sum: weights for {', '.join(unknown)}, but the terms are {', '.join(self.terms)}")
        self._lines = {name: _line(name, weights.get(name, 1.0)) for name in self.terms}
        self.num_texts = 0
        for method in DENSE:
            if any(hasattr(model, method) for model in self.terms.values()):
                setattr(self, method, partial(self._dense, method))

    @property
    def weights(self) -> dict[str, float]:
        """The weights now."""
        return {name: float(np.interp(self.num_texts, *line)) for name, line in self._lines.items()}

    def _combined(self, scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
        total = (np.array([*self.weights.values()])[:, None] * scores).sum(0)
        self.num_texts += len(total)
        return total

    def _dense(self, method: str, episodes: Sequence[Episode]) -> list[float]:
        weights, total = self.weights, np.zeros(len(episodes))
        for name, model in self.terms.items():
            if hasattr(model, method):
                total += weights[name] * checked_scores(model, episodes, method)
        return total.tolist()

    def get_state(self) -> dict[str, Any]:
        """Return how many texts were scored, if a weight depends on it, and the states of the terms."""
        counted = {"num_texts": self.num_texts} if any(len(texts) > 1 for texts, _ in self._lines.values()) else {}
        return {**counted, "terms": super().get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Undo `get_state`."""
        self.num_texts = int(state.get("num_texts", 0))
        super().set_state(state["terms"])


class ProductReward(Combination):
    """The product of the terms; with terms in [0, 1], a soft "and"."""

    name = "product"

    def _combined(self, scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
        return scores.prod(0)


class MinimumReward(Combination):
    """The smallest term: what the weakest side is worth, or an ensemble's worst case (Coste et al. 2024)."""

    name = "minimum"

    def _combined(self, scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
        return scores.min(0)


class EnsembleReward(Combination):
    """The mean of several models less a penalty for their disagreement: mean - penalty * standard deviation.

    Uncertainty-weighted optimisation (Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization") takes the variance;
    the deviation keeps the penalty in the reward's own unit.  The models should be on one scale (`normalize`).

    Args:
        members: At least two reward models.
        penalty: In standard deviations (of the population), at least 0.

    Raises:
        ValueError: There are fewer than two members, or the penalty is negative.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[Any], penalty: float = 1.0) -> None:
        if isinstance(members, (str, Mapping)) or len(members) < 2:
            raise ValueError(f"ensemble: members={members!r} must be a list of at least two rewards")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"ensemble: penalty={penalty} must be at least 0 and finite")
        super().__init__({str(i): member for i, member in enumerate(members)})
        self.penalty = penalty

    def _combined(self, scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
        deviation = scores.std(0)  # (n,)
        self.last_terms["deviation"] = deviation.filled(np.nan)
        return scores.mean(0) - self.penalty * deviation


class GoldAndProxyReward(Combination):
    """Scores with both and trains on the proxy: the gold score is logged beside it, where over-optimisation shows (Gao et al. 2023).

    Args:
        proxy: What the agent is paid.
        gold: What is only watched.
    """

    name = "gold_and_proxy"

    def __init__(self, proxy: Any, gold: Any) -> None:
        super().__init__({"proxy": proxy, "gold": gold})

    def _combined(self, scores: np.ma.MaskedArray) -> np.ma.MaskedArray:
        return scores[0]


def refuse_dense(model: RewardModel, name: str) -> None:
    """Raise ValueError for a model whose scores of unfinished texts would be dropped in silence."""
    for method in DENSE:
        if hasattr(model, method):
            raise ValueError(f"{name} judges finished texts only, and {model!r} has {method}: only 'sum' passes that on")


def pass_on_begin(model: Any, parts: Iterable[RewardModel]) -> None:
    """Give a model `begin_scoring`, see `RewardModel`, if one of its parts has it."""
    waiting = [part for part in parts if hasattr(part, "begin_scoring")]
    if waiting:
        model.begin_scoring = partial(_begin_each, waiting)


def _begin_each(models: Sequence[RewardModel], episodes: Sequence[Episode]) -> list[Begun]:
    return [begun for model in models for begun in begin_scoring(model, episodes)]


def state_of(model: Any) -> Any:
    """Return the state of a reward model that has one, as plain data, or None."""
    return model.get_state() if hasattr(model, "get_state") else None


def _line(name: str, weight: Weight) -> tuple[list[float], list[float]]:
    """Return texts and weights of a weight that may change."""
    points = [(0.0, weight)] if isinstance(weight, numbers.Real) else weight
    if not isinstance(points, Sequence) or isinstance(points, str) or not points or any(len(p) != 2 for p in points):
        raise ValueError(f"sum: the weight of {name} is {weight!r}: give a number, or a list of [texts, weight]")
    texts, values = [float(p[0]) for p in points], [float(p[1]) for p in points]
    if not all(map(math.isfinite, [*texts, *values])) or any(b <= a for a, b in itertools.pairwise(texts)):
        raise ValueError(f"sum: the weight of {name} is {weight!r}: texts must rise, and all must be finite")
    return texts, values
