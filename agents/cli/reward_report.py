"""`textrl reward report`: fit a reward model to a file of preferences, and say on one page how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from annotated_types import Ge, Interval
from rich.console import Console

from rewards import Preference, fit_preference_model
from rewards.fitting.calibration import reliability
from rewards.fitting.comparisons import hold_out
from rewards.fitting.reward_evaluation import JudgedComparisons, judge, measures, mistakes
from rewards.preferences.preference_files import read_preference_file
from rewards.utils.intervals import Rate
from textrl_env import Episode, FileTokenizer
from textrl_env.utils.files import write_json, write_text
from textrl_env.utils.train_tokenizer import EOS, train_tokenizer

from ..reports.html_page import write_page
from ..reports.plots import data_uri, save
from ..reports.reward_plots import accuracies, reliability_diagram
from ..utils.limits import Seed
from ..utils.progress import bar
from ..utils.run_folder import RunFolder
from ..utils.threads import choose_threads

_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training comparisons, for the learning curve


@dataclass(frozen=True)
class Report:
    """Fit a reward model to preferences and report on it: accuracy, calibration, length, learning curve, mistakes, subgroups.

    Attributes:
        file: JSON Lines (plain or gzip) or CSV, in any form that `rewards.read_preferences` knows.
        out: Folder for `report.html`, `report.json`, and the model in `reward`, which `--reward` of other commands takes.
        trunk: Fit a transformer beside the hashed n-grams, which takes minutes instead of seconds.
        tokenizer: Folder or file of a tokenizer; by default one is trained on the file's texts.
        max_tokens: Longest text that is read, in tokens; of longer ones the beginning is left out.
        test: Share of the comparisons that the model never sees; those of one prompt stay together.
        seed: Of the split and the fit.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("preferences.jsonl")
    out: Path = Path("runs/reward")
    trunk: bool = False
    tokenizer: Path | None = None
    max_tokens: Annotated[int, Ge(2)] = 512
    test: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    seed: Seed = 0


def run_report(config: Report) -> None:
    """Read, fit, judge, and write the page."""
    console = Console()
    choose_threads()
    file = read_preference_file(config.file, skip_unreadable=True)
    pairs = [pair for pair in file.preferences if not pair.is_identical]
    if len(pairs) < 50:
        raise ValueError(f"{config.file} holds {len(pairs)} comparisons of different texts: a report needs at least 50")
    run = RunFolder(config.out)
    tokenizer = _tokenizer(config, run, pairs)
    order = np.random.default_rng(config.seed).permutation(len(pairs)).tolist()
    test, train, apart = hold_out([pair.prompt for pair in pairs], order, config.test)
    curve = []
    settings: dict[str, Any] = {"tokenizer": tokenizer, "max_tokens": config.max_tokens, "seed": config.seed}
    judged: JudgedComparisons
    with bar("fit", 0) as shown:
        for fraction in _FRACTIONS:
            part = [pairs[i] for i in train[: max(10, round(fraction * len(train)))]]
            own: dict[str, Any] = {} if config.trunk and fraction == 1 else {"trunk": None}
            model, fit = fit_preference_model(part, **settings, **own, progress=shown.follow)
            judged = judge(model, [pairs[i] for i in test])
            curve.append((len(part), judged.accuracy()))
    model.normalise([Episode.from_text(p.prompt, text) for p in part[:1000] for text in (p.chosen, p.rejected)])
    model.save(run.path / "reward")
    facts = {
        "file": config.file.name,
        "counts": {**file.counts(), "train": len(train), "test": len(test), "test_decided": len(judged.pairs)},
        "forms": dict(file.forms),
        "skipped": dict(file.skipped),
        "prompts_apart": apart,
        "model": "n-grams and a transformer" if config.trunk else "n-grams",
        "temperature": fit.temperature,
        **measures(judged, fit.temperature),
        "learning_curve": [{"comparisons": n, **asdict(rate)} for n, rate in curve],
        "mistakes": mistakes(judged),
    }
    write_json(run.path / "report.json", facts)
    _write_page(run.path, facts, file.examples, judged, fit.temperature)
    accuracy = judged.accuracy()
    console.print(
        f"agrees with {accuracy.rate:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] of {accuracy.num} comparisons it never saw; "
        f"always taking the longer response gives {facts['longer_wins']:.1%}",
        highlight=False,
        markup=False,
    )
    console.print(f"report: {run.path / 'report.html'}\nmodel:  {run.path / 'reward'}")


def _tokenizer(config: Report, run: RunFolder, pairs: Sequence[Preference]) -> FileTokenizer:
    if config.tokenizer is not None:
        return FileTokenizer(config.tokenizer)
    file = run.path / "tokenizer.json"
    write_text(file, train_tokenizer((text for p in pairs for text in (p.prompt, p.chosen, p.rejected)), 8000).to_str())
    return FileTokenizer(file, EOS)


def _write_page(folder: Path, facts: Mapping[str, Any], examples: Sequence[Any], judged: JudgedComparisons, temperature: float) -> None:
    learned = "comparisons learned from" + ("" if facts["model"] == "n-grams" else " (by n-grams alone, but for the last)")
    right = np.ones(len(judged.pairs))
    calibration = {"as fitted": reliability(judged.margins, right), "with temperature": reliability(judged.margins / temperature, right)}
    pictures = {
        "learning_curve": accuracies([(f"{row['comparisons']:,}", _again(row)) for row in facts["learning_curve"]], learned),
        "length": accuracies(
            [(row["part"], _again(row)) for row in facts["by_length"]], "characters that the preferred response is longer"
        ),
        "calibration": reliability_diagram(calibration),
    }
    for name, figure in pictures.items():
        save(figure, folder / f"{name}.png")
    images = {name: data_uri(folder / f"{name}.png") for name in pictures}
    write_page(folder / "report.html", "reward_report", facts=facts, images=images, examples=examples)


def _again(row: Mapping[str, Any]) -> Rate:
    return Rate(row["rate"], row["low"], row["high"], row["num"])
