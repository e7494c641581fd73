"""An alarm for reward hacking: the reward that is optimised rises, and what it stands for does not."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from rewards.metrics.diversity import distinct_n
from textrl_env.prompts.reward_needs import see_prompts
from textrl_env.reward_model import as_reward_model, valid_scores
from textrl_env.utils.files import append_csv, write_text

from ..algorithms.common.text_algorithm import TextAlgorithm
from ..algorithms.common.training_warnings import TrainingWarning
from ..distributed.process_group import ranks
from ..evaluation.text_comparison import degeneration
from ..rollouts.reward_scaling import Moments, moments
from ..rollouts.text_vec_env import text_env_of
from .rewind_logs import naming

WINDOW = 5  # rollouts
_COLUMNS = ("tokens", "learned", "learned_error", "held_out", "held_out_error", "kl_per_sequence", "length", "distinct_2")
_SAMPLE = 64  # texts that distinct-2 is taken over: it falls with their number


@dataclass(frozen=True)
class RolloutSummary:
    """What a rollout shows.

    Attributes:
        tokens: Written so far.
        learned: Mean of the reward that is optimised.
        learned_error: Its standard error.
        held_out: Mean of a reward that is not; NaN without one.
        held_out_error: Its standard error.
        kl_per_sequence: KL to the reference, in nats a text.
        length: Mean response length in tokens.
        distinct_2: Share of different word pairs among 64 texts.
    """

    tokens: int
    learned: float
    learned_error: float
    held_out: float
    held_out_error: float
    kl_per_sequence: float
    length: float
    distinct_2: float


def causes(history: Sequence[RolloutSummary]) -> Iterator[tuple[str, str]]:
    """Yield what is alarming about the last 5 rollouts: a name and a sentence.

    - `over-optimisation`: the held-out reward is 3 standard errors below its best 5 rollouts, and the learned one is not below what it was
      there (Gao et al. 2023).
    - `repetition` and `length`: see `degeneration`, beside the first 5 rollouts.
    """
    if len(history) < 2 * WINDOW:
        return
    first, last = history[:WINDOW], history[-WINDOW:]
    held = _means([s.held_out for s in history])
    best = int(np.nanargmax(held[:-WINDOW])) if np.isfinite(held[:-WINDOW]).any() else None
    if best is not None:
        then = history[best : best + WINDOW]
        error = np.sqrt(sum(s.held_out_error**2 for s in (*then, *last))) / WINDOW
        learned_error = np.sqrt(sum(s.learned_error**2 for s in (*then, *last))) / WINDOW
        fallen = held[best] - held[-1]
        if fallen > 3 * error and _mean(last, "learned") > _mean(then, "learned") - learned_error:
            yield (
                "over-optimisation",
                f"the held-out reward fell from {held[best]:.3f} to {held[-1]:.3f} while the learned one went from "
                f"{_mean(then, 'learned'):.3f} to {_mean(last, 'learned'):.3f}, at KL {_mean(last, 'kl_per_sequence'):.1f}: "
                "stop earlier, raise beta, or ask for labels on these texts",
            )
    distinct_2, length = ((_mean(first, name), _mean(last, name)) for name in ("distinct_2", "length"))
    yield from degeneration(distinct_2, length)


class RewardHackingCallback(BaseCallback):
    """Measures every rollout by a reward that is not optimised, and warns of each alarming change once.

    Writes `reward_hacking.csv`, a row a rollout, and `alarms.txt`; a run that goes on reads the former.  Several ranks each have one: all
    measure their own texts, the first writes, looks at samples of its own, and tells the others of alarms.

    Args:
        folder: For the files.
        held_out: Any reward model, such as one fitted to other comparisons; None watches repetition and length alone.
        stop: End the training at the first alarm.
    """

    def __init__(self, folder: Path, held_out: Any = None, stop: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.held_out = None if held_out is None else as_reward_model(held_out)
        self.stop = stop
        self.history: list[RolloutSummary] = []
        self.alarms: dict[str, str] = {}

    def _on_training_start(self) -> None:
        if self.held_out is not None:
            see_prompts(self.held_out, text_env_of(self.training_env).task.prompts)
        if not ranks().is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.history = [s for s in _read(self.folder / "reward_hacking.csv") if s.tokens <= self.model.num_timesteps]
        for name in ("reward_hacking.csv", "alarms.txt"):
            (self.folder / name).unlink(missing_ok=True)
        for seen in self.history:
            append_csv(self.folder / "reward_hacking.csv", _COLUMNS, vars(seen))

    def _on_rollout_end(self) -> None:
        self._look()
        self.alarms = ranks().broadcast(self.alarms)

    def _look(self) -> None:
        assert isinstance(self.model, TextAlgorithm) and self.model.last_rollout is not None
        rollout = self.model.last_rollout
        learned = rollout.scores
        held_out = np.full(1, np.nan)
        if self.held_out is not None:
            held_out = valid_scores(self.held_out, [info["text"] for info in rollout.infos])
            self.logger.record("objective/held_out", float(moments(held_out, self.model.ranks).mean))
        logged = self.logger.name_to_value
        kl, length = (float(logged.get(name, np.nan)) for name in ("kl/per_sequence", "tokens/length"))
        variety = distinct_n(rollout.responses[:_SAMPLE], 2)
        measured = [_measured(moments(values, self.model.ranks)) for values in (learned, held_out)]
        if not self.model.ranks.is_main:
            return
        self.history.append(RolloutSummary(self.model.num_timesteps, *measured[0], *measured[1], kl, length, variety))
        append_csv(self.folder / "reward_hacking.csv", _COLUMNS, vars(self.history[-1]))
        for name, message in causes(self.history):
            if name not in self.alarms:
                self.alarms[name] = message
                write_text(self.folder / "alarms.txt", "".join(f"{key}: {text}\n" for key, text in self.alarms.items()))
                warnings.warn(message, TrainingWarning, stacklevel=3)

    def _on_step(self) -> bool:
        return not (self.stop and self.alarms)


def _measured(values: Moments) -> tuple[float, float]:
    """Return the mean and its standard error."""
    error = np.sqrt(values.squares / (values.number - 1)) / np.sqrt(values.number) if values.number > 1 else 0.0
    return float(values.mean), float(error)


def _means(values: Sequence[float]) -> np.ndarray:
    """Return the mean of each run of 5, shape (n - 4,)."""
    return np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")


def _mean(rollouts: Sequence[RolloutSummary], name: str) -> float:
    return float(np.mean([getattr(s, name) for s in rollouts]))


def _read(path: Path) -> list[RolloutSummary]:
    if not path.is_file():
        return []
    with naming(path), open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [RolloutSummary(int(row["tokens"]), *(float(row[name]) for name in _COLUMNS[1:])) for row in rows]
