"""What changed between two benchmarks beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from rich.console import Console

from rewards.utils.intervals import mean_interval

from ..reports.tables import terminal_table
from .aggregate_statistics import LEVEL, difference_interval, difference_p, holm
from .flags import Compare
from .results import RunResult, Scores, headline, names, read_results, scores_of


@dataclass(frozen=True)
class Change:
    """The mean score of an agent on a task in two benchmarks.

    Attributes:
        task: Which.
        agent: Which.
        before: Mean score in the first of the seeds that both have.
        after: Mean score of the same seeds in the second.
        low: Lower end of the 95% interval of the difference, seed by seed.
        high: Its upper end.
        p: Of the paired t-test, adjusted after Holm 1979 for all comparisons; NaN where a single seed is shared.
    """

    task: str
    agent: str
    before: float
    after: float
    low: float
    high: float
    p: float

    @property
    def is_change(self) -> bool:
        """Whether the difference is more than noise."""
        return self.p < LEVEL


def changes(before: Sequence[RunResult], after: Sequence[RunResult]) -> list[Change]:
    """Return one record for each task and agent of which both benchmarks have a seed in common, in the order of p."""
    tasks, agents, then, now = _side_by_side(before, after)
    rows = []
    for i, task in enumerate(tasks):
        for agent in agents:
            x, y = then[agent][i], now[agent][i]
            shared = np.isfinite(x) & np.isfinite(y)
            if shared.any():
                rows.append((task, agent, x[shared], y[shared]))
    adjusted = holm([difference_p((y - x)[None]) for *_, x, y in rows])
    records = []
    for (task, agent, x, y), p in zip(rows, adjusted, strict=True):
        _, low, high = mean_interval(y - x)
        records.append(Change(task, agent, float(x.mean()), float(y.mean()), low, high, p))
    return sorted(records, key=lambda c: (np.nan_to_num(c.p, nan=2.0), c.task, c.agent))


def _side_by_side(before: Sequence[RunResult], after: Sequence[RunResult]) -> tuple[list[str], list[str], Scores, Scores]:
    """Return the tasks of both, the agents that both have, and the scores of each, whose rows and columns are the same."""
    tasks, _ = names([*before, *after])
    seeds = sorted({cell.seed for cell in [*before, *after]})
    then, now = (scores_of(cells, tasks, seeds) for cells in (before, after))
    return tasks, sorted(then.keys() & now.keys()), then, now


def run_compare(config: Compare) -> None:
    """Print what changed, what did not, and what only one of the two has."""
    before, after = read_results(config.a), read_results(config.b)
    rows, console = changes(before, after), Console(width=120)
    for line in _differences(before, after):
        console.print(line, markup=False)
    for line in totals(before, after):
        console.print(line, markup=False)
    changed, untested = [c for c in rows if c.is_change], sum(not np.isfinite(c.p) for c in rows)
    if untested:
        console.print(f"{untested} of {len(rows)} comparisons share too few seeds to be tested.")
    if not changed and untested < len(rows):
        console.print(f"No change beyond noise: {len(rows) - untested} comparisons, Holm's level {LEVEL}.")
    if not changed:
        return
    title = f"{len(changed)} of {len(rows)} comparisons changed beyond noise (Holm, level {LEVEL})"
    cells = [
        (c.task, c.agent, f"{c.before:.2f}", f"{c.after:.2f}", f"{c.after - c.before:+.2f} [{c.low:+.2f}, {c.high:+.2f}]", f"{c.p:.2g}")
        for c in changed
    ]
    console.print(terminal_table(("task", "agent", "before", "after", "difference, 95% interval", "p"), cells, title, texts=2))


def totals(before: Sequence[RunResult], after: Sequence[RunResult]) -> list[str]:
    """Return by how much each agent scores more in the second, from runs with the same seed: over headline tasks, and over exact ones."""
    tasks, agents, then, now = _side_by_side(before, after)
    counted = headline(tasks)
    families = {
        "all tasks" if counted == tasks else "all tasks but exact ones": counted,
        "exact tasks": [t for t in tasks if t not in counted],
    }
    lines = []
    for (title, own), agent in product(families.items(), agents):
        by = (now[agent] - then[agent])[[task in own for task in tasks]]
        if np.isfinite(by).any():
            value, low, high = difference_interval(by)
            ends = f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "(a task shares a single seed: no interval)"
            lines.append(f"{agent}, {title}, seed by seed: {value:+.3f} {ends}")
    return lines


def _differences(before: Sequence[RunResult], after: Sequence[RunResult]) -> list[str]:
    """Return sentences on how the two benchmarks differ besides their scores."""
    lines = []
    keys = [{(c.task, c.agent) for c in cells} for cells in (before, after)]
    for name, only in (("first", keys[0] - keys[1]), ("second", keys[1] - keys[0])):
        if only:
            lines.append(
                f"Only the {name} has {len(only)} pairs: {', '.join(f'{t} x {a}' for t, a in sorted(only)[:6])}" + " ..." * (len(only) > 6)
            )
    prints = [{(c.task, c.agent, c.seed): c.fingerprint for c in cells} for cells in (before, after)]
    alone = sum(key[:2] in keys[0] & keys[1] for key in prints[0].keys() ^ prints[1].keys())
    if alone:
        lines.append(f"{alone} runs have no partner with the same seed in the other, and are left out of the differences.")
    other = sum(prints[0][key] != prints[1][key] for key in prints[0].keys() & prints[1].keys())
    if other:
        lines.append(f"{other} runs have other inputs (budget, settings, base policy or task) in the second than in the first.")
    versions = [{str(sorted(c.manifest["versions"].items())) for c in cells} for cells in (before, after)]
    if versions[0] != versions[1]:
        lines.append("The two were run with different versions of packages; see the manifests.")
    return lines
