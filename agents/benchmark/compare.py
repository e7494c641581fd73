"""What changed between two benchmarks beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from scipy import stats

from rewards.utils.intervals import IntervalEstimate, mean_interval

from ..reports.tables import terminal_table
from .aggregate_statistics import difference_interval, differences
from .flags import Compare
from .results import RunResult, by_seed, names, read_results

LEVEL = 0.05  # of the family of all comparisons


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
    tasks, agents = names([*before, *after])
    rows = []
    for task in tasks:
        for agent in agents:
            (then,), (now,) = (by_seed(cells, [task], agent) for cells in (before, after))
            if seeds := sorted(then.keys() & now.keys()):
                rows.append((task, agent, np.array([then[s] for s in seeds]), np.array([now[s] for s in seeds])))
    adjusted = holm([_paired_p(y - x) for *_, x, y in rows])
    records = []
    for (task, agent, x, y), p in zip(rows, adjusted, strict=True):
        _, low, high = mean_interval(y - x)
        records.append(Change(task, agent, float(x.mean()), float(y.mean()), low, high, p))
    return sorted(records, key=lambda c: (np.nan_to_num(c.p, nan=2.0), c.task, c.agent))


def _paired_p(differences: np.ndarray) -> float:
    """Return the p-value of a mean difference of 0."""
    if len(differences) < 2:
        return float("nan")
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():  # the test divides by zero
        return float(not differences.any())
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


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
    for agent, found in totals(before, after).items():
        console.print(f"{agent}, all tasks, seed by seed: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", markup=False)
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


def totals(before: Sequence[RunResult], after: Sequence[RunResult]) -> dict[str, IntervalEstimate]:
    """Return by how much each agent scores more in the second, over all tasks, from runs with the same seed."""
    tasks, agents = names([*before, *after])
    both = {agent: (by_seed(after, tasks, agent), by_seed(before, tasks, agent)) for agent in agents}
    return {agent: difference_interval(*two) for agent, two in both.items() if any(map(len, differences(*two)))}


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
