"""`textrl reward report`: fit a reward model to a file of preferences, and say on one page how far to trust it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from rewards import Preference, RewardWarning, fit_preference_model
from rewards.fitting.calibration import reliability
from rewards.fitting.reward_evaluation import JudgedComparisons, doubts, judge, measures, mistakes
from rewards.preferences.leak_free_split import hold_out, overlapping
from rewards.preferences.preference_files import PreferenceFile, read_preference_file
from rewards.utils.intervals import Rate
from textrl_env import Episode, FileTokenizer
from textrl_env.utils.files import write_json, write_text
from textrl_env.utils.train_tokenizer import EOS, train_tokenizer

from ..distributed.engine import engine_of
from ..distributed.process_group import ranks, started_again
from ..reports.html_page import write_page
from ..reports.plots import data_uri, save
from ..reports.reward_plots import accuracies, reliability_diagram
from ..utils.device_flag import on_device
from ..utils.progress import bar
from ..utils.run_folder import RunFolder
from ..utils.threads import choose_threads
from .arguments import arguments_of, columns_of
from .flags import Report

_PLAIN = {"lora": None, "learning_rate": None, "epochs": Report.epochs}  # of a small transformer
_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training comparisons, for the learning curve
_MADE = ("reward", "tokenizer.json", "report.json", "report.html", "learning_curve.png", "length.png", "calibration.png")


class _Sides(NamedTuple):
    train: list[Preference]
    test: list[Preference]
    left_out: int
    prompts_apart: bool


@on_device
def run_report(config: Report) -> None:
    """Read, fit, judge, and write the page; processes that torchrun started fit together, and the first writes."""
    together = ranks()
    console = Console(quiet=not together.is_main)
    choose_threads()
    if config.test_file is not None and config.test != Report.test:
        raise ValueError(
            f"--test {config.test:g} keeps a share aside, and --test-file {config.test_file} is judged instead: leave one of them out"
        )
    columns = columns_of(config.columns)
    own = _trunk_settings(config)
    file, pairs = _read(config.file, columns, 50, console)
    if config.test_file is None:
        sides = _split(config, pairs)
    else:
        sides = _with_test_file(config, pairs, _read(config.test_file, columns, 1, console)[1])
    if sides.left_out:
        console.print(f"{sides.left_out} comparisons are left out: they share a text or a prompt with both sides", highlight=False)
    run = RunFolder(config.out)
    names = ("file", "tokenizer", "max_tokens", "test", "test_file", "seed")
    depends_on = {**{name: getattr(config, name) for name in names}, "trunk": config.trunk == "new" or config.trunk or False}
    if config.trunk is not None and own != _PLAIN:
        depends_on["settings"] = own
    with run.begin("reward report", config.overwrite and not started_again(), _MADE) if together.is_main else nullcontext():
        together.wait()
        run.config = config
        with run.stage("report", depends_on, together.is_main, makes=["reward", "report.html"]) as stage:
            if together.broadcast(stage.needed):
                stage.facts["lines"] = _report(config, run, file, pairs, sides, own)
        together.wait()
        text, *doubted = run.facts("report")["lines"]
        console.print(text, highlight=False, markup=False)
        for doubt in doubted:
            console.print(doubt, style="bold red", highlight=False, markup=False)
    console.print(f"report: {run.path / 'report.html'}\nmodel:  {run.path / 'reward'}")


def _trunk_settings(config: Report) -> dict[str, Any]:
    """Return the arguments of `fit_preference_model` that concern the trunk."""
    lora = arguments_of(config.lora, "--lora")
    if config.trunk is None:
        given = [name for name in ("lora", "learning_rate", "epochs") if getattr(config, name) != getattr(Report, name)]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} is for the transformer of --trunk, which is not given")
        return {"trunk": None}
    own = {} if config.trunk == "new" else {"trunk": config.trunk}
    return {**own, "lora": lora, "learning_rate": config.learning_rate, "epochs": config.epochs}


def _report(
    config: Report, run: RunFolder, file: PreferenceFile, pairs: Sequence[Preference], sides: _Sides, trunk: Mapping[str, Any]
) -> list[str]:
    """Fit, judge and write the page; return the result in a sentence, and what makes it doubtful."""
    together, curve = ranks(), []
    with together.main_first():
        tokenizer = _tokenizer(config, run, pairs)
    engine = engine_of(together)
    settings: dict[str, Any] = {"tokenizer": tokenizer, "max_tokens": config.max_tokens, "seed": config.seed}
    judged: JudgedComparisons
    with bar("fit", 0, together.is_main) as shown:
        for fraction in _FRACTIONS:
            part = sides.train[: max(10, round(fraction * len(sides.train)))]
            own = trunk if fraction == 1 else {"trunk": None}
            with warnings.catch_warnings():
                if fraction < 1:  # small parts hold few comparisons out
                    warnings.simplefilter("ignore", RewardWarning)
                model, fit = fit_preference_model(part, **settings, **own, progress=shown.follow, engine=engine)
            judged = judge(model, sides.test)
            curve.append((len(part), judged.accuracy()))
    model.normalise([Episode.from_text(p.prompt, text) for p in part[:1000] for text in (p.chosen, p.rejected)])
    if together.is_main:
        model.save(run.path / "reward")
    accuracy = judged.accuracy()
    counts = {"train": len(sides.train), "test": len(sides.test), "test_decided": accuracy.num, "left_out": sides.left_out}
    facts = {
        "file": config.file.name,
        "test_file": config.test_file and config.test_file.name,
        "counts": {**file.counts(), **counts},
        "forms": dict(file.forms),
        "skipped": dict(file.skipped),
        "prompts_apart": sides.prompts_apart,
        "model": "n-grams and a transformer" if config.trunk else "n-grams",
        "temperature": fit.temperature,
        **measures(judged, fit.temperature),
        "learning_curve": [{"comparisons": n, **asdict(rate)} for n, rate in curve],
        "mistakes": mistakes(judged),
    }
    facts["doubts"] = doubts(facts)
    if together.is_main:
        write_json(run.path / "report.json", facts)
        _write_page(run.path, facts, file.examples, judged, fit.temperature)
    length = facts["length_rule"]
    return [
        f"agrees with {accuracy.rate:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] of {accuracy.num} comparisons it never saw; "
        f"always taking the {length['takes']} response gives {length['rate']:.1%}",
        *facts["doubts"],
    ]


def _read(path: Path, columns: Mapping[str, str] | None, least: int, console: Console) -> tuple[PreferenceFile, list[Preference]]:
    """Return a file and its comparisons of different texts, and print what is not among them."""
    file = read_preference_file(path, columns, skip_unreadable=True)
    pairs = [pair for pair in file.preferences if not pair.is_identical]
    skipped, identical = file.skipped_rows(), len(file.preferences) - len(pairs)
    told = [f"{path.name}: {skipped}; the first: {file.examples[0]}"] if skipped else []
    if 2 * file.skipped.total() > file.counts()["rows"]:
        raise ValueError(f"{told[0]}. Most of the file is not read: correct it, or take these rows out")
    if len(pairs) < least:
        raise ValueError(f"{path} holds {len(pairs)} comparisons of different texts: a report needs at least {least}. {skipped}".rstrip())
    if file.ceiling is not None:
        told.append(
            f"{path.name}: people agree with people: a panel drawn anew prefers what the panel prefers in {file.ceiling.panel:.1%} of "
            f"{file.ceiling.comparisons:,} comparisons, a single rater in {file.ceiling.rater:.1%}"
        )
    for line in [*told, *([f"{path.name}: {identical} comparisons of a text with itself are left out"] if identical else [])]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return file, pairs


def _split(config: Report, pairs: list[Preference]) -> _Sides:
    split = hold_out(pairs, np.random.default_rng(config.seed).permutation(len(pairs)).tolist(), config.test)
    if split is None:
        raise ValueError(
            f"{config.file}: {len(pairs)} comparisons hang together by texts that they share, so that none can be kept aside for a test: "
            "add comparisons of further texts, or pass --test-file FILE with some"
        )
    return _Sides([pairs[i] for i in split.kept], [pairs[i] for i in split.held], split.dropped, split.prompts_apart)


def _with_test_file(config: Report, pairs: list[Preference], test: list[Preference]) -> _Sides:
    shared = set(overlapping(pairs, test))
    if len(shared) == len(test):
        raise ValueError(
            f"{config.test_file}: all {len(test)} comparisons share a text or a prompt with {config.file}: none was never seen"
        )
    order = np.random.default_rng(config.seed).permutation(len(pairs)).tolist()
    fresh = [pair for i, pair in enumerate(test) if i not in shared]
    apart = {pair.prompt for pair in pairs if pair.prompt}.isdisjoint(pair.prompt for pair in fresh)
    return _Sides([pairs[i] for i in order], fresh, len(shared), apart)


def _tokenizer(config: Report, run: RunFolder, pairs: Sequence[Preference]) -> FileTokenizer:
    if config.tokenizer is not None or config.trunk not in (None, "new"):
        return FileTokenizer(config.trunk if config.tokenizer is None else config.tokenizer)
    file = run.path / "tokenizer.json"
    if ranks().is_main:
        write_text(file, train_tokenizer((text for p in pairs for text in (p.prompt, p.chosen, p.rejected)), 8000).to_str())
    return FileTokenizer(file, EOS)


def _write_page(folder: Path, facts: Mapping[str, Any], examples: Sequence[Any], judged: JudgedComparisons, temperature: float) -> None:
    learned = "comparisons learned from" + ("" if facts["model"] == "n-grams" else " (by n-grams alone, but for the last)")
    calibration = {
        "as fitted": reliability(judged.margins, judged.labels),
        "with temperature": reliability(judged.margins / temperature, judged.labels),
    }
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
