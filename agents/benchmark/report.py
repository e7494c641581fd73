"""The report of a benchmark: scores of all agents on all tasks, with intervals, and which differences are more than noise."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from rewards.utils.intervals import IntervalEstimate, mean_interval
from textrl_env.utils.files import write_json, write_text

from ..reports import benchmark_plots
from ..reports.html_page import write_page
from ..reports.plots import data_uri
from ..reports.tables import markdown_table
from .aggregate_statistics import difference_interval, improvement_interval, interval, iqm, mean, optimality_gap, profile, profile_band
from .flags import BenchReport
from .results import RunResult, by_seed, missing, names, read_results, scores_of
from .suites import capability

MIN_SEEDS = 3
_SHOWN_MEASURES = (
    "reward", "gold", "wins_reference", "wins_texts", "kl_per_sequence", "kl_per_token", "kl_exact", "entropy", "perplexity", "distinct_1",
    "distinct_2", "self_bleu", "length", "tokens_to_threshold", "seconds_to_threshold", "tokens_per_second", "peak_memory_mib", "seconds",
)  # fmt: skip


def run_report(config: BenchReport) -> None:
    """Write `report.html`, `report.md`, `scores.csv` and `summary.json` into the folder."""
    print(write_bench_report(config.folder))


def write_bench_report(folder: Path) -> Path:
    """Write the report of a results folder, and return the page's path."""
    cells = read_results(folder)
    settings = folder / "config.yaml"
    config = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    summary = summarise(cells)
    write_json(folder / "summary.json", summary)
    write_text(folder / "scores.csv", _csv(cells))
    write_text(folder / "report.md", _markdown(summary))
    images = {name: data_uri(figure) for name, figure in draw(cells, summary).items()}
    return write_page(folder / "report.html", "bench_report", s=summary, images=images, samples=_samples(cells), config=config)


def summarise(cells: Sequence[RunResult]) -> dict[str, Any]:
    """Return every number of the report as plain data."""
    tasks, agents = names(cells)
    scores = scores_of(cells)
    total = {a: {name: list(interval(f, scores[a])) for name, f in (("iqm", iqm), ("mean", mean), ("gap", optimality_gap))} for a in agents}
    order = sorted(agents, key=lambda a: -total[a]["iqm"][0])
    better = {a: {b: list(improvement_interval(scores[a], scores[b])) for b in order if b != a} for a in order}
    ahead = {(a, b): difference_interval(by_seed(cells, tasks, a), by_seed(cells, tasks, b)) for a, b in pairwise(order)}
    table = {t: {a: list(mean_interval(scores[a][i])) if len(scores[a][i]) else None for a in order} for i, t in enumerate(tasks)}
    budgets = sorted({cell.budget for cell in cells})
    first = min(cells, key=lambda cell: cell.manifest["began"])
    return {
        "tasks": tasks, "agents": order, "seeds": sorted({cell.seed for cell in cells}), "cells": len(cells),
        "capabilities": {t: capability(t.partition(":")[0]) for t in tasks},
        "total": total, "better": better, "table": table, "verdicts": _verdicts(order, ahead, better, len({c.seed for c in cells})),
        "budgets": [budgets[0], budgets[-1]],
        "measures": {a: _measures([c for c in cells if c.agent == a]) for a in order},
        "by_task": {t: {a: _measures([c for c in cells if c.agent == a and c.task == t]) for a in order} for t in tasks},
        "failures": [
            {"task": c.task, "agent": c.agent, "seed": c.seed, "status": c.status, "error": c.error} for c in cells if c.status != "done"
        ],
        "missing": [list(key) for key in missing(cells)],
        "hours": sum(c.measure("seconds") for c in cells) / 3600, "manifest": first.manifest,
    }  # fmt: skip


def _measures(cells: Sequence[RunResult]) -> dict[str, float | None]:
    """Return the median of each measure over cells that have it."""
    medians = {}
    for name in _SHOWN_MEASURES:
        values = [cell.measure(name) for cell in cells if np.isfinite(cell.measure(name))]
        medians[name] = float(np.median(values)) if values else None
    return medians


def _verdicts(
    order: Sequence[str], ahead: dict[tuple[str, str], IntervalEstimate], better: dict[str, dict[str, list[float]]], seeds: int
) -> list[str]:
    """Return a sentence on each agent and the next one in rank: whether their difference, seed by seed, is more than noise."""
    if seeds < MIN_SEEDS:
        return [f"With {seeds} of at least {MIN_SEEDS} seeds, intervals mean little: nothing is said of who is ahead."]
    sentences = []
    for (a, b), by in ahead.items():
        chance = IntervalEstimate(*better[a][b])
        seen = f"a run of {a} scores higher with probability {chance}"
        if by.low > 0:
            sentences.append(f"{a} does better than {b}, by {by} seed by seed; {seen}.")
        elif by.high < 0:
            sentences.append(f"{b} does better than {a} in the mean, by {-by.value:.2f} [{-by.high:.2f}, {-by.low:.2f}]; {seen}.")
        else:
            sentences.append(f"{a} and {b} cannot be told apart: they differ by {by} seed by seed; {seen}.")
    return sentences


def draw(cells: Sequence[RunResult], summary: dict[str, Any]) -> dict[str, Figure]:
    """Draw every plot of the report, by the name that the page has for it."""
    tasks, agents = summary["tasks"], summary["agents"]
    scores = scores_of(cells)
    thresholds = np.linspace(-0.25, 1.0, 51)
    titles = {"iqm": "interquartile mean", "mean": "mean", "gap": "optimality gap (less is better)"}
    bands = {a: (profile(scores[a], thresholds), *profile_band(scores[a], thresholds)) for a in agents}
    figures = {
        "intervals": benchmark_plots.intervals({title: {a: summary["total"][a][key] for a in agents} for key, title in titles.items()}),
        "profiles": benchmark_plots.profiles(thresholds, bands),
    }
    if len(tasks) > 2:
        means = {a: np.array([runs.mean() if len(runs) else np.nan for runs in scores[a]]) for a in agents}
        figures["radar"] = benchmark_plots.radar([_short(t) for t in tasks], means)
    if len(agents) > 1:
        pairs = {(a, b): estimate for a, row in summary["better"].items() for b, estimate in row.items()}
        figures["comparisons"] = benchmark_plots.comparisons(agents, pairs, decides=len(summary["seeds"]) >= MIN_SEEDS)
    lines = _curves(cells, tasks, agents)
    if lines:
        figures["curves"] = benchmark_plots.curves(agents, lines)
    return figures


def _curves(cells: Sequence[RunResult], tasks: Sequence[str], agents: Sequence[str]) -> dict[str, Any]:
    """Return for each task and agent: tokens, and mean, lowest and highest score of the seeds."""
    lines: dict[str, Any] = {}
    for task in tasks:
        for agent in agents:
            runs = [c.curve for c in cells if (c.task, c.agent) == (task, agent) and c.curve and c.curve[0]["score"] is not None]
            if runs:
                grid = np.linspace(max(r[0]["tokens"] for r in runs), min(r[-1]["tokens"] for r in runs), 40)
                scores = np.array([np.interp(grid, [p["tokens"] for p in r], _smooth([p["score"] for p in r])) for r in runs])  # (S, 40)
                lines.setdefault(_short(task), {})[agent] = (grid, scores.mean(0), scores.min(0), scores.max(0))
    return lines


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Average over five rollouts: a single one has 64 texts."""
    kernel = np.ones(min(5, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _samples(cells: Sequence[RunResult]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the first two texts of the first seed, for each task and agent."""
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        if cell.samples and cell.agent not in samples.get(cell.task, {}):
            samples.setdefault(cell.task, {})[cell.agent] = cell.samples[:2]
    return samples


def _csv(cells: Sequence[RunResult]) -> str:
    keys = list(dict.fromkeys(key for cell in cells for key in cell.measures))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "agent", "seed", "budget", "status", "score", *keys])
    for c in cells:
        writer.writerow([c.task, c.agent, c.seed, c.budget, c.status, c.score, *(c.measures.get(key) for key in keys)])
    return out.getvalue()


def _markdown(summary: dict[str, Any]) -> str:
    agents = summary["agents"]
    head = ["agent", "IQM", "mean", "optimality gap", "failures"]
    failed = [f["agent"] for f in summary["failures"]]
    rows = [
        [a, *(str(IntervalEstimate(*summary["total"][a][key])) for key in ("iqm", "mean", "gap")), str(failed.count(a))] for a in agents
    ]
    tasks = [[t, *("-" if cell is None else f"{cell[0]:.2f}" for cell in summary["table"][t].values())] for t in summary["tasks"]]
    parts = [
        f"{summary['cells']} runs: {len(summary['tasks'])} tasks, {len(agents)} agents, {len(summary['seeds'])} seeds. "
        "Scores are 0 for the base policy and 1 for the optimum; brackets hold 95% intervals.",
        markdown_table(head, rows),
        "Mean score by task:",
        markdown_table(["task", *agents], tasks),
        *(f"- {line}" for line in summary["verdicts"]),
    ]
    return "\n\n".join(parts) + "\n"


def _short(task: str) -> str:
    return task.removeprefix("textrl/").removesuffix("-v0").lower()
