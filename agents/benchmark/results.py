"""Results of a benchmark: one file for each cell, read into records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from textrl_env.utils.files import read_json

from .spec import parse
from .suites import is_exact

CURRENT = "current.json"  # what each cell that counts depends on, see `Job.record`, by the name of its file
Scores = dict[str, np.ndarray]  # of each agent: normalised scores, shape (T, S), NaN where there is none


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
        score: 0 for the base policy, 1 for the optimum; 0 for what failed, since its user is left with the base policy.  NaN for an agent
            of one's own on an exact task, which judges by a KL that is not known.
        measures: Further numbers; None is what cannot be measured.
        finish_reasons: Share of texts that ended so.
        curve: Rows of tokens, seconds, reward, score and KL while learning.
        samples: The first test texts.
        manifest: Versions, configuration, hardware.
        protocol: Version of what every agent was given; results of different ones do not compare.
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
    protocol: int = 1  # of results that say nothing of it

    def measure(self, name: str) -> float:
        """Return a measure, NaN if there is none."""
        value = self.measures.get(name)
        return float("nan") if value is None else float(value)


class StoredResults(NamedTuple):
    """What a results folder holds.

    Attributes:
        cells: In the order of tasks, agents and seeds.
        left_out: How many others have other inputs than the folder's last `textrl bench` on the task gave.
        missing: Names of the runs that were asked for and are not there; where nothing says what was, those that a full grid would have.
    """

    cells: list[RunResult]
    left_out: int
    missing: list[str]


def read_results(folder: str | Path) -> list[RunResult]:
    """Return the cells of `read_cells`."""
    return read_cells(folder).cells


def read_cells(folder: str | Path) -> StoredResults:
    """Read a results folder.

    Raises:
        FileNotFoundError: The folder holds none.
        ValueError: A file does not hold a cell; the message names it.
    """
    folder = Path(folder)
    paths = sorted((folder / "cells").glob("*.json"))
    current = read_json(folder / CURRENT) if (folder / CURRENT).is_file() else None
    if not paths:
        raise FileNotFoundError(f"{folder} holds no results (cells/*.json): run textrl bench --out {folder} first")
    known = [field.name for field in fields(RunResult) if field.default is MISSING]
    cells = {}
    for path in paths:
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if current is None or current.get(path.stem, {}).get("fingerprint") == row["fingerprint"]:
                own = is_exact(row["task"]) and ":" in parse(row["agent"]).name
                score = {"score": float("nan")} if own else {}
                cells[path.stem] = RunResult(**{name: row[name] for name in known} | score, protocol=row.get("protocol", 1))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of textrl bench ({error!r}): delete it, and run the benchmark again") from error
    if not cells:
        raise FileNotFoundError(
            f"{folder} holds results of other inputs than its last command's only: run textrl bench --out {folder} again"
        )
    found = sorted(cells.values(), key=lambda cell: (cell.task, cell.agent, cell.seed))
    missing = _lacking(found) if current is None else sorted(current.keys() - cells.keys())
    return StoredResults(found, len(paths) - len(cells), missing)


def names(cells: Sequence[RunResult]) -> tuple[list[str], list[str]]:
    """Return the tasks and the agents that occur, sorted."""
    return sorted({cell.task for cell in cells}), sorted({cell.agent for cell in cells})


def headline(tasks: Sequence[str]) -> list[str]:
    """Return the tasks of the headline mean: all but exact ones, unless there are no others.

    Exact tasks judge by a KL-regularised return, which not every agent maximises.
    """
    return [task for task in tasks if not is_exact(task)] or list(tasks)


def scores_of(cells: Sequence[RunResult], tasks: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Scores:
    """Return the scores of each agent, shape (T, S), NaN where there is none.

    Args:
        cells: Whose.
        tasks: Rows; by default all, in the order of `names`.
        seeds: Columns; by default all, sorted.
    """
    every, agents = names(cells)
    row = {task: i for i, task in enumerate(every if tasks is None else tasks)}
    column = {seed: i for i, seed in enumerate(sorted({cell.seed for cell in cells}) if seeds is None else seeds)}
    scores = {agent: np.full((len(row), len(column)), np.nan) for agent in agents}
    for cell in cells:
        if cell.task in row and cell.seed in column:
            scores[cell.agent][row[cell.task], column[cell.seed]] = cell.score
    return scores


def _lacking(cells: Sequence[RunResult]) -> list[str]:
    """Return the names of the runs that a full grid would have besides."""
    tasks, agents = names(cells)
    seeds = sorted({cell.seed for cell in cells})
    there = {(cell.task, cell.agent, cell.seed) for cell in cells}
    return [f"{task} {agent} {seed}" for task in tasks for agent in agents for seed in seeds if (task, agent, seed) not in there]
