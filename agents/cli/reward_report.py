"""`textrl reward report`: fit a reward model to a file of preferences, and say on one page how far to trust it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rewards import Preference, RewardWarning, fit_preference_model
from rewards.analysis.answer_accuracy import accuracies as accuracies_of
from rewards.analysis.answer_accuracy import chance, length_rule, parts_of, score_answers
from rewards.fitting.calibration import reliability
from rewards.fitting.reward_evaluation import JudgedComparisons, doubts, judge, measures, mistakes, subgroups
from rewards.preferences.answer_sets import read_answer_sets
from rewards.preferences.leak_free_split import hold_out, overlapping
from rewards.preferences.preference_files import PreferenceFile, read_preference_file
from rewards.utils.intervals import Rate
from textrl_env import Episode, FileTokenizer, chat_template
from textrl_env.reward_model import as_reward_model
from textrl_env.utils.files import write_json, write_jsonl, write_text
from textrl_env.utils.tables import read_rows
from textrl_env.utils.train_tokenizer import EOS, train_tokenizer

from ..distributed.engine import engine_of
from ..distributed.process_group import ranks, started_again
from ..reports.html_page import write_page
from ..reports.plots import data_uri, save
from ..reports.reward_plots import accuracies, reliability_diagram
from ..reports.tables import terminal_table
from ..utils.device_flag import on_device
from ..utils.progress import bar
from ..utils.run_folder import RunFolder
from ..utils.threads import choose_threads
from .arguments import arguments_of, columns_of, reward_of
from .flags import Report
from .train_flags import flags

_PLAIN = {"lora": None, "learning_rate": None, "epochs": Report.epochs}  # of a small transformer
_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training comparisons, for the learning curve
_OF_FITTING = ("trunk", "lora", "learning_rate", "epochs", "tokenizer", "max_tokens", "test", "test_file", "seed")
_MADE = ("reward", "scores.jsonl", "tokenizer.json", "report.json", "report.html", "learning_curve.png", "length.png", "calibration.png")


class _Sides(NamedTuple):
    train: list[Preference]
    test: list[Preference]
    left_out: int
    prompts_apart: bool


@on_device
def run_report(config: Report) -> None:
    """Read, judge and write the page, of a reward that is there or of one that is fitted first."""
    console = Console(quiet=not ranks().is_main)
    choose_threads()
    if config.reward is not None:
        _run_judgement(config, console)
        return
    if config.chat is not None:
        raise ValueError(f"--chat {config.chat} is for a reward that is there: pass --reward, or leave it out")
    _run_fit(config, console)


def _run_fit(config: Report, console: Console) -> None:
    """Fit and judge; processes that torchrun started fit together, and the first writes."""
    together = ranks()
    if config.test_file is not None and config.test != Report.test:
        raise ValueError(
            f"--test {config.test:g} keeps a share aside, and --test-file {config.test_file} is judged instead: leave one of them out"
        )
    columns = columns_of(config.columns)
    own = _trunk_settings(config)
    file, pairs = _read(config.file, columns, 50, console)
    if config.by is not None and config.by not in (known := subgroups(pairs)):
        raise ValueError(f"--by {config.by}: a column of 2 to 20 different short texts is needed; there are {', '.join(known) or 'none'}")
    if config.test_file is None:
        sides = _split(config, pairs)
    else:
        sides = _with_test_file(config, pairs, _read(config.test_file, columns, 1, console)[1])
    if sides.left_out:
        console.print(f"{sides.left_out} comparisons are left out: they share a text or a prompt with both sides", highlight=False)
    run = RunFolder(config.out)
    names = ("file", "tokenizer", "max_tokens", "test", "test_file", "seed")
    depends_on = {**{name: getattr(config, name) for name in names}, "trunk": config.trunk == "new" or config.trunk or False}
    if config.columns is not None:
        depends_on["columns"] = config.columns
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
        if config.by is not None:
            facts = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
            console.print(_parts_table(facts["groups"].get(config.by, ()), config.by))  # none, if the test comparisons have one value
    console.print(f"report: {run.path / 'report.html'}\nmodel:  {run.path / 'reward'}")


def _run_judgement(config: Report, console: Console) -> None:
    """Judge a reward model that is there by right and wrong answers: scores into `scores.jsonl`, accuracies into report and page."""
    assert config.reward is not None
    if ranks().size > 1:
        raise ValueError("--reward is judged by one process: start it without torchrun")
    if unused := [name for name in _OF_FITTING if getattr(config, name) != getattr(Report, name)]:
        raise ValueError(f"leave out {flags(unused)}: nothing is fitted, --reward {config.reward} is judged")
    reward, sets = reward_of(config.reward), read_answer_sets(config.file, columns_of(config.columns))
    parts_of(sets, config.by)  # a wrong column is told before all is scored
    run, depends_on = RunFolder(config.out), {"file": config.file, "columns": config.columns, "reward": reward, "chat": config.chat}
    with run.begin("reward report --reward", config.overwrite, _MADE):
        run.config = config
        with run.stage("scores", depends_on, makes=["scores.jsonl"]) as stage:
            if stage.needed:
                template = None if config.chat is None else chat_template(FileTokenizer(config.chat).files)
                found = score_answers(as_reward_model(reward), sets, template)
                rows = ({"id": one.id, "prompt": one.prompt, "scores": own.tolist()} for one, own in zip(sets, found, strict=True))
                write_jsonl(run.path / "scores.jsonl", rows)
        scores = [np.array(row["scores"]) for row in read_rows(run.path / "scores.jsonl")]
        facts = {
            "file": config.file.name, "reward": config.reward, "sets": len(sets), "answers": sum(map(len, scores)),
            "chance": chance(sets), "length_rule": length_rule(sets), **accuracies_of(sets, scores, config.by),
        }  # fmt: skip
        write_json(run.path / "report.json", facts)
        write_page(run.path / "report.html", "answer_report", facts=facts)
    console.print(_parts_table(facts["parts"], config.by))
    for name, value in (facts["ties"] or {}).items():
        console.print(f"ties, {name.replace('_', ' ')}: {value:.3f}", highlight=False)
    rule = facts["length_rule"]
    told = f"mean of the parts {facts['mean']:.1%}; " if config.by else ""
    console.print(f"{told}always taking the {rule['takes']} answer gives {rule['rate']:.1%}, chance {facts['chance']:.1%}", highlight=False)
    console.print(f"report: {run.path / 'report.html'}\nscores: {run.path / 'scores.jsonl'}")


def _parts_table(parts: Sequence[Mapping[str, Any]], by: str | None) -> Table:
    """Return a table of accuracies; a part without interval is scored otherwise."""
    rows = [
        (row["part"], f"{row['rate']:.1%}", "" if row["low"] is None else f"[{row['low']:.1%}, {row['high']:.1%}]", str(row["num"]))
        for row in parts
    ]
    return terminal_table((by or "", "accuracy", "95% interval", "number"), rows, box=box.SIMPLE_HEAD)


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
            f"{path.name}: people agree with people: a single rater prefers what the others prefer in {file.ceiling.rater:.1%} of "
            f"{file.ceiling.comparisons:,} comparisons, a panel drawn from the same ratings again in {file.ceiling.panel:.1%}, more "
            "than other people would"
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
