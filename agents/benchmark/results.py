"""Results of a benchmark: one file for each cell, read into records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

Scores = dict[str, list[np.ndarray]]  # of each agent: for each task, the normalised scores of its seeds


@dataclass(frozen=True)
class RunResult:
    """One agent on one task with one seed.

    Attributes:
        task: Spec of the task.
        agent: Spec of the agent.
        seed: Of everything that was drawn.
        budget: Tokens that learning was allowed.
        fingerprint: Hash of what the result depends on.
        status: `done`, `crashed`, `diverged` or `timeout`.
        error: What went wrong; None if nothing did.
        score: 0 for the base policy, 1 for the optimum; 0 for what failed, since its user is left with the base policy.
        measures: Further numbers; None is what cannot be measured.
        finish_reasons: Share of texts that ended so.
        curve: Rows of tokens, seconds, reward, score and KL while learning.
        samples: The first test texts.
        manifest: Versions, configuration, hardware.
    """

    task: str
    agent: str
    seed: int
    budget: int
    fingerprint: str
    status: str
    error: str | None
    score: float
    measures: dict[str, float | None]
    finish_reasons: dict[str, float]
    curve: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    manifest: dict[str, Any]

    def measure(self, name: str) -> float:
        """Return a measure, NaN if there is none."""
        value = self.measures.get(name)
        return float("nan") if value is None else float(value)


def read_results(folder: str | Path) -> list[RunResult]:
    """Read all cells of a results folder, in the order of tasks, agents and seeds.

    Raises:
        FileNotFoundError: The folder holds none.
        ValueError: A file does not hold a cell; the message names it.
    """
    folder = Path(folder)
    paths = sorted((folder / "cells").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no results (cells/*.json): run textrl bench --out {folder} first")
    known = [field.name for field in fields(RunResult)]
    cells = []
    for path in paths:
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            cells.append(RunResult(**{name: row[name] for name in known}))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of textrl bench ({error!r}): delete it, and run the benchmark again") from error
    return sorted(cells, key=lambda cell: (cell.task, cell.agent, cell.seed))


def names(cells: Sequence[RunResult]) -> tuple[list[str], list[str]]:
    """Return the tasks and the agents that occur, sorted."""
    return sorted({cell.task for cell in cells}), sorted({cell.agent for cell in cells})


def scores_of(cells: Sequence[RunResult]) -> Scores:
    """Return the scores of each agent, task by task in the order of `names`; a task without runs is an empty array."""
    tasks, agents = names(cells)
    return {agent: [np.array([c.score for c in cells if (c.agent, c.task) == (agent, task)]) for task in tasks] for agent in agents}


def by_seed(cells: Sequence[RunResult], tasks: Sequence[str], agent: str) -> list[dict[int, float]]:
    """Return an agent's scores by seed, task by task."""
    return [{c.seed: c.score for c in cells if (c.agent, c.task) == (agent, task)} for task in tasks]


def missing(cells: Sequence[RunResult]) -> list[tuple[str, str, int]]:
    """Return (task, agent, seed) of the cells that a full grid would have besides."""
    tasks, agents = names(cells)
    seeds = sorted({cell.seed for cell in cells})
    there = {(cell.task, cell.agent, cell.seed) for cell in cells}
    return [key for task in tasks for agent in agents for seed in seeds if (key := (task, agent, seed)) not in there]
