"""What the commands of `textrl bench` take; nothing here needs torch, so that their help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..utils.device_flag import OnDevice
from ..utils.limits import Above0, Count, Texts


@dataclass(frozen=True)
class Bench(OnDevice):
    """Compare agents on tasks; running again goes on where it stopped.

    Attributes:
        suite: `diagnostic`: every capability at its default size; `ladders`: at all sizes; `exact`: those whose optimum is enumerated;
            `reasoning`: verified questions of reasoning-gym.
        preset: `quick`: half the budgets, 3 seeds, 6 agents; `full`: 10 seeds, 9 agents.
        agents: Names, settings and import strings, separated by commas or spaces: `ppo,ppo:beta=0.1,my_package.agents:Mine`; by default the
            preset's.
        tasks: Likewise, instead of a suite: `recall-64,textrl/Lock-v0`.
        seeds: Runs of each agent on each task; by default the preset's.
        total_tokens: Tokens that an agent may write while it learns; by default each task's own budget.
        texts: Test texts by which an agent is judged.
        processes: Cells at a time, one thread each.
        ray: Address of a Ray cluster to run on, such as `auto`; `local` starts one with as many cores as `processes`. All its nodes must
            see the folder `out`.
        limit: Seconds after which a cell counts as hanging; a higher one runs those again that reached a lower one.
        tuned: A file of `textrl bench tune`: agents that have settings there are run with them too, beside their defaults.
        out: Folder of the results.
    """

    suite: str = "diagnostic"
    preset: Literal["quick", "full"] = "quick"
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: Count | None = None
    total_tokens: Annotated[Count | None, tyro.conf.arg(aliases=("--tokens",))] = None
    texts: Texts = 256
    processes: Count = 2
    ray: str | None = None
    limit: Above0 = 1800.0
    tuned: Path | None = None
    out: Path = Path("runs/bench")


@dataclass(frozen=True)
class Compare:
    """Compare two results folders of `textrl bench`, task by task and agent by agent.

    Attributes:
        a: The earlier folder.
        b: The later one.
    """

    a: Annotated[Path, tyro.conf.Positional] = Path("runs/before")
    b: Annotated[Path, tyro.conf.Positional] = Path("runs/after")


@dataclass(frozen=True)
class Frontier:
    """Draw the reward-KL frontier of a benchmark whose agents were run with several settings, such as `ppo:beta=0.1,ppo:beta=0.5`.

    Attributes:
        folder: Results of `textrl bench` on one task.
        out: The picture; a Markdown file of the same name is written beside it.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/frontier")
    out: Path = Path("runs/frontier/frontier.png")


@dataclass(frozen=True)
class Leaderboard:
    """Write a leaderboard from results folders of `textrl bench`.

    Attributes:
        folders: Results; agents are compared where tasks, budgets, number of seeds, texts and protocol are the same.
        out: The page; a Markdown file of the same name is written beside it.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs/bench"),)
    out: Path = Path("runs/leaderboard.html")


@dataclass(frozen=True)
class BenchReport:
    """Write the report of a benchmark anew.

    Attributes:
        folder: Results of `textrl bench`.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/bench")
