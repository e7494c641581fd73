"""`textrl reward report`: fit a reward model to a file of preferences, and say on one page how far to trust it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from rewards import Preference, PreferenceRewardModel, fit_preference_model
from rewards.fitting.calibration import reliability
from rewards.fitting.comparisons import hold_out
from rewards.preferences.preference_files import PreferenceFile, read_preference_file
from rewards.utils.intervals import Rate, wilson
from textrl_env import Episode, FileTokenizer
from textrl_env.utils.files import write_json, write_text

from ..reports.html_page import write_page
from ..reports.plots import data_uri, save
from ..reports.reward_plots import accuracies, reliability_diagram
from ..training.text_corpus import EOS, train_tokenizer
from ..utils.progress import bar
from ..utils.run_folder import RunFolder
from ..utils.threads import choose_threads

_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training comparisons, for the learning curve
_MISTAKES = 10
_MOST_GROUPS = 20  # values of a column that is taken for one of subgroups
_EXCERPT = 600  # characters


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
    max_tokens: int = 512
    test: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """Test comparisons and what the model makes of them.

    Attributes:
        pairs: Those that somebody decided: no ties.
        margins: score(chosen) - score(rejected), shape (n,).
        longer: Characters that the chosen response has more than the rejected one, shape (n,).
    """

    pairs: Sequence[Preference]
    margins: np.ndarray
    longer: np.ndarray

    def accuracy(self, rows: Any = slice(None)) -> Rate:
        """Return how often the chosen response scores higher, a tie counting one half."""
        return _rate(self.margins[rows])


def run_report(config: Report) -> None:
    """Read, fit, judge, and write the page."""
    console = Console()
    choose_threads()
    if not 0 < config.test < 1:
        raise ValueError(f"test={config.test}: the share that is kept aside must be in (0, 1)")
    found = read_preference_file(config.file, skip_unreadable=True)
    pairs = [pair for pair in found.preferences if not pair.is_identical]
    if len(pairs) < 50:
        raise ValueError(f"{config.file} holds {len(pairs)} comparisons of different texts: a report needs at least 50")
    run = RunFolder(config.out)
    tokenizer = _tokenizer(config, run, pairs)
    order = np.random.default_rng(config.seed).permutation(len(pairs)).tolist()
    test, train, apart = hold_out([pair.prompt for pair in pairs], order, config.test)
    curve = []
    settings: dict[str, Any] = {"tokenizer": tokenizer, "max_tokens": config.max_tokens, "seed": config.seed}
    judged: Judged
    with bar("fit", 0) as shown:
        for fraction in _FRACTIONS:
            part = [pairs[i] for i in train[: max(10, round(fraction * len(train)))]]
            own: dict[str, Any] = {} if config.trunk and fraction == 1 else {"trunk": None}
            model, fit = fit_preference_model(part, **settings, **own, progress=shown.follow)
            judged = _judge(model, [pairs[i] for i in test])
            curve.append((len(part), judged.accuracy()))
    model.normalise([Episode.from_text(p.prompt, text) for p in part[:1000] for text in (p.chosen, p.rejected)])
    model.save(run.path / "reward")
    facts = {
        "file": config.file.name,
        "counts": {**found.counts(), "train": len(train), "test": len(test), "test_decided": len(judged.pairs)},
        "forms": dict(found.forms),
        "skipped": dict(found.skipped),
        "prompts_apart": apart,
        "model": "n-grams and a transformer" if config.trunk else "n-grams",
        "temperature": fit.temperature,
        **_measures(judged, fit.temperature),
        "learning_curve": [{"comparisons": n, **asdict(rate)} for n, rate in curve],
        "mistakes": _mistakes(judged),
    }
    write_json(run.path / "report.json", facts)
    _write_page(run.path, facts, found, judged, fit.temperature)
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
    write_text(file, train_tokenizer((text for p in pairs for text in (p.prompt, p.chosen, p.rejected)), 8000))
    return FileTokenizer(file, EOS)


def _judge(model: PreferenceRewardModel, pairs: Sequence[Preference]) -> Judged:
    decided = [pair for pair in pairs if not pair.is_tie]
    if not decided:
        raise ValueError("all comparisons that were kept aside are ties: there is nothing to measure")
    chosen, rejected = (
        np.array(model.score([Episode.from_text(p.prompt, getattr(p, side)) for p in decided])) for side in ("chosen", "rejected")
    )
    return Judged(decided, chosen - rejected, np.array([len(p.chosen) - len(p.rejected) for p in decided]))


def _rate(margins: np.ndarray) -> Rate:
    return wilson(float((margins > 0).sum() + 0.5 * (margins == 0).sum()), len(margins))


def _measures(judged: Judged, temperature: float) -> dict[str, Any]:
    """Return what the test comparisons say, as plain data."""
    right = np.ones(len(judged.pairs))
    spread = judged.margins.std() > 0 and judged.longer.std() > 0
    return {
        "accuracy": asdict(judged.accuracy()),
        "longer_wins": _rate(judged.longer.astype(float)).rate,
        "length_correlation": float(np.corrcoef(judged.margins, judged.longer)[0, 1]) if spread else 0.0,
        "calibration_error": reliability(judged.margins, right).error,
        "calibration_error_with_temperature": reliability(judged.margins / temperature, right).error,
        "by_length": [{"part": name, **asdict(judged.accuracy(rows))} for name, rows in _length_parts(judged.longer)],
        "groups": {
            column: [{"part": name, **asdict(judged.accuracy(rows))} for name, rows in parts.items()]
            for column, parts in _groups(judged.pairs).items()
        },
        "gaps": {column: asdict(_gap(judged, parts)) for column, parts in _groups(judged.pairs).items()},
    }


def _length_parts(longer: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return fifths of the comparisons by how much longer the chosen response is."""
    edges = np.unique(np.quantile(longer, [0.2, 0.4, 0.6, 0.8]))
    index = np.searchsorted(edges, longer, side="right")
    parts = [np.flatnonzero(index == k) for k in range(len(edges) + 1)]
    return [(f"{longer[rows].min():+d} to {longer[rows].max():+d}", rows) for rows in parts if len(rows)]


def _groups(pairs: Sequence[Preference]) -> dict[str, dict[str, list[int]]]:
    """Return the rows of each subgroup: of `group`, `annotator`, and further columns with 2 to 20 different short texts."""
    columns: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, pair in enumerate(pairs):
        for name, value in {"group": pair.group, "annotator": pair.annotator, **pair.metadata}.items():
            if isinstance(value, (str, bool, int)) and len(str(value)) <= 60:
                columns[name][str(value)].append(row)
    return {name: dict(sorted(parts.items())) for name, parts in columns.items() if 2 <= len(parts) <= _MOST_GROUPS}


@dataclass(frozen=True)
class Gap:
    """The subgroups that the model agrees with most and least.

    Attributes:
        best: Name of the one.
        worst: Name of the other.
        size: Difference of their accuracies.
        shown: Whether their 95% intervals do not overlap.
    """

    best: str
    worst: str
    size: float
    shown: bool


def _gap(judged: Judged, parts: Mapping[str, Sequence[int]]) -> Gap:
    found = {name: judged.accuracy(rows) for name, rows in parts.items()}
    best, worst = (choose(found, key=lambda name: found[name].rate) for choose in (max, min))
    return Gap(best, worst, found[best].rate - found[worst].rate, found[worst].high < found[best].low)


def _mistakes(judged: Judged) -> list[dict[str, Any]]:
    """Return the comparisons that the model is surest and wrong about."""
    worst = [i for i in np.argsort(judged.margins)[:_MISTAKES] if judged.margins[i] < 0]
    return [
        {
            "margin": float(judged.margins[i]),
            "prompt": _end(judged.pairs[i].prompt),
            "chosen": judged.pairs[i].chosen[:_EXCERPT],
            "rejected": judged.pairs[i].rejected[:_EXCERPT],
        }
        for i in worst
    ]


def _end(text: str) -> str:
    return text if len(text) <= _EXCERPT else "... " + text[-_EXCERPT:]


def _write_page(folder: Path, facts: Mapping[str, Any], found: PreferenceFile, judged: Judged, temperature: float) -> None:
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
    write_page(folder / "report.html", "reward_report", facts=facts, images=images, examples=found.examples)


def _again(row: Mapping[str, Any]) -> Rate:
    return Rate(row["rate"], row["low"], row["high"], row["num"])
