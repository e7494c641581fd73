"""Validation while a policy trains: its texts to prompts of their own are measured, and the best policy so far is kept in a folder."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from textrl_env import TextTask
from textrl_env.utils.files import append_csv, new_folder, write_json

from ..algorithms.common.text_algorithm import TextAlgorithm
from ..evaluation.policy_texts import write_texts
from ..evaluation.text_comparison import measures, text_rows
from ..rollouts.text_vec_env import text_env_of
from .first_texts import undisturbed
from .rewind_logs import naming
from .settings import KEEP
from .text_corpus import task_of
from .trained_run import BEST

TEXTS = 200
_COLUMNS = ("iteration", "tokens", *KEEP, "length", "distinct_2")

Row = dict[str, float]  # of `validation.csv`; NaN where a measure does not apply


def validation_task(settings: Mapping[str, Any], folder: Path, num_texts: int) -> TextTask:
    """Return the task of a run with prompts of the validation split in order, as many as texts are written; none is a test prompt.

    Args:
        settings: Of `textrl train`.
        folder: Of the run.
        num_texts: Of each validation.

    Raises:
        ValueError: There are no such prompts.
    """
    task = task_of(settings, folder, "validation")
    test = {prompt.text for prompt in task_of(settings, folder, "test").prompts}
    kept = tuple(islice((prompt for prompt in task.prompts if prompt.text not in test), num_texts))
    if not kept:
        raise ValueError(
            f"--eval-every: all {len(task.prompts)} validation prompts are test prompts too, and what is chosen by them could not be "
            "examined on them: leave it out"
        )
    return dataclasses.replace(task, prompts=kept, prompt_order="sequential", prompt_weights=None)


class ValidationCallback(BaseCallback):
    """Measures the policy between rollouts, and keeps the best one.

    Before the first rollout, after every so many, and at the end of the budget the policy writes texts to the same prompts from the same
    seed, so that two measurements differ by the policy alone; nothing is drawn from the generators of the training.  `validation.csv` gets
    a row each time, and `best`, beside the folder, the policy whose measure is best, the earliest of equal ones: `policy.zip`, `model`
    and `best.json`.  A run that goes on reads both.  Several ranks write the same texts each, and the first keeps what they measure.

    Args:
        folder: For `validation.csv`.
        task: With the prompts, in order.
        every: Rollouts from one validation to the next.
        keep: Measure by which the best is kept, a key of `KEEP`; None: none is kept.
        num_texts: How many are written each time.
        held_out: A reward that is not optimised, measured too; None: there is none.
        seed: Of the sampling.

    Raises:
        ValueError: There is no such measure, or the texts have it not.
    """

    def __init__(
        self, folder: Path, task: TextTask, every: int, keep: str | None = None, num_texts: int = TEXTS, held_out: Any = None, seed: int = 0
    ) -> None:
        super().__init__()
        if keep not in (None, *KEEP):
            raise ValueError(f"keep={keep!r}: the best policy can be kept by {', '.join(KEEP)}")
        self.file, self.best = folder / "validation.csv", folder.parent / BEST
        self.task, self.every, self.keep, self.num_texts, self.held_out, self.seed = task, every, keep, num_texts, held_out, seed
        self.rows: list[Row] = []
        self.value: float | None = None

    @property
    def algorithm(self) -> TextAlgorithm:
        """The algorithm that trains."""
        assert isinstance(self.model, TextAlgorithm)
        return self.model

    def _on_training_start(self) -> None:
        ranks = self.algorithm.ranks
        if ranks.is_main:
            if not self.algorithm.num_timesteps:
                shutil.rmtree(self.best, ignore_errors=True)
            self.rows = [row for row in read_validation(self.file) if row["tokens"] <= self.algorithm.num_timesteps]
            self.file.unlink(missing_ok=True)
            for row in self.rows:
                append_csv(self.file, _COLUMNS, row)
            self.value = read_best(self.best).get("value")
        self.rows, self.value = ranks.broadcast((self.rows, self.value))

    def _on_rollout_start(self) -> None:
        if self.algorithm.num_rollouts % self.every == 0:
            self._validate()

    def _on_training_end(self) -> None:
        if self.algorithm.num_timesteps >= self.algorithm._total_timesteps:  # not where somebody asked to stop, who may go on
            self._validate()

    def _on_step(self) -> bool:
        return True

    def _validate(self) -> None:
        algorithm, ranks = self.algorithm, self.algorithm.ranks
        if not self.rows or self.rows[-1]["tokens"] != algorithm.num_timesteps:
            row = {"iteration": algorithm.num_rollouts, "tokens": algorithm.num_timesteps, **ranks.broadcast(self._measured())}
            if self.keep is not None and not np.isfinite(row[self.keep]):
                raise ValueError(f"keep={self.keep!r}: no such measure here; gold asks for a task that has it, held_out for a reward")
            if self.keep is not None and (self.value is None or _better(self.keep, row[self.keep], self.value)):
                self.value = row[self.keep]
                self._save(self.keep, row)
            self.rows.append(row)
            if ranks.is_main:  # last: what has a row is not measured again
                append_csv(self.file, _COLUMNS, row)
        for name in _COLUMNS[2:]:
            if np.isfinite(self.rows[-1][name]):
                self.logger.record(f"validation/{name}", self.rows[-1][name])

    def _measured(self) -> Row:
        algorithm = self.algorithm
        policy, reward = algorithm.policy, text_env_of(algorithm.env).reward_model
        whole = [policy, *([] if algorithm.reference is None else [algorithm.reference])]
        with undisturbed(policy.device, reward), algorithm.engine.whole(*whole):
            np.random.seed(self.seed)
            random.seed(self.seed)
            reference = algorithm.rollout_buffer.reference
            texts = write_texts(policy, self.task, self.num_texts, reward, reference, self.seed, algorithm.n_episodes)
            found = measures(text_rows(texts, self.task, self.held_out))
        return {name: found.get(name, float("nan")) for name in _COLUMNS[2:]}

    def _save(self, measure: str, row: Row) -> None:
        main = self.algorithm.ranks.is_main
        with new_folder(self.best) if main else nullcontext(self.best) as made:
            self.algorithm.save(made / "policy.zip")
            self.algorithm.save_pretrained(made / "model")
            if main:
                write_json(made / "best.json", {"measure": measure, "value": row[measure], "tokens": row["tokens"]})


def _better(measure: str, one: float, other: float) -> bool:
    return one > other if KEEP[measure] else one < other


def read_validation(file: Path) -> list[Row]:
    """Return the rows of `validation.csv`; none if there is no such file."""
    if not file.is_file():
        return []
    with naming(file), open(file, newline="", encoding="utf-8") as opened:
        rows = [row for row in csv.DictReader(opened) if None not in row.values()]
        return [{name: (int if name in _COLUMNS[:2] else float)(row[name]) for name in _COLUMNS} for row in rows]


def read_best(folder: Path) -> dict[str, Any]:
    """Return measure, value and tokens of the best policy that a folder holds; nothing if it holds none."""
    file = folder / "best.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def told_best(folder: Path, name: str) -> str:
    """Return a sentence on the best policy of a run: which it is, and by what.

    Args:
        folder: Of the run.
        name: Subfolder of the policy that trained.
    """
    best, rows = read_best(folder / BEST), read_validation(folder / name / "validation.csv")
    measure, last = best["measure"], rows[-1]
    return (
        f"The policy is the best of {len(rows)} by {measure} on validation prompts: {best['value']:.4g} after {best['tokens']:,} tokens; "
        f"the last one has {last[measure]:.4g} after {last['tokens']:,}"
    )
