"""A leaderboard from stored results: a row for each agent, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from textrl_env.utils.files import write_text

from ..reports.html_page import write_page
from ..reports.tables import markdown_table
from .aggregate_statistics import interval, iqm, optimality_gap
from .flags import Leaderboard
from .results import RunResult, headline, names, read_cells, scores_of
from .spec import parse, untuned
from .suites import PRESETS, SUITES, budget_at


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each agent of a results folder.

    Raises:
        ValueError: Runs are missing, so that agents were not compared on the same tasks.
    """
    cells, _, missing = read_cells(folder)
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} runs, {missing[0]} among them: finish it with textrl bench first")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    tasks, agents = names(cells)
    counted = headline(tasks)
    scores = scores_of(cells, counted)
    return [
        {
            "agent": agent, "iqm": interval(iqm, scores[agent]), "gap": interval(optimality_gap, scores[agent]),
            "runs": sum(c.task in counted for c in own), "failed": sum(c.task in counted and c.status != "done" for c in own),
            "board": _board(config, cells),
            "date": min(c.manifest["began"] for c in own)[:10], "version": _version(own[0]),
            "git": own[0].manifest.get("git") or "-", "command": _command(config, agent, own),
        }
        for agent in agents if np.isfinite(scores[agent]).any() and (own := [c for c in cells if c.agent == agent])
    ]  # fmt: skip


def _board(config: dict[str, Any], cells: Sequence[RunResult]) -> str:
    """Return what all agents that are compared share, in words: tasks, their budgets, number of seeds, texts and protocol."""
    tasks = names(cells)[0]
    apart = len(tasks) - len(headline(tasks))
    parts = [
        _tasks({task: sorted({cell.budget for cell in cells if cell.task == task}) for task in tasks}),
        *([f"{apart} exact tasks apart"] if apart else []),
        f"{len({cell.seed for cell in cells})} seeds",
        " and ".join(sorted({str(cell.manifest["config"].get("texts", config.get("texts"))) for cell in cells})) + " texts",
        f"protocol {' and '.join(map(str, sorted({cell.protocol for cell in cells})))}",
    ]
    return ", ".join(parts)


def _tasks(budgets: dict[str, list[int]]) -> str:
    """Return the name of a suite at a preset's budgets, or else each task with its tokens."""
    for suite, preset in product(SUITES, PRESETS):
        if budgets == {task: [budget_at(parse(task).name, preset)] for task in SUITES[suite]}:
            return f"{len(budgets)} tasks: {suite}, {preset}"
    amounts = {task: " or ".join(f"{tokens:,}" for tokens in own) for task, own in budgets.items()}
    if len(set(amounts.values())) == 1:
        return f"{' '.join(amounts)} with {next(iter(amounts.values()))} tokens"
    return " ".join(f"{task} ({tokens} tokens)" for task, tokens in amounts.items())


def run_leaderboard(config: Leaderboard) -> None:
    """Write the page and the Markdown file, the best agents of each board first."""
    boards: dict[str, list[dict[str, Any]]] = {}
    for folder in config.folders:
        for row in rows_of(folder):
            boards.setdefault(row["board"], []).append(row)
    for rows in boards.values():
        rows.sort(key=lambda row: -row["iqm"].value)
    write_text(config.out.with_suffix(".md"), _markdown(boards))
    print(write_page(config.out, "leaderboard", boards=boards))


def _version(cell: RunResult) -> str:
    versions = cell.manifest["versions"]
    return versions["textrl-env" if "textrl-env" in versions else "textrl"]  # which the distribution was called at first


def _command(config: dict[str, Any], agent: str, cells: Sequence[RunResult]) -> str:
    """Return the command that repeats the rows of one agent."""
    plain = untuned(agent) if config.get("tuned") else agent
    parts = ["textrl", "bench", "--preset", config["preset"], "--agents", plain, "--seeds", str(len({c.seed for c in cells}))]
    parts += ["--tasks", ",".join(names(cells)[0])] if config.get("tasks") else ["--suite", config["suite"]]
    for name, value in {
        "tuned": config["tuned"] if plain != agent else None,
        "total-tokens": config.get("total_tokens", config.get("tokens")),
        "texts": config.get("texts"),
    }.items():
        if value is not None:
            parts += [f"--{name}", str(value)]
    return shlex.join(parts)


def _markdown(boards: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["# Leaderboard", "", "Scores are 0 for the base policy and 1 for the optimum; brackets hold 95% intervals."]
    head = ("agent", "IQM", "optimality gap", "runs", "failed", "date", "version", "repeat with")
    for board, rows in boards.items():
        columns = ("agent", "iqm", "gap", "runs", "failed", "date")
        cells = [[*(row[key] for key in columns), f"{row['version']} ({row['git']})", f"`{row['command']}`"] for row in rows]
        lines += ["", f"## {board}", "", markdown_table(head, cells)]
    return "\n".join(lines) + "\n"
