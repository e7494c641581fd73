"""One trial of `textrl tune`: a training with suggested settings, judged as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from ..benchmark.agents import LearningSetup, train_agent
from ..benchmark.measures import judged
from ..benchmark.run_job import beta_of, task_of
from ..benchmark.spec import Spec, parse
from ..benchmark.suites import budget
from ..evaluation.policy_texts import make_policy, write_texts
from ..training.base_policies import base_policy
from ..utils.limits import Count, Seed, Texts


@dataclass(frozen=True)
class Tune:
    """Look for good settings of an algorithm on a task; running again goes on up to the number of trials.

    Several processes may work in the same folder at once.

    Attributes:
        task: As `textrl bench` calls it.
        algo: Name of the algorithm.
        trials: Settings to try in all, failed and pruned ones included.
        total_tokens: Tokens that each run may write; by default the task's budget.
        seeds: Runs of each setting; their mean counts.
        texts: Validation texts by which a run is judged.
        sampler: `tpe` learns from earlier trials, `random` does not.
        pruner: `median` ends a run that is worse than half of the others were at that point.
        ray: Address of a Ray cluster whose workers try settings side by side, such as `auto`; `local` starts one with the cores of this
            machine.
        seed: Of the sampler.
        out: Folder of the search.
        save: A YAML file to enter the best settings into.
    """

    task: str = "recall"
    algo: str = "ppo"
    trials: Count = 20
    total_tokens: Annotated[Count | None, tyro.conf.arg(aliases=("--tokens",))] = None
    seeds: Count = 2
    texts: Texts = 256
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "none"] = "median"
    ray: str | None = None
    seed: Seed = 0
    out: Path = Path("runs/tune")
    save: Path | None = None


class Trial:
    """What settings are worth: their runs, judged on the validation split."""

    def __init__(self, config: Tune) -> None:
        self.config = config
        spec = parse(config.task)
        self.task = task_of(spec)
        self.judge = task_of(spec, "validation", prompt_order="sequential")
        self.base = str(base_policy(self.task))
        self.length = float(write_texts(make_policy(self.judge, self.base), self.judge, 64, seed=1).lengths.mean())

    def values(self, settings: dict[str, Any], report: Callable[[int, float], None]) -> list[float]:
        """Return the value of each seed's run.

        Args:
            settings: Of the algorithm.
            report: Told after every rollout of the first run how many tokens were written and the rollout's mean score.
        """
        values: list[float] = []
        for seed in range(self.config.seeds):
            ground = LearningSetup(self.task, self.base, _tokens(self.config), seed, beta_of(self.task), self.length)

            def watch(tokens: int, finished: list[dict[str, Any]], kl: float, seed: int = seed) -> None:
                if seed == 0:  # one report for each step is all that a pruner understands
                    report(tokens, float(np.mean([info["score"] for info in finished])))

            trained = train_agent(Spec(self.config.algo, self.config.algo, settings), ground, watch)
            values.append(judged(self.judge, trained.write(self.judge, self.config.texts, 30_000 + seed)))
        return values


def _tokens(config: Tune) -> int:
    return budget(parse(config.task).name) if config.total_tokens is None else config.total_tokens


def ended(study: Any) -> list[Any]:
    """Return the trials that are complete, pruned or failed."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
