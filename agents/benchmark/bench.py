"""`textrl bench`: agents x tasks x seeds, in parallel, resumable, with a report."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewards.utils.devices import get_device
from textrl_env.utils.files import read_json, write_json

from ..utils.limits import check_fields
from ..utils.progress import bar
from ..utils.run_folder import write_yaml
from .agents import check, with_tuned
from .flags import Bench
from .process_pool import run_jobs
from .protocol import FULL, PROTOCOL_VERSION, QUICK, SEEDS
from .report import write_bench_report
from .results import CURRENT
from .run_job import Job, forget_failure, task_of
from .spec import TUNED, Spec, parse_all
from .suites import budget_at, family, tasks_of

Winners = dict[str, dict[str, dict[str, Any]]]  # of each agent, by family of tasks: settings and provenance


def run_bench(config: Bench) -> None:
    """Run the cells that are missing, and write the report."""
    console = Console()
    if config.ray is None:  # whose workers may have what this process lacks
        get_device(config.device)
    jobs = jobs_of(config)
    config.out.mkdir(parents=True, exist_ok=True)
    write_yaml(config.out / "config.yaml", dataclasses.asdict(config))
    for job in jobs:
        forget_failure(job, config.limit)
    tasks = list(dict.fromkeys(job.preparation for job in jobs))
    for title, stage in (("prepare", tasks), ("run", jobs)):
        missing = [job for job in stage if not job.done()]
        if len(missing) < len(stage):
            console.print(f"{title}: {len(stage) - len(missing)} of {len(stage)} are there already")
        with bar(title, len(missing), True) as shown:
            _run(config, missing, lambda job, shown=shown: shown.advance(note=job.name))  # type: ignore[misc]
        if title == "prepare":  # on which fingerprints depend
            write_json(config.out / CURRENT, kept_beside(jobs, config.out / CURRENT))
    report = write_bench_report(config.out)
    console.print((config.out / "report.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: [bold]{report}[/bold]")


def kept_beside(jobs: Sequence[Job], path: Path) -> dict[str, dict[str, str]]:
    """Return what results of a folder depend on by name: of these jobs, and of earlier commands' where what they share is the same still.

    Other agents stay beside these on a task with the same inputs and budget, other seeds of an agent if its settings are the same too, and
    other tasks always.
    """
    now = {job.name: job.record() for job in jobs}
    given = {(record["task"], record["agent"]): record["settings"] for record in now.values()}
    grounds = {record["task"]: record["given"] for record in now.values()}

    def stays(before: dict[str, str]) -> bool:
        task, agent = before["task"], before["agent"]
        same = grounds.get(task, before["given"]) == before["given"]
        return same and given.get((task, agent), before["settings"]) == before["settings"]

    earlier = read_json(path) if path.is_file() else {}
    return {**{name: record for name, record in earlier.items() if stays(record)}, **now}


def _run(config: Bench, jobs: list[Job], on_done: Callable[[Job], None]) -> None:
    if config.ray is None or not jobs:
        return run_jobs(jobs, config.processes, config.limit, on_done)
    from .ray_pool import run_jobs_on_ray

    run_jobs_on_ray(jobs, config.ray, config.processes, config.limit, on_done)


def jobs_of(config: Bench) -> list[Job]:
    """Return one job for each cell, seed by seed, so that an early look shows all agents.

    Raises:
        ValueError: An agent or a task is unknown, nothing was found for an agent that shall be tuned, or a number is out of range.
    """
    agents = parse_all(config.agents) or parse_all(QUICK if config.preset == "quick" else FULL)
    tasks = parse_all(config.tasks) or tasks_of(config.suite)
    seeds = config.seeds or SEEDS[config.preset]
    check_fields(config)
    if config.tasks and config.suite != Bench.suite:
        raise ValueError(f"--suite {config.suite} and --tasks {' '.join(config.tasks)}: tasks are run instead of a suite; leave one out")
    for agent in agents:
        if config.tuned is not None and "tuned" in agent.settings:
            raise ValueError(f"--agents {agent.text} --tuned {config.tuned}: tuned agents run beside their defaults; leave tuned=... out")
        for task in tasks:
            check(with_tuned(agent, task.text))
    for task in tasks:
        task_of(task)
    winners = {} if config.tuned is None else read_winners(config.tuned)
    facts = (("git", _git_revision()),)
    jobs = []
    for seed in range(seeds):
        for task in tasks:
            tokens = budget_at(task.name, config.preset) if config.total_tokens is None else config.total_tokens
            jobs += [
                Job(str(config.out), task.text, agent, seed, tokens, config.texts, facts, config.device, tuple(sorted(settings.items())))
                for agent, settings in with_winners(agents, task, winners)
            ]
    return jobs


def read_winners(path: Path) -> Winners:
    """Read winners of `textrl bench tune`.

    Raises:
        ValueError: The file does not hold any, or they were found under another protocol, so that the budgets of the searches differ.
    """
    try:
        found = read_json(path)
        protocol, winners = found["protocol"], found["winners"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no winners of textrl bench tune ({error!r})") from error
    if protocol != PROTOCOL_VERSION:
        raise ValueError(
            f"{path} was found under protocol {protocol}, this is {PROTOCOL_VERSION}: run textrl bench tune with another --save"
        )
    return dict(winners)


def with_winners(agents: list[Spec], task: Spec, winners: Winners) -> list[tuple[str, dict[str, Any]]]:
    """Return what runs on a task: each agent as it is, and once more with what was found for it, if anything was.

    Returns:
        The agent's text in tables, `ppo:tuned=true` where it is tuned, and the settings found.
    """
    both: list[tuple[str, dict[str, Any]]] = []
    for agent in agents:
        both.append((agent.text, {}))
        found = winners.get(agent.text, {}).get(family(task.text))
        if found is not None:
            both.append((f"{agent.text}{TUNED}", found["settings"]))
    return both


def _git_revision() -> str | None:
    """Return the revision of this checkout; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None
