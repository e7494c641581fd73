"""The reward-KL frontier: the gold score that agents reach at each KL from the base policy, over several settings of each agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rewards.utils.intervals import IntervalEstimate, mean_interval
from textrl_env.utils.files import write_text

from ..evaluation.best_of import kl_bound
from ..reports.benchmark_plots import score_against_kl
from ..reports.plots import save
from ..reports.tables import markdown_table
from .flags import Frontier
from .results import RunResult, read_results
from .spec import parse

Families = dict[str, list[list[RunResult]]]  # of each agent and setting, the cells of its seeds
LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)  # nats at which agents are compared


def run_frontier(config: Frontier) -> None:
    """Draw the picture, and write the numbers and what they allow to say beside it."""
    cells = read_results(config.folder)
    tasks = {cell.task for cell in cells}
    if len(tasks) > 1:
        raise ValueError(f"{config.folder} holds {len(tasks)} tasks ({', '.join(sorted(tasks))}): a frontier is of one")
    families = families_of(cells)
    save(draw(families), config.out)
    write_text(config.out.with_suffix(".md"), "\n".join(_lines(families, cells)) + "\n")
    print(config.out)


def draw(families: Families) -> Figure:
    """Draw gold score against KL, and best-of-n once more at the bound of its KL."""
    points = {name: [(kl_of(own), gold_of(own)) for own in settings] for name, settings in families.items()}
    bound = [(kl_bound(_n(own[0])), gold_of(own).value) for own in families.get("best-of-n", [])]
    return score_against_kl(points, bound)


def families_of(cells: Sequence[RunResult]) -> Families:
    """Return the cells of each agent, setting by setting, in the order of KL."""
    families: dict[str, dict[str, list[RunResult]]] = {}
    for cell in cells:
        if cell.status == "done" and np.isfinite(cell.measure("kl_per_sequence")):
            families.setdefault(parse(cell.agent).name, {}).setdefault(cell.agent, []).append(cell)
    return {name: sorted(settings.values(), key=lambda own: kl_of(own).value) for name, settings in families.items()}


def kl_of(cells: Sequence[RunResult]) -> IntervalEstimate:
    """Return the KL per text over seeds, in nats."""
    return mean_interval(np.array([cell.measure("kl_per_sequence") for cell in cells]))


def gold_of(cells: Sequence[RunResult]) -> IntervalEstimate:
    """Return the gold score over seeds."""
    return mean_interval(np.array([cell.measure("gold") for cell in cells]))


def gold_at(settings: Sequence[Sequence[RunResult]], kl: float) -> IntervalEstimate | None:
    """Return the gold score that an agent has at a KL, interpolated for each seed between its settings.

    None where fewer than three seeds reach from below that KL to above it.
    """
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for own in settings:
        for cell in own:
            by_seed.setdefault(cell.seed, []).append((cell.measure("kl_per_sequence"), cell.measure("gold")))
    scores = []
    for points in map(sorted, by_seed.values()):
        distance, gold = np.array(points).T
        if distance.min() <= kl <= distance.max():
            scores.append(float(np.interp(kl, distance, gold)))
    return mean_interval(np.array(scores)) if len(scores) >= 3 else None


def _lines(families: Families, cells: Sequence[RunResult]) -> list[str]:
    """Write the table, and the differences at equal KL whose intervals separate."""
    num = Counter(cell.agent for cell in cells)
    rows: list[tuple[Any, ...]] = [
        (
            own[0].agent,
            kl_of(own),
            gold_of(own),
            mean_interval(np.array([cell.measure("reward") for cell in own])),
            f"{len(own)} of {num.pop(own[0].agent)}",
        )
        for settings in families.values()
        for own in settings
    ]
    rows += [(agent, "-", "-", "-", f"0 of {runs}") for agent, runs in num.items()]
    table = markdown_table(("agent", "KL, nats a text", "gold score", "reward", "runs that ended with a KL"), rows)
    differences = []
    for level in LEVELS:
        at = {name: gold for name, settings in families.items() if (gold := gold_at(settings, level)) is not None}
        for a, b in combinations(at, 2):
            (high, best), (low, worst) = sorted(((a, at[a]), (b, at[b])), key=lambda pair: -pair[1].value)
            if best.low > worst.high:
                differences.append(f"- at {level:g} nats, {high} has {best} and {low} {worst}")
    title = "At equal KL, interpolated between settings; only differences whose 95% intervals separate:"
    return [table, "", title, "", *(differences or ["- none"])]


def _n(cell: RunResult) -> int:
    return int(parse(cell.agent).settings.get("n", 8))
