"""What came of a run, for people: the table, the verdict and some texts on the terminal, and all of it as a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rewards.utils.intervals import IntervalEstimate, Rate
from textrl_env.utils.tables import read_rows

from ..evaluation.text_comparison import Comparison, decimals, ended, signed
from ..reports.html_page import write_page
from ..reports.plots import data_uri
from ..reports.training_plots import progress
from ..utils.run_folder import versions
from ..utils.run_tree import run_tree
from .run_outcome import Outcome
from .trained_run import read_settings

_ON_TERMINAL, _ON_PAGE = 3, 20  # prompts whose texts are shown: the first ones, nobody chooses
_WIDTH = 100
_MESSAGE = "what you say to it"  # in place of a prompt that a chat template wrote
_MEANS = {
    "score": ("reward", "mean; what was optimised"),
    "return": ("reward, with the task's penalties", "mean"),
    "held_out": ("held-out reward", "mean; not optimised"),
    "gold": ("gold score", "mean; the task's own judgement"),
}

_PYTHON = """\
from pathlib import Path

from agents import generate
from agents.training.trained_run import open_run

run = open_run(Path({folder!r}))
print(generate(run.policy, run.task.tokenizer, run.task.prompts[:1], run.task.max_new_tokens, seed=0, **run.writing))
"""
_TRANSFORMERS = """\
from transformers import {auto}

model = {auto}.from_pretrained({model!r})
"""


class Line(NamedTuple):
    """A line of the table: a measure before and after training.

    Attributes:
        title: What is measured.
        hint: What it means.
        before: Its value before.
        after: After.
        change: The difference with its 95% interval, or an interval of the value after.
    """

    title: str
    hint: str
    before: str
    after: str
    change: str = ""


def lines_of(outcome: Outcome) -> list[Line]:
    """Return the table, formatted for reading."""
    found = outcome.comparison
    lines = []
    for name, (title, hint) in _MEANS.items():
        if name in found.after and (name != "return" or found.after[name] != found.after["score"]):
            lines.append(_mean(found, name, title, hint if name != "score" or found.aim == "score" else "mean; not optimised"))
        if name == "score" and found.better and found.equal and found.worse:
            shares = f"{found.better.rate:.0%} / {found.equal.rate:.0%} / {found.worse.rate:.0%}"
            lines.append(Line("better / equal / worse texts", "by the reward, than the one before to the same prompt", "", shares))
    if found.kl is not None:
        to = "the teacher, whom it learned from" if found.aim == "kl" else "the reference"
        line = _plain(found, "kl_per_sequence", "KL per text, nats", f"distance from {to}", ".1f")
        change = signed(found.change["kl"]) if "kl" in found.change else f"[{found.kl.low:.1f}, {found.kl.high:.1f}]"
        lines.append(line._replace(change=change))
        lines.append(_plain(found, "perplexity", "perplexity", "of the texts, under the reference", ".1f"))
    lines.append(_plain(found, "distinct_2", "distinct-2", "share of different word pairs; low is repetitive", ".3f"))
    lines.append(_mean(found, "length", "length, tokens", "mean"))
    before, after = (_interval(ended(rows)) if rows else "" for rows in (outcome.before, outcome.after))
    lines.append(Line("came to an end", "the others ran into the length limit", before, after))
    lines.append(_plain(found, "repeated", "repeated texts", "share that another text of the same policy equals", ".1%"))
    return lines


def _mean(found: Comparison, name: str, title: str, hint: str) -> Line:
    change = found.change.get(name, IntervalEstimate(0.0, 0.0, 0.0))
    before = decimals(found.before[name], change) if found.before else ""
    return Line(title, hint, before, decimals(found.after[name], change), signed(change) if found.before else "")


def _plain(found: Comparison, name: str, title: str, hint: str, spec: str) -> Line:
    return Line(title, hint, f"{found.before[name]:{spec}}" if found.before else "", f"{found.after[name]:{spec}}")


def _interval(rate: Rate) -> str:
    return f"{rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}]"


def print_outcome(outcome: Outcome, console: Console, texts: int = _ON_TERMINAL) -> None:
    """Print the table, the verdict, warnings, and the first texts before and after side by side, at most 100 columns wide."""
    width, found = min(console.width, _WIDTH), outcome.comparison
    heads = [Column(name, justify="right", no_wrap=True) for name in ("before", "after", "change [95%]")]
    table = Table("", *heads, box=box.SIMPLE_HEAD, width=width)
    for line in lines_of(outcome):
        table.add_row(line.title, *line[2:])
    console.print(table)
    console.print(Text(found.verdict, style="bold"), width=width)
    for warning in found.warnings:
        console.print(Text(f"Beware: {warning}.", style="bold red"), width=width)
    for sentence in filter(None, (outcome.policy, outcome.prompts)):
        console.print(Text(f"{sentence}.", style="dim"), width=width)
    for prompt, sides in texts_of(outcome, texts):
        console.print()
        console.print(Text(printable(prompt), style="dim"), width=width)
        shown = Table(*(Column(title, ratio=1) for title in sides), box=box.SIMPLE_HEAD, width=width)
        shown.add_row(*map(_written, sides.values()))
        console.print(shown)


def _written(row: Mapping[str, Any]) -> Text:
    return Text.assemble(printable(row["response"].strip() or "(nothing)"), "\n", (_scores(row), "italic"))


def texts_of(outcome: Outcome, number: int) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Return the texts to the first different prompts, before and after."""
    writers = {"before": outcome.before, "after": outcome.after}
    chosen: dict[str, dict[str, Mapping[str, Any]]] = {}
    for i, row in enumerate(outcome.after):
        if len(chosen) < number:
            chosen.setdefault(row["prompt"], {title: rows[i] for title, rows in writers.items() if rows is not None})
    return list(chosen.items())


def _scores(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{title} {row[name]:+.2f}" for name, (title, _) in _MEANS.items() if name in row and name != "return")


def printable(characters: str) -> str:
    """Replace what a terminal would obey instead of show: a text may hold escape sequences."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in characters)


def print_tree(folder: Path, console: Console) -> None:
    """Print what lies in the folder of a run, with a phrase for each file."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=str(folder), title_justify="left", title_style="bold")
    for name, meaning in run_tree(folder):
        table.add_row(Text(name), Text(meaning, style="dim"))
    console.print(table)


def write_outcome_page(folder: Path, name: str, outcome: Outcome) -> Path:
    """Write `report.html` into the folder of a run, one page that needs no other file, and return its path.

    Args:
        folder: Of the run.
        name: Subfolder of the policy.
        outcome: What came of it.
    """
    settings = read_settings(folder)
    picture = _picture(folder / str(settings.get("algo", name)))
    return write_page(
        folder / "report.html",
        "outcome_report",
        title=f"textrl train --algo {settings.get('algo', name)}: {folder.name}",
        outcome=outcome,
        lines=lines_of(outcome),
        texts=texts_of(outcome, _ON_PAGE),
        scores=_scores,
        picture=picture and data_uri(picture),
        ways_on=ways_on(folder, name, settings, _MESSAGE if outcome.renders else outcome.after[0]["prompt"], "image" in outcome.after[0]),
        tree=list(run_tree(folder)),
        details={"Configuration": {key: _words(value) for key, value in settings.items()}, "Versions": versions()},
    )


def _picture(folder: Path) -> Figure | None:
    """Draw reward, KL and length over the tokens of the training; None where it did not play."""
    panels = {"learned": "reward", "gold": "gold score", "kl_per_sequence": "KL per text\n(nats)", "length": "length\n(tokens)"}
    curve = _columns(folder / "curve.csv")
    drawn = {title: curve[name] for name, title in panels.items() if name in curve and np.isfinite(curve[name]).any()}
    watched = _columns(folder / "reward_hacking.csv")
    if drawn and np.isfinite(watched.get("held_out", np.nan)).any() and np.array_equal(watched["tokens"], curve["tokens"]):
        drawn = {"reward": drawn.pop("reward"), "held-out reward": watched["held_out"], **drawn}
    return progress(curve["tokens"], drawn) if drawn else None


def _columns(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    rows = read_rows(file)
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def ways_on(folder: Path, name: str, settings: Mapping[str, Any], prompt: str, with_picture: bool) -> dict[str, str]:
    """Return what can be done next with a run, by title: commands, and Python as a program.

    Args:
        folder: Of the run.
        name: Subfolder of the policy.
        settings: The run's own.
        prompt: One that its policy can go on with.
        with_picture: Whether prompts have pictures.
    """
    place = shlex.quote(str(folder))
    ways = {
        "Write texts": f"textrl generate {place} {shlex.quote(prompt)}",
        "Measure more texts": f"textrl evaluate {place} --texts 1000",
        "Train on": f"textrl train --config {place}/config.yaml --total-tokens {2 * int(settings['total_tokens'])}"
        if settings.get("total_tokens")
        else "",
        "Ask people which texts are better": f"textrl feedback create {place}-study --samples before={place}/texts-before.jsonl "
        f"after={place}/texts-after.jsonl --pairs 100\ntextrl feedback serve {place}-study",
        "In Python": _PYTHON.format(folder=str(folder)),
        "In transformers, and programs that read its folders": _TRANSFORMERS.format(
            auto="AutoModelForImageTextToText" if with_picture else "AutoModelForCausalLM", model=str(folder / name / "model")
        ),
    }
    if with_picture:
        del ways["Ask people which texts are better"]  # their page shows no pictures
    if not (folder / name / "model").is_dir():  # runs of earlier versions
        ways.popitem()
    return {title: text for title, text in ways.items() if text}


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
