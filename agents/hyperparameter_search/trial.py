"""One trial of `textrl tune`: a training with suggested settings, judged as it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..algorithms.common.random_states import seed_of_rows
from ..benchmark.agents import LearningSetup, train_agent
from ..benchmark.measures import value_of
from ..benchmark.run_job import beta_of, given
from ..benchmark.spec import Spec, parse
from ..benchmark.suites import budget
from ..evaluation.policy_texts import make_policy, write_texts
from .flags import Tune


class Trial:
    """What settings are worth: their runs, judged on the validation split."""

    def __init__(self, config: Tune) -> None:
        self.config = config
        spec = parse(config.task)
        self.task, self.judge, self.base, _ = given(spec, "validation")
        self.length = float(write_texts(make_policy(self.judge, self.base), self.judge, 1024, seed=1).lengths.mean())

    def values(self, settings: dict[str, Any], report: Callable[[int, float], None]) -> list[float]:
        """Return the value of each seed's run.

        Args:
            settings: Of the algorithm.
            report: Told after every rollout of the first run how many tokens were written and the rollout's mean score.
        """
        values: list[float] = []
        for seed in range(self.config.seeds):
            apart = seed_of_rows(seed)  # so that no two seeds learn from the same prompts; 0 for the first
            ground = LearningSetup(self.task, self.base, _tokens(self.config), apart, beta_of(self.task), self.length)

            def watch(tokens: int, finished: list[dict[str, Any]], kl: float, seed: int = seed) -> None:
                if seed == 0:  # one report for each step is all that a pruner understands
                    report(tokens, float(np.mean([info["score"] for info in finished])))

            trained = train_agent(Spec(self.config.algo, self.config.algo, settings), ground, watch)
            texts = trained.write(self.judge, self.config.texts, 30_000 + seed)
            value, _ = value_of(self.judge, texts, self.base, trained)
            assert value is not None  # the KL of every agent that has a search space is known
            values.append(value)
        return values


def _tokens(config: Tune) -> int:
    return budget(parse(config.task).name) if config.total_tokens is None else config.total_tokens


def ended(study: Any) -> list[Any]:
    """Return the trials that are complete, pruned or failed; not those that Ctrl-C broke off."""
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return [trial for trial in finished if trial.state.name != "FAIL" or "error" in trial.user_attrs]
