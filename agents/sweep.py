"""`textrl tune`: look for settings of an agent on a task, resumable, on the validation split."""

from __future__ import annotations

import csv
import dataclasses
import io
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from rich.console import Console

from .base import base_policy
from .benchmark.cell import beta_of, judged, task_of
from .benchmark.contenders import Ground, learn
from .benchmark.spec import Spec, parse
from .benchmark.suites import budget
from .evaluation import make_policy, write_texts
from .run_folder import versions, write_text, write_yaml

_RATE = ("learning_rate", "log", 1e-4, 5e-3)
_WRITTEN = (_RATE, ("n_episodes", "one of", 32, 64, 128))
_CLIPPED = (*_WRITTEN, ("batch_size", "one of", 16, 32, 64), ("n_epochs", "one of", 1, 2, 4), ("beta", "log", 0.01, 0.3))
SPACE: Mapping[str, tuple[tuple[Any, ...], ...]] = {
    **dict.fromkeys(("ppo", "maskable-ppo", "nlpo"), (*_CLIPPED, ("clip_range", "linear", 0.1, 0.3), ("gae_lambda", "linear", 0.9, 1.0))),
    **dict.fromkeys(("a2c", "trpo"), (*_WRITTEN, ("beta", "log", 0.01, 0.3), ("gae_lambda", "linear", 0.9, 1.0))),
    **dict.fromkeys(("rloo", "grpo", "dr-grpo", "dapo", "reinforce", "reinforce++", "reinforce++-baseline"), _CLIPPED),
    **dict.fromkeys(("dpo", "ipo"), (("learning_rate", "log", 2e-5, 1e-3), ("beta", "log", 0.03, 1.0), ("epochs", "one of", 1, 3, 6))),
    "sft": (("learning_rate", "log", 1e-4, 5e-3), ("epochs", "one of", 1, 3, 6)),
    "expert-iteration": (("learning_rate", "log", 1e-4, 5e-3), ("n", "one of", 2, 4, 8)),
}


@dataclass(frozen=True)
class Sweep:
    """Look for good settings of an algorithm on a task; running again goes on up to the number of trials.

    Several processes may work in the same folder at once.

    Attributes:
        task: As `textrl bench` calls it.
        algo: Name of the algorithm.
        trials: Settings to try in all, failed and pruned ones included.
        tokens: Tokens that each run may write; by default the task's budget.
        seeds: Runs of each setting; their mean counts.
        texts: Validation texts by which a run is judged.
        sampler: `tpe` learns from earlier trials, `random` does not.
        pruner: `median` ends a run that is worse than half of the others were at that point.
        ray: Address of a Ray cluster whose workers try settings side by side, such as `auto`; `local` starts one with the cores of this
            machine.
        seed: Of the sampler.
        out: Folder of the sweep.
        save: A YAML file to enter the best settings into.
    """

    task: str = "recall"
    algo: str = "ppo"
    trials: int = 20
    tokens: int | None = None
    seeds: int = 2
    texts: int = 256
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "none"] = "median"
    ray: str | None = None
    seed: int = 0
    out: Path = Path("runs/tune")
    save: Path | None = None


def run_sweep(config: Sweep) -> None:
    """Try settings, and leave `study.db`, `trials.csv` and `best.yaml`."""
    optuna = _optuna()
    if config.algo not in SPACE:
        raise ValueError(f"--algo {config.algo}: no search space for it; choose one of {', '.join(SPACE)}")
    if config.trials < 1 or config.seeds < 1:
        raise ValueError(f"trials={config.trials}, seeds={config.seeds}: need at least 1 of each")
    torch.set_num_threads(1)
    config.out.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{config.out / 'study.db'}")
    name = f"{config.algo} on {config.task}, {_tokens(config)} tokens, {config.seeds} seeds, {config.texts} texts"
    # Constant liar: settings that are being tried elsewhere count as bad, so that no two workers try the same.
    samplers = {"tpe": partial(optuna.samplers.TPESampler, constant_liar=True), "random": optuna.samplers.RandomSampler}
    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=_tokens(config) // 4),
        "none": optuna.pruners.NopPruner(),
    }
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="maximize",
        sampler=samplers[config.sampler](seed=config.seed), pruner=pruners[config.pruner],
    )  # fmt: skip
    if len(ended(study)) < config.trials:
        contest = Contest(config)  # before the workers begin: it builds the base policy
        if config.ray is None:
            _one_by_one(config, study, contest, optuna)
        else:
            from .ray_sweep import run_trials_on_ray

            run_trials_on_ray(config, study, config.ray)
    _write(config, study)


def _one_by_one(config: Sweep, study: Any, contest: Contest, optuna: Any) -> None:
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

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)
    limit = optuna.study.MaxTrialsCallback(config.trials, states=states)  # whoever else works here counts too
    study.optimize(objective, config.trials - len(ended(study)), callbacks=[limit], catch=(Exception,), show_progress_bar=True)


class Contest:
    """What settings are worth: their runs, judged on the validation split."""

    def __init__(self, config: Sweep) -> None:
        self.config = config
        spec = parse(config.task)
        self.task = task_of(spec)
        self.judge = task_of(spec, "validation", prompt_order="sequential")
        self.base = str(base_policy(self.task))
        self.length = float(write_texts(make_policy(self.judge, self.base), self.judge, 64, seed=1).lengths.mean())

    def values(self, settings: dict[str, Any], report: Callable[[int, float], None]) -> list[float]:
        """Return the value of each seed's run.

        Args:
            settings: Of the algorithm.
            report: Told after every rollout of the first run how many tokens were written and the rollout's mean score.
        """
        values: list[float] = []
        for seed in range(self.config.seeds):
            ground = Ground(self.task, self.base, _tokens(self.config), seed, beta_of(self.task), self.length)

            def watch(tokens: int, finished: list[dict[str, Any]], kl: float, seed: int = seed) -> None:
                if seed == 0:  # one report for each step is all that a pruner understands
                    report(tokens, float(np.mean([info["score"] for info in finished])))

            trained = learn(Spec(self.config.algo, self.config.algo, settings), ground, watch)
            values.append(judged(self.judge, trained.write(self.judge, self.config.texts, 30_000 + seed)))
        return values


def tuned(algo: str, task: str) -> dict[str, Any]:
    """Return the settings that a sweep found for an algorithm on a task; they come with the package in `agents/tuned`.

    Raises:
        ValueError: Nobody has looked for them yet.
    """
    file = files("agents") / "tuned" / f"{algo}.yaml"
    known = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if task not in known:
        raise ValueError(
            f"no tuned settings of {algo} for task {task!r} (there are: {', '.join(known) or 'none'}); find some with textrl tune"
        )
    return dict(known[task]["settings"])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("textrl tune needs the package optuna: pip install 'textrl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _tokens(config: Sweep) -> int:
    return config.tokens or budget(parse(config.task).name)


def _space(config: Sweep) -> list[tuple[Any, ...]]:
    """Return what is tried; on exact tasks beta belongs to the task."""
    return [row for row in SPACE[config.algo] if not (row[0] == "beta" and config.task.startswith("exact-"))]


def suggest(config: Sweep, trial: Any) -> dict[str, Any]:
    """Return the settings that a trial tries."""
    return {name: _suggest(trial, name, kind, values) for name, kind, *values in _space(config)}


def _suggest(trial: Any, name: str, kind: str, values: list[Any]) -> Any:
    if kind == "one of":
        return trial.suggest_categorical(name, values)
    return trial.suggest_float(name, *values, log=kind == "log")


def ended(study: Any) -> list[Any]:
    """Return the trials that are complete, pruned or failed."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _write(config: Sweep, study: Any) -> None:
    """Write every trial, and the best one with where it comes from."""
    trials = ended(study)
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
    said = [f for f in dataclasses.fields(config) if f.name in ("task", "algo") or getattr(config, f.name) != f.default]
    flags = [f"--{f.name} {shlex.quote(str(getattr(config, f.name)))}" for f in said]
    found = {
        "settings": best.params,
        "provenance": {
            "value": best.value, "values": best.user_attrs["values"], "trials": len(trials), "tokens": _tokens(config),
            "date": datetime.now(timezone.utc).date().isoformat(), "versions": versions(),
            "command": " ".join(["textrl tune", *(f for f in flags if not f.startswith(("--out", "--save", "--ray")))]),
        },
    }  # fmt: skip
    write_yaml(config.out / "best.yaml", found)
    if config.save is not None:
        kept = yaml.safe_load(config.save.read_text(encoding="utf-8")) if config.save.is_file() else {}
        write_yaml(config.save, {**kept, config.task: found})
    console = Console()
    console.print(f"{len(complete)} of {len(trials)} trials complete; best {best.value:.3f} with {best.params}", highlight=False)
    console.print(f"settings and provenance: {config.out / 'best.yaml'}")
