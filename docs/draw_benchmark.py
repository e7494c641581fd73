"""Write docs/benchmark from a full run: tables, pictures, scores, and the cells, so that others can put their agents beside them.

    python docs/draw_benchmark.py runs/full

The tables in README.md and the documents that `<!-- benchmark:NAME -->` marks are written anew from the stored scores.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agents.benchmark.aggregate_statistics import difference_interval, interval, iqm
from agents.benchmark.flags import Leaderboard
from agents.benchmark.leaderboard import run_leaderboard
from agents.benchmark.report import draw, write_bench_report
from agents.benchmark.results import CURRENT, Scores, headline, read_results
from agents.benchmark.suites import is_exact
from agents.reports.plots import save
from agents.reports.tables import markdown_table
from rewards.utils.intervals import IntervalEstimate, mean_interval
from textrl_env.utils.files import read_json, write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "benchmark"
DOCUMENTS = ("README.md", "docs/benchmark.md", "docs/how-to/benchmark.md")
PICTURES = ("curves", "intervals", "comparisons", "profiles")
DIGITS = 7  # of what cells hold besides the score, in the archive
TUNED = ":tuned=true"
PAIRS = (
    ("rloo", "ppo"), ("ppo", "reinforce++"), ("rloo", "reinforce++"), ("grpo", "ppo"), ("grpo", "rloo"), ("grpo", "reinforce++"),
    ("best-of-n", "grpo"), ("best-of-n", "a2c"), ("a2c", "sft"), ("sft", "dpo"),
)  # fmt: skip
LEVELS = (0.8, 0.5, -np.inf)
SHOWN = 4  # of the tasks on which tuning helped, the most helped


class Stored(NamedTuple):
    """What a file of scores holds.

    Attributes:
        tasks: Names.
        scores: Of each agent, shape (T, S), NaN where there is none.
        shares: Likewise, on exact tasks: of the gain in score that is possible at the policy's KL.
    """

    tasks: list[str]
    scores: Scores
    shares: Scores


def stored(path: Path = OUT / "scores.csv") -> Stored:
    """Read a file of scores."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tasks, seeds, agents = (sorted({row[name] for row in rows}) for name in ("task", "seed", "agent"))
    scores, shares = ({agent: np.full((len(tasks), len(seeds)), np.nan) for agent in agents} for _ in range(2))
    for row in rows:
        place = tasks.index(row["task"]), seeds.index(row["seed"])
        scores[row["agent"]][place] = float(row["score"] or "nan")
        shares[row["agent"]][place] = float(row["of_best_score"] or "nan")
    return Stored(tasks, scores, shares)


def totals(found: Stored) -> str:
    """Return the table of agents, the best first: interquartile means tuned and with the defaults, and the paired difference of means."""
    rows, lines = _counted(found), []
    for agent, tuned, plain in _ranked(found):
        by = "-" if tuned is None else difference_interval(_by_tuning(found, agent)[rows]).rounded(3)
        lines.append((_name(agent), tuned or "-", plain, by))
    return markdown_table(("agent", "tuned", "defaults", "mean, tuned - defaults"), lines)


def short(found: Stored) -> str:
    """Return the table of agents without the difference."""
    return markdown_table(("agent", "tuned", "defaults"), [(_name(agent), tuned or "-", plain) for agent, tuned, plain in _ranked(found)])


def _ranked(found: Stored) -> list[tuple[str, IntervalEstimate | None, IntervalEstimate]]:
    """Return the agents, the best first, and their interquartile means tuned, where they were, and with the defaults."""
    rows = _counted(found)
    lines = []
    for agent in _agents(found):
        tuned = found.scores.get(f"{agent}{TUNED}")
        best, plain = (None if runs is None else interval(iqm, runs[rows]) for runs in (tuned, found.scores[agent]))
        lines.append((agent, best, plain))
    return sorted(lines, key=lambda line: -(line[1] or line[2]).value)


def _name(agent: str) -> str:
    return agent.replace("best-of-n", "best-of-8").replace(TUNED, ", tuned")


def _agents(found: Stored) -> list[str]:
    return [agent for agent in found.scores if not agent.endswith(TUNED)]


def _by_tuning(found: Stored, agent: str) -> Any:
    """Return by how much each run of the tuned agent is ahead of that with the defaults and the same seed, shape (T, S)."""
    return found.scores[f"{agent}{TUNED}"] - found.scores[agent]


def tuning(found: Stored) -> str:
    """Return the table of what tuning changed: in the mean, and on which tasks beyond the paired interval of that task alone."""
    rows, lines = _counted(found), []
    for agent in (agent for agent in _agents(found) if f"{agent}{TUNED}" in found.scores):
        by = _by_tuning(found, agent)
        ends = [(task, mean_interval(runs[np.isfinite(runs)])) for task, runs in zip(found.tasks, by, strict=True)]
        worse = sorted((x.value, task) for task, x in ends if x.high < 0)
        better = sorted(((x.value, task) for task, x in ends if x.low > 0), reverse=True)
        named = [", ".join(f"{task} {value:+.2f}" for value, task in some) or "-" for some in (worse, better[:SHOWN])]
        more = f" and {len(better) - SHOWN} more" if len(better) > SHOWN else ""
        lines.append((agent, difference_interval(by[rows]).rounded(3), named[0], named[1] + more))
    return markdown_table(("agent", "mean, tuned - defaults", "worse on", "better on"), lines)


def _counted(found: Stored) -> list[int]:
    """Return which tasks the headline is of."""
    return [i for i, task in enumerate(found.tasks) if task in headline(found.tasks)]


def differences(found: Stored) -> str:
    """Return the table of differences of means between agents, from runs with the same seed."""
    scores, some = found.scores, _counted(found)

    def by(a: str, b: str, rows: Any) -> str:
        return difference_interval(scores[a][rows] - scores[b][rows]).rounded(3)

    lines = []
    for pair in (pair for pair in PAIRS if all(agent in scores for agent in pair)):
        tuned = [f"{agent}{TUNED}" if f"{agent}{TUNED}" in scores else agent for agent in pair]
        lines.append((" - ".join(map(_name, pair)), by(*tuned, some), by(*pair, some), by(*tuned, slice(None)), by(*pair, slice(None))))
    number = len(some)
    head = (
        "mean difference",
        f"{number} tasks, tuned",
        f"{number} tasks, defaults",
        "with exact tasks, tuned",
        "with exact tasks, defaults",
    )
    return markdown_table(head, lines)


def solved(found: Stored) -> str:
    """Return which tasks PPO solves, with its mean score, by threshold."""
    lines = []
    for name, agent in (("defaults", "ppo"), ("tuned", f"ppo{TUNED}")):
        means = {task: float(np.nanmean(values)) for task, values in zip(found.tasks, found.scores[agent], strict=True)}
        below = np.inf
        for level in LEVELS:
            there = sorted((task for task, x in means.items() if level <= x < below), key=lambda task: -means[task])
            title = f"at least {level:g}" if np.isfinite(level) else f"less than {below:g}"
            lines.append((name, title, ", ".join(f"{task} {means[task]:.2f}" for task in there) or "-"))
            below = level
    return markdown_table(("settings", "mean score", "tasks"), lines)


def exact(found: Stored) -> str:
    """Return the table of exact tasks: means of the share of the possible gain in KL-regularised return, and of that in score at its KL."""
    rows = [i for i, task in enumerate(found.tasks) if is_exact(task)]

    def means(agent: str, i: int) -> str:
        share = found.shares[agent][i]
        return f"{np.nanmean(found.scores[agent][i]):.2f} / {f'{np.nanmean(share):.2f}' if np.isfinite(share).any() else '-'}"

    agents = sorted(found.scores, key=lambda agent: -float(np.nanmean(found.scores[agent][rows])))
    lines = [(_name(agent), *(means(agent, i) for i in rows)) for agent in agents]
    return markdown_table(("agent", *(found.tasks[i].removeprefix("exact-") for i in rows)), lines)


TABLES = {"totals": totals, "short": short, "tuning": tuning, "differences": differences, "solved": solved, "exact": exact}


def marked(name: str, text: str) -> str:
    """Return the table that a document has under a name.

    Raises:
        ValueError: It has none.
    """
    found = re.search(_mark(name), text, re.DOTALL)
    if found is None:
        raise ValueError(f"no table is marked by <!-- benchmark:{name} --> and <!-- /benchmark -->")
    return found[2].strip()


def _mark(name: str) -> str:
    return rf"(<!-- benchmark:{name} -->\n)(.*?)(\n<!-- /benchmark -->)"


def rounded(value: Any) -> Any:
    """Return plain data whose numbers have fewer digits, but for the score of a cell."""
    if isinstance(value, dict):
        return {key: item if key == "score" and "curve" in value else rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def pack_cells(folder: Path, path: Path) -> None:
    """Write what `textrl bench --out FOLDER` goes on from, and other agents are put beside."""
    cells = sorted((folder / "cells").glob("*.json"))
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for file in (folder / CURRENT, folder / "config.yaml", *sorted((folder / "tasks").glob("*.json")), *cells):
            data = file.read_bytes()
            if file.parent.name == "cells":
                data = json.dumps(rounded(json.loads(data)), separators=(",", ":")).encode()
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_files(folder: Path, out: Path = OUT) -> None:
    """Write the files of a run."""
    write_bench_report(folder)
    summary = read_json(folder / "summary.json")
    write_text(out / "scores.csv", (folder / "scores.csv").read_text(encoding="utf-8"))
    write_text(out / "table.md", "# All scores by task\n\n" + (folder / "report.md").read_text(encoding="utf-8"))
    for name, figure in draw(read_results(folder), summary).items():
        if name in PICTURES:
            save(figure, out / f"{name}.png")
            Image.open(out / f"{name}.png").convert("RGB").quantize(128).save(out / f"{name}.png", optimize=True)  # a fourth of the bytes
    pack_cells(folder, out / "cells.tar.xz")
    run_leaderboard(Leaderboard((folder,), out / "leaderboard.html"))
    (out / "leaderboard.html").unlink()


def write_tables() -> None:
    """Write the tables of the documents anew."""
    found = stored()
    for path in map(ROOT.joinpath, DOCUMENTS):
        text = path.read_text(encoding="utf-8")
        for name, table in TABLES.items():
            text = re.sub(_mark(name), lambda mark, table=table: mark[1] + table(found) + mark[3], text, flags=re.DOTALL)
        write_text(path, text)


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
    write_tables()
