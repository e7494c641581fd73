"""`textrl bench tune`: the same search for every agent on every task, by `textrl tune`, resumable; its winners are one data file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from rich.console import Console

from textrl_env.utils.files import write_json

from ..benchmark.bench import Winners, read_winners
from ..benchmark.protocol import FULL, PROTOCOL_VERSION, TUNING
from ..benchmark.spec import parse_all
from ..benchmark.suites import budget, family, tasks_of
from ..utils.limits import check_fields
from ..utils.run_folder import safe_name, versions
from .flags import Tune, TuneAgents
from .search_space import SPACE
from .tune import command_of, run_tune


def run_tune_agents(config: TuneAgents) -> None:
    """Search, agent by agent on each task, and enter the winner of each search into the file.

    Trials that are done are not repeated, nor are searches of the package's own tasks whose winners are in the file.

    Raises:
        ValueError: An agent has no search space or comes with settings, or a number is out of range.
    """
    check_fields(config)
    named = parse_all(config.agents)
    if any(agent.settings for agent in named):
        raise ValueError(f"--agents {' '.join(config.agents)}: settings are what is searched for; give names alone")
    agents = [agent.name for agent in named] or [name for name in FULL if name in SPACE]
    tasks = parse_all(config.tasks) or tasks_of(config.suite)
    unknown = [name for name in agents if name not in SPACE]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no search space; choose from {', '.join(SPACE)}")
    console = Console()
    config.save.parent.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        for agent in agents:
            search = Tune(
                task=task.text, algo=agent, trials=config.trials, seeds=TUNING["seeds"], texts=TUNING["texts"], sampler=TUNING["sampler"],
                pruner="none", total_tokens=config.total_tokens or round(TUNING["tokens"] * budget(task.name)), ray=config.ray,
                out=config.out / f"{agent}--{safe_name(family(task.text))}", device=config.device,
            )  # fmt: skip
            console.rule(f"{agent} on {task.text}")
            winners = read_winners(config.save) if config.save.is_file() else {}
            if not task.settings and _is_of(winners.get(agent, {}).get(family(task.text), {}), search):
                console.print(f"{config.save} has what this search found")
                continue
            run_tune(search)
            found = yaml.safe_load((search.out / "best.yaml").read_text(encoding="utf-8"))
            found["space"] = [list(row) for row in SPACE[agent]]
            found["tried"] = (search.out / "trials.csv").read_text(encoding="utf-8").splitlines()
            with FileLock(f"{config.save}.lock"):  # others may search elsewhere, and enter what they find here
                winners = read_winners(config.save) if config.save.is_file() else {}
                winners.setdefault(agent, {})[family(task.text)] = found
                write_winners(config.save, winners)
    console.print(f"Winners: [bold]{config.save}[/bold]; textrl bench --tuned {config.save} runs them beside the defaults")


def write_winners(path: Path, winners: Winners) -> None:
    """Write the winners, with the protocol that they were found under."""
    write_json(path, {"protocol": PROTOCOL_VERSION, "tuning": TUNING, "winners": winners})


def _is_of(found: Mapping[str, Any], search: Tune) -> bool:
    """Return whether an entry of the file is what a search, with this version, would enter."""
    if not found:
        return False
    where = found["provenance"]
    same = where["command"] == command_of(search) and where["versions"]["textrl-env"] == versions()["textrl-env"]
    return same and found["space"] == [list(row) for row in SPACE[search.algo]]
