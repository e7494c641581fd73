"""`textrl tune`: look for settings of an agent on a task, resumable, on the validation split."""

from __future__ import annotations

import csv
import dataclasses
import io
import shlex
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from textrl_env.utils.files import write_text
from textrl_env.utils.optional_imports import optional_import
from textrl_env.utils.suggestions import did_you_mean

from ..benchmark.run_job import task_of
from ..benchmark.spec import parse
from ..utils.contents import with_contents
from ..utils.device_flag import on_device
from ..utils.limits import check_fields
from ..utils.run_folder import fingerprint, versions, write_yaml
from .flags import Tune
from .search_space import SPACE, _space, sampler, suggest
from .trial import Trial, _tokens, ended


@on_device
def run_tune(config: Tune) -> None:
    """Try settings, and leave `study.db`, `trials.csv` and `best.yaml`."""
    optuna = _optuna()
    if config.algo not in SPACE:
        raise ValueError(
            f"--algo {config.algo}: no search space for it{did_you_mean(config.algo, SPACE)}; choose one of {', '.join(SPACE)}"
        )
    check_fields(config)
    task_of(parse(config.task))
    torch.set_num_threads(1)
    config.out.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{config.out / 'study.db'}")
    name = f"{config.algo} on {config.task}, {_tokens(config)} tokens, {config.seeds} seeds, {config.texts} texts"
    settings = parse(config.task).settings
    if with_contents(settings) != settings:  # files of one's own
        name += f", {fingerprint(with_contents(settings))}"
    others = optuna.study.get_all_study_names(storage)
    if others and name not in others:
        raise ValueError(f"{config.out} holds another search ({'; '.join(others)}), not {name}: pass another --out")
    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=_tokens(config) // 4),
        "none": optuna.pruners.NopPruner(),
    }
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="maximize",
        sampler=sampler(config, 0), pruner=pruners[config.pruner],
    )  # fmt: skip
    if len(ended(study)) < config.trials:
        contest = Trial(config)  # before the workers begin: it builds the base policy
        if config.ray is None:
            _one_by_one(config, study, contest, optuna)
        else:
            from .ray_trials import run_trials_on_ray

            run_trials_on_ray(config, study, config.ray)
    _write(config, study)


def _one_by_one(config: Tune, study: Any, contest: Trial, optuna: Any) -> None:
    def objective(trial: Any) -> float:
        def report(tokens: int, score: float) -> None:
            trial.report(score, tokens)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            values = contest.values(suggest(config, trial), report)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("error", repr(error))
            raise
        trial.set_user_attr("values", values)
        return float(np.mean(values))

    def enough(study: Any, _: Any) -> None:
        if len(ended(study)) >= config.trials:  # whoever else works here counts too
            study.stop()

    missing = config.trials - len(ended(study))
    study.optimize(objective, missing, callbacks=[enough], catch=(Exception,), show_progress_bar=True)


def _optuna() -> Any:
    with optional_import("tune", "textrl tune needs the package optuna"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _write(config: Tune, study: Any) -> None:
    """Write every trial, and the best one with where it comes from."""
    trials = ended(study)[: config.trials]  # processes that share a search may end with some more
    names = [name for name, *_ in _space(config)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *names, "error"])
    for t in trials:
        writer.writerow([t.number, t.state.name.lower(), t.value, *(t.params.get(n) for n in names), t.user_attrs.get("error")])
    write_text(config.out / "trials.csv", out.getvalue())
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    if not complete:
        raise ValueError(f"none of {len(trials)} trials was completed: see {config.out / 'trials.csv'}")
    best = max(complete, key=lambda t: t.value)
    found = {
        "settings": best.params,
        "provenance": {
            "value": best.value, "values": best.user_attrs["values"], "trials": len(trials), "tokens": _tokens(config),
            "date": datetime.now(timezone.utc).date().isoformat(), "versions": versions(),
            "command": command_of(config),
        },
    }  # fmt: skip
    write_yaml(config.out / "best.yaml", found)
    if config.save is not None:
        kept = yaml.safe_load(config.save.read_text(encoding="utf-8")) if config.save.is_file() else {}
        write_yaml(config.save, {**kept, config.task: found})
    console = Console()
    console.print(f"{len(complete)} of {len(trials)} trials complete; best {best.value:.3f} with {best.params}", highlight=False)
    console.print(f"settings and provenance: {config.out / 'best.yaml'}")


def command_of(config: Tune) -> str:
    """Return the command that repeats a search; where it is stored, and on what it runs, is left out."""
    said = [f.name for f in dataclasses.fields(config) if f.name in ("task", "algo") or getattr(config, f.name) != f.default]
    flags = [f"--{name.replace('_', '-')} {shlex.quote(str(getattr(config, name)))}" for name in said if name not in ("out", "save", "ray")]
    return " ".join(["textrl tune", *flags])
