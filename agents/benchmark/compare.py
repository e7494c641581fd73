"""What changed between two benchmarks beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from scipy import stats

from ..reports.tables import terminal_table
from .flags import Compare
from .results import RunResult, names, read_results

LEVEL = 0.05  # of the family of all comparisons


@dataclass(frozen=True)
class Change:
    """The mean score of an agent on a task in two benchmarks.

    Attributes:
        task: Which.
        agent: Which.
        before: Mean score in the first.
        after: Mean score in the second.
        low: Lower end of the 95% interval of the difference (Welch).
        high: Its upper end.
        p: Of Welch's t-test, adjusted after Holm 1979 for all comparisons; NaN where one side has a single run.
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
    """Return one record for each task and agent that both benchmarks have, in the order of p."""
    tasks, agents = names([*before, *after])
    rows = []
    for task in tasks:
        for agent in agents:
            x, y = (np.array([c.score for c in cells if (c.task, c.agent) == (task, agent)]) for cells in (before, after))
            if len(x) and len(y):
                rows.append((task, agent, x, y))
    raw = [_welch(x, y) for *_, x, y in rows]
    adjusted = holm([p for *_, p in raw])
    records = [
        Change(task, agent, float(x.mean()), float(y.mean()), low, high, p)
        for (task, agent, x, y), (low, high, _), p in zip(rows, raw, adjusted, strict=True)
    ]
    return sorted(records, key=lambda c: (np.nan_to_num(c.p, nan=2.0), c.task, c.agent))


def _welch(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return the interval of the difference y - x and the p-value of its being 0."""
    if len(x) < 2 or len(y) < 2:
        return float("nan"), float("nan"), float("nan")
    if x.std() == 0 and y.std() == 0:  # the test divides by zero
        difference = float(y[0] - x[0])
        return difference, difference, float(difference == 0)
    test = stats.ttest_ind(y, x, equal_var=False)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, so that the chance of one false alarm among all stays below the level (Holm 1979)."""
    values = np.asarray(p, float)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    largest = 0.0
    for rank, index in enumerate(known[np.argsort(values[known], kind="stable")]):
        largest = max(largest, min(1.0, (len(known) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def run_compare(config: Compare) -> None:
    """Print what changed, what did not, and what only one of the two has."""
    before, after = read_results(config.a), read_results(config.b)
    rows, console = changes(before, after), Console(width=120)
    for line in _differences(before, after):
        console.print(line, markup=False)
    changed = [c for c in rows if c.is_change]
    if not changed:
        console.print(f"No change beyond noise: {len(rows)} comparisons, Holm's level {LEVEL}.")
        return
    title = f"{len(changed)} of {len(rows)} comparisons changed beyond noise (Holm, level {LEVEL})"
    cells = [
        (c.task, c.agent, f"{c.before:.2f}", f"{c.after:.2f}", f"{c.after - c.before:+.2f} [{c.low:+.2f}, {c.high:+.2f}]", f"{c.p:.2g}")
        for c in changed
    ]
    console.print(terminal_table(("task", "agent", "before", "after", "difference, 95% interval", "p"), cells, title, texts=2))


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
    other = sum(prints[0][key] != prints[1][key] for key in prints[0].keys() & prints[1].keys())
    if other:
        lines.append(f"{other} runs have other inputs (budget, settings, base policy or task) in the second than in the first.")
    versions = [{str(sorted(c.manifest["versions"].items())) for c in cells} for cells in (before, after)]
    if versions[0] != versions[1]:
        lines.append("The two were run with different versions of packages; see the manifests.")
    return lines
