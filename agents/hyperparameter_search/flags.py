"""What `textrl tune` takes; nothing here needs torch, so that its help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..utils.device_flag import OnDevice
from ..utils.limits import Count, Seed, Texts


@dataclass(frozen=True)
class Tune(OnDevice):
    """Look for good settings of an algorithm on a task; running again goes on up to the number of trials.

    Several processes may work in the same folder at once.

    Attributes:
        task: As `textrl bench` calls it.
        algo: Name of the algorithm.
        trials: Settings to try in all, failed and pruned ones included.
        total_tokens: Tokens that each run may write; by default the task's budget.
        seeds: Runs of each setting; their mean counts.
        texts: Validation texts by which a run is judged.
        sampler: `tpe` learns from earlier trials once there are ten, `random` does not.
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


@dataclass(frozen=True)
class TuneAgents(OnDevice):
    """Give every agent the same number of settings, drawn at random, on the validation prompts of each task; running again goes on.

    Attributes:
        suite: As `textrl bench` has it.
        agents: Names; by default those of the preset `full` that have settings to search for.
        tasks: Instead of a suite. What is found for `recall` is used on all its sizes.
        trials: Settings to try for each agent on each task, failed ones included; the protocol's number by default.
        total_tokens: Tokens that each run may write; by default half of each task's budget, as the protocol says.
        ray: Address of a Ray cluster whose workers try settings side by side; `local` starts one.
        out: Folder of the searches.
        save: The winners, with trials and search spaces.
    """

    suite: str = "diagnostic"
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    trials: Count = 8
    total_tokens: Annotated[Count | None, tyro.conf.arg(aliases=("--tokens",))] = None
    ray: str | None = None
    out: Path = Path("runs/tune-agents")
    save: Path = Path("runs/tune-agents/tuned.json")
