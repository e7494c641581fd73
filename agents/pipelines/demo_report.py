"""The report on a demo's run folder, as a web page and on the terminal."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rewards.utils.intervals import wilson
from textrl_env.utils.files import read_json
from textrl_env.utils.tables import read_rows

from ..reports.html_page import write_page
from ..reports.plots import data_uri, save
from ..reports.training_plots import Curve, frontier, learning_curve
from ..training.outcome_report import printable

_NUM_PROMPTS = 5
_TERMINAL_WIDTH = 100
_NONE = "n/a"

Measures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A demo's run folder, read.

    Attributes:
        results: What `results.json` holds.
        curves: How training went, by variant.
        texts: The first prompts, each with what every writer made of it.
    """

    results: dict[str, Any]
    curves: dict[str, Curve]
    texts: list[dict[str, Any]]

    @property
    def variants(self) -> dict[str, Measures]:
        """Measures of the trained models."""
        return self.results["variants"]

    @property
    def writers(self) -> dict[str, Measures]:
        """Measures of the base and the trained models, each with a title."""
        return {"base": {"title": "base", **self.results["base"]}, **self.variants}


def read_run(folder: str | Path) -> Run:
    """Read the files that `textrl demo` leaves.

    Args:
        folder: Holds `results.json`, `texts.jsonl` and one `<variant>/curve.csv` for each variant.

    Raises:
        FileNotFoundError: The folder is not that of a finished demo.
        ValueError: There is no variant in it, or a curve is empty or lacks a column.
    """
    folder = Path(folder)
    if not (folder / "results.json").is_file():
        raise FileNotFoundError(f"no results.json in {folder}: give the folder of a finished `textrl demo`")
    results = read_json(folder / "results.json")
    if not results["variants"]:
        raise ValueError(f"{folder / 'results.json'} has no variants: there is nothing to report")
    curves = {name: _read_curve(folder / name / "curve.csv", measures["title"]) for name, measures in results["variants"].items()}
    return Run(results, curves, read_rows(folder / "texts.jsonl")[:_NUM_PROMPTS])


def _read_curve(path: Path, title: str) -> Curve:
    rows = read_rows(path)
    columns = ("texts", "learned", "gold", "kl_per_sequence")
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} has {len(rows)} rows and lacks {', '.join(missing)}: was training stopped before its first iteration ended?"
        )
    return Curve(title, *(np.array([float(row[column]) for row in rows]) for column in columns))


class Row(NamedTuple):
    """One line of the table of measures.

    Attributes:
        label: What is measured.
        hint: What it means.
        cells: One for each writer, the base first.
    """

    label: str
    hint: str
    cells: list[str]


_MEASURES = (
    ("learned", "Learned score", "mean, by the reward model", "+.2f"),
    ("gold", "Gold score", "mean of the annotator's true utility", "+.2f"),
    ("win_rate", "Gold win rate against the base", "same openings, 95% interval", ".1%"),
    ("kl_per_sequence", "KL per text (nats)", "distance from the base", ".2f"),
    ("distinct_2", "Distinct-2", "share of different word pairs; low is repetitive", ".3f"),
    ("length", "Length (tokens)", "mean", ".1f"),
    ("finished_by_eos", "Finished by end-of-text", "the others ran into the limit", ".1%"),
    ("tokens_per_second", "Tokens per second", "while writing", ",.0f"),
)


def measure_rows(run: Run) -> list[Row]:
    """Return the table of measures, formatted for reading."""
    writers = run.writers.values()
    return [Row(label, hint, [_cell(measures.get(key), spec) for measures in writers]) for key, label, hint, spec in _MEASURES]


def _cell(value: Any, spec: str) -> str:
    if isinstance(value, dict):  # a rate and its interval
        return f"{_number(value['rate'], spec)} [{_number(value['low'], spec)}, {_number(value['high'], spec)}]"
    return _number(value, spec)


def _number(value: float | None, spec: str) -> str:
    if value is None or not math.isfinite(value):
        return _NONE
    return format(value, spec)


def summarise(run: Run) -> list[str]:
    """Return what was done and what came out, in plain sentences."""
    pairs = run.results["reward_model"]["pairs"]
    how = " and once ".join(measures["title"] for measures in run.variants.values())
    done = (
        "A small language model was pretrained on generated film reviews: the base. "
        f"A simulated annotator compared texts in pairs, a reward model learned from {pairs:,} of its choices (the learned score), "
        f"and PPO trained the model for that score, {'once ' if len(run.variants) > 1 else ''}{how}. "
        "The annotator's true utility, which training saw only through those choices, is the judge (the gold score)."
    )
    return [done, *(_verdict(measures) for measures in run.variants.values())]


def _verdict(measures: Measures) -> str:
    won = measures["win_rate"]
    verdict = (
        f"Trained {measures['title']}, it won {_number(won['rate'], '.1%')} of {won['num']:,} gold comparisons with the base "
        f"(95% interval {_number(won['low'], '.1%')} to {_number(won['high'], '.1%')}) "
        f"at a KL of {_number(measures['kl_per_sequence'], '.2f')} nats per text"
    )
    if won["low"] <= 0.5 <= won["high"]:
        return verdict + ", which does not tell the two apart."
    return verdict + ("." if won["rate"] > 0.5 else ": training made the texts worse.")


def describe_reward_model(measures: Measures) -> str:
    """Return how well the reward model predicts the annotator, and how well any model could."""
    held_out, num = measures["held_out_accuracy"], measures["held_out_pairs"]
    rate = wilson(held_out * num, num)
    return (
        f"The reward model agrees with the annotator on {held_out:.1%} of {num:,} held-out pairs (95%: {rate.low:.1%} to {rate.high:.1%}) "
        f"and on {measures['train_accuracy']:.1%} of its training pairs. The annotator chooses with noise, "
        f"so that even a model that knew the true utility would reach only {measures['best_accuracy']:.1%}."
    )


def explain_kl(base: Measures, kl: Measures, no_kl: Measures) -> list[str]:
    """Return what happened without the KL term, and what these numbers allow to conclude from it.

    Overoptimisation is claimed only where the gold score did worse, beyond chance, although the learned score did not.
    """
    learned, gold = no_kl["learned"] - base["learned"], no_kl["gold"] - base["gold"]
    learned_kl, gold_kl = kl["learned"] - base["learned"], kl["gold"] - base["gold"]
    facts = (
        f"Without the KL term the learned score {_moved(learned)} (with it, it {_moved(learned_kl)}) "
        f"and the gold score {_moved(gold)} (with it, it {_moved(gold_kl)}). "
        f"KL came to {no_kl['kl_per_sequence']:.2f} nats per text instead of {kl['kl_per_sequence']:.2f}, "
        f"and distinct-2 to {no_kl['distinct_2']:.3f} instead of {kl['distinct_2']:.3f} (base: {base['distinct_2']:.3f})."
    )
    return [facts, _conclusion(learned, gold, learned_kl, gold_kl, _overlap(kl["win_rate"], no_kl["win_rate"]))]


def _conclusion(learned: float, gold: float, learned_kl: float, gold_kl: float, alike: bool) -> str:
    near = "The KL term keeps the policy near the texts that the reward model was fitted on."
    if gold >= gold_kl:
        return "The gold score did at least as well without it: these numbers show no overoptimisation that the KL term prevented."
    if alike:
        return "The gold score did worse, but the two gold win rates have overlapping intervals: one run of each is no more than a hint."
    if learned > 0 > gold:
        return f"The annotator prefers the base's texts: the policy exploits the reward model's mistakes (reward hacking). {near}"
    if learned >= learned_kl:
        return f"More learned score bought less gold score: part of the gain is the reward model's mistakes (overoptimisation). {near}"
    return "Both scores did worse without it, so these numbers show poorer training rather than a reward model being exploited."


def _moved(change: float) -> str:
    if abs(change) < 0.005:  # prints as 0.00
        return "stayed where it was"
    return f"{'rose' if change > 0 else 'fell'} by {abs(change):.2f}"


def _overlap(one: Measures, other: Measures) -> bool:
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def write_report(folder: str | Path) -> Path:
    """Write `frontier.png`, `learning_curve.png` and a self-contained `report.html` into a demo's run folder.

    Args:
        folder: See `read_run`, also for what is raised.

    Returns:
        The page.
    """
    folder = Path(folder)
    run = read_run(folder)
    pictures = {"frontier": frontier(run.curves), "learning_curve": learning_curve(run.curves)}
    for name, figure in pictures.items():
        save(figure, folder / f"{name}.png")
    base, kl, no_kl = (run.writers.get(name) for name in ("base", "kl", "no-kl"))
    return write_page(
        folder / "report.html",
        "demo_report",
        writers=run.writers,
        texts=run.texts,
        summary=summarise(run),
        rows=measure_rows(run),
        reward_model=describe_reward_model(run.results["reward_model"]),
        explanation=explain_kl(base, kl, no_kl) if base and kl and no_kl else [],
        images={name: data_uri(folder / f"{name}.png") for name in pictures},
        details={"Configuration": _plain(run.results["config"]), "Versions": _plain(run.results["versions"]), "Seconds": _seconds(run)},
        signed=lambda value: _number(value, "+.2f"),
    )


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _seconds(run: Run) -> dict[str, str]:
    stages = {**run.results["seconds"], **{f"PPO {m['title']}": m.get("seconds") for m in run.variants.values()}}
    return {name: _number(seconds, ",.1f") for name, seconds in stages.items()}


def print_results(folder: str | Path, console: Console) -> None:
    """Print the table of measures, and the first prompts with what each writer made of them, at most 100 columns wide.

    Args:
        folder: See `read_run`, also for what is raised.
        console: Where to.
    """
    run = read_run(folder)
    width = min(console.width, _TERMINAL_WIDTH)
    titles = [Column(Text(measures["title"]), justify="right") for measures in run.writers.values()]
    table = Table("", *titles, box=box.SIMPLE_HEAD, width=width)
    for row in measure_rows(run):
        table.add_row(row.label, *row.cells)
    console.print(table)
    console.print(Text(describe_reward_model(run.results["reward_model"])), width=width)
    for text in run.texts:
        console.print()
        console.print(Text(printable(text["prompt"]), style="dim"), width=width)
        console.print(_side_by_side(text, run.writers, width))


def _side_by_side(text: dict[str, Any], writers: dict[str, Measures], width: int) -> Table:
    present = [name for name in writers if name in text]
    table = Table(*(Column(Text(writers[name]["title"]), ratio=1) for name in present), box=box.SIMPLE_HEAD, width=width)
    table.add_row(*(_written(text[name]) for name in present))
    return table


def _written(written: dict[str, Any]) -> Text:
    scores = f"learned {_number(written['learned'], '+.2f')}, gold {_number(written['gold'], '+.2f')}"
    return Text.assemble(printable(written["response"].strip() or "(nothing)"), "\n", (scores, "italic"))
