"""The report of a benchmark: scores of all agents on all tasks, with intervals, and which differences are more than noise."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import combinations, pairwise, permutations
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
from .aggregate_statistics import (
    LEVEL,
    MIN_SEEDS,
    difference_interval,
    difference_p,
    holm,
    improvement,
    interval,
    iqm,
    mean,
    optimality_gap,
    profile,
    profile_band,
)
from .flags import BenchReport
from .protocol import TUNING
from .results import RunResult, Scores, headline, names, read_cells, scores_of
from .spec import parse, untuned
from .suites import capability, is_exact, plain_name

UNSCORED = "have no score, since the KL of an agent of one's own is not known, and are left out"
NONE = [float("nan")] * 3  # where there is nothing to estimate
NO_TOTALS = dict.fromkeys(("iqm", "mean", "gap"), NONE)
EXACT = (
    "the share of the possible gain in KL-regularised return, and the share of the gain in score that is possible at the policy's own KL, "
    "which asks nothing of how far an agent wants to go; best-of-n's distribution is not enumerated"
)
TUNED = (
    f"Tuned: with the best of {TUNING['trials']} settings drawn at random, each tried with {TUNING['tokens']:.0%} of the budget "
    f"and judged on validation prompts, so that the choice has cost {TUNING['trials'] * TUNING['tokens']:g} budgets more. "
    "What has no settings to tune has a single row of its own, and no number under untuned."
)
BUDGET = ("tokens_written", "tokens_trained", "reward_calls", "learning_seconds")
_SHOWN_MEASURES = (
    "reward", "gold", "wins_reference", "wins_texts", "kl_per_sequence", "kl_per_token", "kl_exact", "entropy", "perplexity", "distinct_1",
    "distinct_2", "self_bleu", "length",
    *BUDGET, "tokens_to_threshold", "seconds_to_threshold", "tokens_per_second", "peak_memory_mib", "seconds",
)  # fmt: skip


def run_report(config: BenchReport) -> None:
    """Write `report.html`, `report.md`, `scores.csv` and `summary.json` into the folder."""
    print(write_bench_report(config.folder))


def write_bench_report(folder: Path) -> Path:
    """Write the report of a results folder, and return the page's path."""
    cells, left_out, missing = read_cells(folder)
    settings = folder / "config.yaml"
    config = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    summary = summarise(cells) | {"left_out": left_out, "missing": missing}
    write_json(folder / "summary.json", summary)
    write_text(folder / "scores.csv", _csv(cells))
    write_text(folder / "report.md", _markdown(summary))
    images = {name: data_uri(figure) for name, figure in draw(cells, summary).items()}
    return write_page(
        folder / "report.html",
        "bench_report",
        s=summary,
        images=images,
        details=_details(cells),
        exact=EXACT,
        unscored=UNSCORED,
        tuned=TUNED,
        totals=totals_table(summary),
        shown=shown,
        config=config,
    )


def summarise(cells: Sequence[RunResult]) -> dict[str, Any]:
    """Return every number of the report as plain data."""
    tasks, agents = names(cells)
    counted = headline(tasks)
    scores, exact = scores_of(cells, counted), [t for t in tasks if is_exact(t)]
    total, total_all = _totals(scores), _totals(scores_of(cells))
    unscored = {a: num for a in agents if (num := len([c for c in cells if c.agent == a and np.isnan(c.score)]))}
    total_all |= dict.fromkeys(unscored, NO_TOTALS)  # not of the same tasks as the others'
    order = sorted(agents, key=lambda a: -np.nan_to_num(total[a]["iqm"][0], nan=-np.inf))
    defaults = {a: other for a in order if (other := untuned_of(a, order))}
    rows = [a for a in order if a not in defaults.values()]  # untuned ones are in the rows of the tuned
    ranked = [a for a in rows if np.isfinite(scores[a]).any()]
    better, apart = _compared(ranked, scores)
    tuning = {a: list(by) if (by := _ahead(scores[a], scores[b])) else NONE for a, b in defaults.items()}
    table = {t: {a: _mean(cells, t, a) for a in order} for t in tasks}
    budgets = sorted({cell.budget for cell in cells})
    first = min(cells, key=lambda cell: cell.manifest["began"])
    return {
        "tasks": tasks, "agents": order, "seeds": sorted({cell.seed for cell in cells}), "cells": len(cells),
        "capabilities": {t: capability(t.partition(":")[0]) for t in tasks},
        "unscored": unscored, "untuned": defaults, "shown": rows, "tuning": tuning, "apart": apart,
        "runs": {a: sum(c.agent == a for c in cells) for a in order},
        "protocols": sorted({cell.protocol for cell in cells}), "headline": counted,
        "exact": {t: {a: (table[t][a], _mean(cells, t, a, "of_best_score")) for a in order} for t in exact},
        "exact_runs": {t: {a: _known(cells, t, a, "of_best_score") for a in order} for t in exact},
        "reached": {a: _reached([c for c in cells if c.agent == a]) for a in order},
        "total": total, "total_all": total_all, "better": better, "table": table,
        "verdicts": _verdicts(ranked, scores, better, len({c.seed for c in cells})),
        "budgets": [budgets[0], budgets[-1]],
        "measures": {a: _measures([c for c in cells if c.agent == a]) for a in order},
        "by_task": {t: {a: _measures([c for c in cells if c.agent == a and c.task == t]) for a in order} for t in tasks},
        "failures": [
            {"task": c.task, "agent": c.agent, "seed": c.seed, "status": c.status, "error": c.error} for c in cells if c.status != "done"
        ],
        "hours": sum(c.measure("seconds") for c in cells) / 3600, "manifest": first.manifest,
    }  # fmt: skip


def _totals(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """Return interquartile mean, mean and optimality gap of each agent, with their intervals; NaN without scores."""
    statistics = {"iqm": iqm, "mean": mean, "gap": optimality_gap}
    return {
        a: {name: list(interval(f, runs)) for name, f in statistics.items()} if np.isfinite(runs).any() else NO_TOTALS
        for a, runs in scores.items()
    }


def _compared(agents: Sequence[str], scores: Scores) -> tuple[dict[str, dict[str, float]], list[list[str]]]:
    """Return how likely each agent's runs score above each other's, where they have a task in common, and which pairs differ beyond noise.

    The latter are pairs whose mean difference, seed by seed, is not 0 by a paired test, adjusted after Holm for the number of pairs.
    """
    better: dict[str, dict[str, float]] = {a: {} for a in agents}
    for a, b in permutations(agents, 2):
        if (np.isfinite(scores[a]).any(1) & np.isfinite(scores[b]).any(1)).any():
            better[a][b] = improvement(scores[a], scores[b])
    pairs = [(a, b) for a, b in combinations(agents, 2) if _ahead(scores[a], scores[b]) is not None]
    adjusted = holm([difference_p(scores[a] - scores[b]) for a, b in pairs])
    enough = {a: np.isfinite(scores[a]).any(0).sum() >= MIN_SEEDS for a in agents}
    return better, [[a, b] for (a, b), p in zip(pairs, adjusted, strict=True) if p < LEVEL and enough[a] and enough[b]]


def _ahead(ours: np.ndarray, theirs: np.ndarray) -> IntervalEstimate | None:
    """Return by how much ours is ahead in the mean, from runs with the same seed; None if they share no run."""
    by = ours - theirs
    return difference_interval(by) if np.isfinite(by).any() else None


def _mean(cells: Sequence[RunResult], task: str, agent: str, measure: str | None = None) -> list[float] | None:
    """Return the mean over seeds of the score, or of a measure, with its interval; None without any."""
    own = [c.score if measure is None else c.measure(measure) for c in cells if (c.task, c.agent) == (task, agent)]
    known = np.array([value for value in own if np.isfinite(value)])
    return list(mean_interval(known)) if len(known) else None


def _measures(cells: Sequence[RunResult]) -> dict[str, float | None]:
    """Return the median of each measure over cells that have it; a threshold that was not reached is so after infinity."""
    medians = {}
    for name in _SHOWN_MEASURES:
        values = [cell.measure(name) for cell in cells if np.isfinite(cell.measure(name))]
        if name.endswith("_to_threshold"):
            values = _to_threshold(cells, name)
        medians[name] = float(np.median(values)) if values else None
    return medians


def _to_threshold(cells: Sequence[RunResult], name: str) -> list[float]:
    """Return when each run of an agent with learning curves reached the threshold: infinity where it did not, or failed."""
    curves = [bool(c.curve) and c.curve[0]["score"] is not None for c in cells]
    known = [c for c, curve in zip(cells, curves, strict=True) if curve or c.status != "done"]
    return [float(np.nan_to_num(c.measure(name), nan=np.inf)) for c in known] if any(curves) else []


def _reached(cells: Sequence[RunResult]) -> list[int]:
    """Return how many runs reached the threshold, and of how many that is known."""
    tokens = _to_threshold(cells, "tokens_to_threshold")
    return [int(np.isfinite(tokens).sum()), len(tokens)]


def _known(cells: Sequence[RunResult], task: str, agent: str, measure: str) -> list[int]:
    """Return how many runs have a measure, and how many there are."""
    own = [c.measure(measure) for c in cells if (c.task, c.agent) == (task, agent)]
    return [int(np.isfinite(own).sum()), len(own)]


def _verdicts(ranked: Sequence[str], scores: Scores, better: dict[str, dict[str, float]], seeds: int) -> list[str]:
    """Return a sentence on each agent and the next one in rank: whether their difference, seed by seed, is more than noise."""
    if seeds < MIN_SEEDS:
        return [f"With {seeds} of at least {MIN_SEEDS} seeds, intervals mean little: nothing is said of who is ahead."]
    sentences = []
    for a, b in pairwise(ranked):
        by = _ahead(scores[a], scores[b])
        if by is None:
            continue
        seen = f"a run of {a} scores higher with probability {better[a][b]:.2f}"
        value, low, high = (f"{round(x, 3) + 0.0:.3f}" for x in by)
        if not np.isfinite(by.low):
            sentences.append(f"{a} and {b} are not compared: on some task they share a single seed.")
        elif by.low > 0:
            sentences.append(f"{a} does better than {b}: its mean is {value} [{low}, {high}] higher, seed by seed; {seen}.")
        elif by.high < 0:
            value, low, high = (f"{-x:.3f}" for x in (by.value, by.high, by.low))
            sentences.append(f"{b} does better than {a} in the mean, by {value} [{low}, {high}] seed by seed; {seen}.")
        else:
            sentences.append(f"{a} and {b} cannot be told apart: their means differ by {value} [{low}, {high}], seed by seed; {seen}.")
    return sentences


def draw(cells: Sequence[RunResult], summary: dict[str, Any]) -> dict[str, Figure]:
    """Draw every plot of the report, by the name that the page has for it."""
    figures = _draw_scores(cells, summary) if summary["better"] else {}
    lines = _curves(cells, summary["tasks"], summary["shown"])
    if lines:
        figures["curves"] = benchmark_plots.curves(summary["shown"], lines)
    return figures


def _draw_scores(cells: Sequence[RunResult], summary: dict[str, Any]) -> dict[str, Figure]:
    """Draw the plots of agents that have scores."""
    tasks, agents = summary["tasks"], list(summary["better"])
    scores = scores_of(cells, summary["headline"])
    thresholds = np.linspace(-0.25, 1.0, 51)
    titles = {"iqm": "interquartile mean", "mean": "mean", "gap": "optimality gap (less is better)"}
    bands = {a: (profile(scores[a], thresholds), *profile_band(scores[a], thresholds)) for a in agents}
    figures = {
        "intervals": benchmark_plots.intervals({title: {a: summary["total"][a][key] for a in agents} for key, title in titles.items()}),
        "profiles": benchmark_plots.profiles(thresholds, bands),
    }
    if len(tasks) > 2:
        means = {a: np.array([np.nan if (x := summary["table"][t][a]) is None else x[0] for t in tasks]) for a in agents}
        figures["radar"] = benchmark_plots.radar(short_names(tasks), means)
    if len(agents) > 1:
        figures["comparisons"] = benchmark_plots.comparisons(agents, summary["better"], [set(pair) for pair in summary["apart"]])
    return figures


def _curves(cells: Sequence[RunResult], tasks: Sequence[str], agents: Sequence[str]) -> dict[str, Any]:
    """Return for each task and agent: tokens, and mean, lowest and highest score of the seeds."""
    lines: dict[str, Any] = {}
    for task, name in zip(tasks, short_names(tasks), strict=True):
        for agent in agents:
            runs = [c.curve for c in cells if (c.task, c.agent) == (task, agent) and c.curve and c.curve[0]["score"] is not None]
            if runs:
                grid = np.linspace(max(r[0]["tokens"] for r in runs), min(r[-1]["tokens"] for r in runs), 40)
                scores = np.array([np.interp(grid, [p["tokens"] for p in r], _smooth([p["score"] for p in r])) for r in runs])  # (S, 40)
                lines.setdefault(name, {})[agent] = (grid, scores.mean(0), scores.min(0), scores.max(0))
    return lines


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Average over five rollouts: a single one has 64 texts."""
    kernel = np.ones(min(5, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _details(cells: Sequence[RunResult]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what a number of the table links to, for each task and agent: the first two texts of the first seed, and a line for each seed.

    Lines are points of 200 by 40 units: tokens to the right, score up, from -0.25 to 1.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        own = found.setdefault(cell.task, {}).setdefault(cell.agent, {"texts": [], "lines": []})
        own["texts"] = own["texts"] or cell.samples[:2]
        if cell.curve and cell.curve[0]["score"] is not None:
            height = np.clip(_smooth([row["score"] for row in cell.curve]), -0.25, 1)
            across = [200 * row["tokens"] / cell.curve[-1]["tokens"] for row in cell.curve]
            own["lines"].append(" ".join(f"{x:.0f},{40 * (1 - y) / 1.25:.1f}" for x, y in zip(across, height, strict=True)))
    return found


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
    apart = len(summary["headline"]) < len(summary["tasks"])
    head, rows = totals_table(summary)
    tasks = [[t, *("-" if cell is None else f"{cell[0]:.2f}" for cell in summary["table"][t].values())] for t in summary["tasks"]]
    parts = [
        f"{summary['cells']} runs: {len(summary['tasks'])} tasks, {len(agents)} agents, {len(summary['seeds'])} seeds; "
        f"protocol {' and '.join(map(str, summary['protocols']))}. Scores are 0 for the base policy and 1 for the optimum; brackets hold "
        f"95% intervals over seeds{', exact tasks are left out of IQM, mean and gap' if apart else ''}. What was used: the median of runs.",
        *([TUNED] if summary["untuned"] else []),
        *([f"Runs missing: {len(summary['missing']):,}; every number is of what is there."] if summary["missing"] else []),
        markdown_table(head, rows),
        "Mean score by task:",
        markdown_table(["task", *agents], tasks),
        *_exact_markdown(summary),
        *(f"- {line}" for line in summary["verdicts"]),
        *(f"- {agent}: {num} runs on exact tasks {UNSCORED}." for agent, num in summary["unscored"].items()),
        *([f"{summary['left_out']} results of other inputs left out."] if summary["left_out"] else []),
    ]
    return "\n\n".join(parts) + "\n"


def totals_table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of all tasks: a row for each agent, with its defaults beside it where it is tuned."""
    apart, defaults = len(summary["headline"]) < len(summary["tasks"]), summary["untuned"]
    untuned_head = ["untuned", "mean, tuned - untuned"] if defaults else []
    with_exact = ["interquartile mean with exact tasks"] if apart else []
    head = ["agent", "interquartile mean", *untuned_head, "mean", "optimality gap", *with_exact, "runs", "failed", *map(_words, BUDGET)]
    failed = [f["agent"] for f in summary["failures"]]
    rows = []
    for a in summary["shown"]:
        total = {key: shown(value) for key, value in summary["total"][a].items()}
        beside = [shown(summary["total"][defaults[a]]["iqm"]), shown(summary["tuning"][a], 3)] if a in defaults else ["-", "-"]
        spent = ("-" if (x := summary["measures"][a][name]) is None else f"{x:,.0f}" for name in BUDGET)
        rows.append(
            [
                a, total["iqm"], *(beside if defaults else []), total["mean"], total["gap"],
                *([shown(summary["total_all"][a]["iqm"])] if apart else []), str(summary["runs"][a]), str(failed.count(a)), *spent,
            ]
        )  # fmt: skip
    return head, rows


def shown(estimate: Sequence[float], digits: int = 2) -> str:
    """Return an estimate with its interval, `-` if there is none."""
    return IntervalEstimate(*estimate).rounded(digits) if np.isfinite(estimate[0]) else "-"


def _exact_markdown(summary: dict[str, Any]) -> list[str]:
    """Return the table of exact tasks, if there are any: for each agent the mean over seeds of two measures."""
    if not summary["exact"]:
        return []
    rows = [
        [t, a, *("-" if x is None else str(IntervalEstimate(*x)) for x in cell), "{} of {}".format(*summary["exact_runs"][t][a])]
        for t, by_agent in summary["exact"].items()
        for a, cell in by_agent.items()
    ]
    return [
        f"Exact tasks: {EXACT}.",
        markdown_table(["task", "agent", "share of KL-regularised return", "share of score at its KL", "runs that have it"], rows),
    ]


def untuned_of(agent: str, agents: Sequence[str]) -> str | None:
    """Return the agent of the same name and settings with its defaults, for one that is tuned; None where there is none."""
    plain = untuned(agent)
    return plain if plain != agent and plain in agents else None


def _words(name: str) -> str:
    return name.replace("_", " ")


def short_names(tasks: Sequence[str]) -> list[str]:
    """Return names for tasks in plots, all different.

    They have no prefix, no version, no settings that all tasks of their kind share, no names of the other settings, and no kind that all
    have.
    """
    specs = [parse(task) for task in tasks]
    kinds = [plain_name(spec.name) for spec in specs]
    settings = [{key: str(value) for key, value in spec.settings.items()} for spec in specs]
    kin = {kind: [own.items() for other, own in zip(kinds, settings, strict=True) if other == kind] for kind in kinds}
    shared = {kind: set.intersection(*map(set, own)) if len(own) > 1 else set() for kind, own in kin.items()}
    differ = [[item[1] for item in own.items() if item not in shared[kind]] for kind, own in zip(kinds, settings, strict=True)]
    names = [":".join(own if own and len(kin) == 1 else [kind, *own]) for kind, own in zip(kinds, differ, strict=True)]
    return names if len(set(names)) == len(names) else list(tasks)
