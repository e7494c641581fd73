"""A reward for every step: how much the last token improved the text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.reward_model import as_reward_model, terms_of, valid_scores

from ..utils.base_reward import BaseReward
from .combine import refuse_dense

_KEPT = 262_144  # prefixes whose score is remembered: many times what any batch has under way


class ImprovementReward(BaseReward):
    """Pays each token by the change of the score, F = phi(after) - phi(before) with phi(nothing) = 0.

    This is potential-based shaping at gamma = 1 (Ng, Harada and Russell 1999) whose potential is the score itself: the rewards of a
    text sum to its final score, whatever path led there, so the optimum does not move; credit only comes sooner.  The reward model
    is asked at every step, so it should be cheap: a rule or a metric.

    Args:
        reward: What scores finished and unfinished texts; anything that an environment takes.

    Attributes:
        last_terms: `final`, the whole scores of the texts that ended last, shape (n,), and the reward model's own terms.
    """

    def __init__(self, reward: Any) -> None:
        self.reward = as_reward_model(reward)
        refuse_dense(self.reward, "improvement")
        self.last_terms: dict[str, np.ndarray] = {}
        self._potentials: OrderedDict[tuple[Hashable, ...], float] = OrderedDict()

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return what the last token of each finished text changed."""
        final = valid_scores(self.reward, episodes)
        self.last_terms = {"final": final, **terms_of(self.reward, len(episodes))}
        return [float(score) - self._before(episode) for score, episode in zip(final, episodes, strict=True)]

    def score_steps(self, episodes: Sequence[Episode]) -> list[float]:
        """Return what the last token of each unfinished text changed, and remember where it stands."""
        now = valid_scores(self.reward, episodes)
        changes = [float(score) - self._before(episode) for score, episode in zip(now, episodes, strict=True)]
        for score, episode in zip(now, episodes, strict=True):
            self._potentials[_key(episode, len(episode.response_ids))] = float(score)
        while len(self._potentials) > _KEPT:
            self._potentials.popitem(last=False)
        return changes

    def _before(self, episode: Episode) -> float:
        """Return the score of the longest beginning that was scored; the environment may have written several tokens since."""
        for length in range(len(episode.response_ids) - 1, 0, -1):
            key = _key(episode, length)
            if key in self._potentials:
                self._potentials.move_to_end(key)
                return self._potentials[key]
        return 0.0

    def __repr__(self) -> str:
        return f"ImprovementReward({self.reward!r})"


def _key(episode: Episode, length: int) -> tuple[Hashable, ...]:
    """Return everything that the score of a text's first `length` tokens may depend on."""
    return episode.prompt_ids.tobytes(), episode.references, repr(episode.metadata), episode.response_ids[:length].tobytes()
