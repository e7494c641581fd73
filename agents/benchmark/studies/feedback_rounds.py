"""Rounds of feedback, and answers that are wrong, on `textrl/Review-v0`: `python -m agents.benchmark.studies.feedback_rounds`.

Every arm has the same number of answers, three simulated annotators to a pair, and the same training:

- one round, or three rounds with a third of the answers each, that ask about texts of the policy before;
- no answer flipped, 20% (by annotators who err in 5, 20 and 35%), or 40% (30, 40 and 50%);
- the reward model fitted to every answer, or to the consensus by Dawid and Skene's model.

On top of it every annotator is as unsure as the task's own (see `tasks.review.annotator`).  The gold score judges each final policy on 500
test prompts.  Intervals are Student's over seeds; differences are taken seed by seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from rewards.utils.intervals import mean_interval
from textrl_env import make_task
from textrl_env.utils.files import write_text

from ...pipelines.feedback_loop import run_loop
from ...pipelines.flags import Loop
from ...reports.plots import COLOURS, dress, interval_bars, new_figure, save
from ...reports.tables import markdown_table
from ...training.base_policies import base_policy
from ...utils.fresh_processes import fresh_pool
from .study import Study, side_by_side

TEMPERATURE = 0.43  # of the task's own annotator
FLIPS: dict[int, tuple[float, ...]] = {0: (0.0, 0.0, 0.0), 20: (0.05, 0.20, 0.35), 40: (0.30, 0.40, 0.50)}


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        name: In the table.
        rounds: Rounds that share the answers.
        flip: Per cent of the answers that are flipped.
        weigh: Whether the reward model is fitted to the consensus.
    """

    name: str
    rounds: int = 1
    flip: int = 0
    weigh: bool = False

    @property
    def key(self) -> str:
        """Name of the arm's folders."""
        return f"rounds-{self.rounds}-flip-{self.flip}{'-weighed' if self.weigh else ''}"


ARMS = (
    Arm("one round"),
    Arm("one round, weighted", weigh=True),
    Arm("three rounds", rounds=3),
    Arm("20% flipped, every answer", flip=20),
    Arm("20% flipped, weighted", flip=20, weigh=True),
    Arm("40% flipped, every answer", flip=40),
    Arm("40% flipped, weighted", flip=40, weigh=True),
)


@dataclass(frozen=True)
class FeedbackStudy(Study):
    """What to run.

    Attributes:
        labels: Answers of each run.
        out: Folder of the results; the same command goes on from there.
    """

    seeds: int = 5
    labels: int = 3000
    out: Path = Path("runs/feedback")


def main(config: FeedbackStudy) -> dict[str, np.ndarray]:
    """Run what is missing, print the table, and return the gain of each arm by seed, shape (seeds,)."""
    base_policy(make_task("review"), progress_bar=True)  # once, before the processes ask for it
    with fresh_pool(config.processes) as pool:
        list(side_by_side(pool, "loops", [partial(run_one, config, arm, seed) for seed in range(config.seeds) for arm in ARMS]))
    results = {arm.name: [_result(config, arm, seed) for seed in range(config.seeds)] for arm in ARMS}
    gains = {name: np.array([row["gold"] - row["base"] for row in rows]) for name, rows in results.items()}
    table = _table(results, gains)
    Console().print(table, markup=False, highlight=False, soft_wrap=True)
    if config.markdown is not None:
        write_text(config.markdown, table)
    if config.figure is not None:
        save(draw(gains), config.figure)
    return gains


def run_one(config: FeedbackStudy, arm: Arm, seed: int) -> None:
    """Run one loop; what it prints goes to `log.txt` in its folder."""
    torch.set_num_threads(1)
    folder = config.out / arm.key / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    annotators = tuple(json.dumps({"flip": flip, "temperature": TEMPERATURE}) for flip in FLIPS[arm.flip])
    with open(folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        run_loop(
            Loop(
                out=folder, rounds=arm.rounds, labels=config.labels // arm.rounds, annotators=annotators, weigh=arm.weigh,
                texts=config.texts, total_tokens=config.tokens, seed=seed,
            )
        )  # fmt: skip


def _result(config: FeedbackStudy, arm: Arm, seed: int) -> dict[str, Any]:
    rounds = json.loads((config.out / arm.key / f"seed-{seed}" / "rounds.json").read_text(encoding="utf-8"))
    return {**rounds["rounds"][-1], "base": rounds["base"]["gold"]}


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return mean and half width of Student's 95% interval."""
    mean, low, _ = mean_interval(np.asarray(values, float))
    return mean, mean - low


def _table(results: dict[str, list[dict[str, Any]]], gains: dict[str, np.ndarray]) -> str:
    first = next(iter(gains.values()))
    cells = []
    for name, rows in results.items():
        difference = "" if gains[name] is first else "{:+.3f} ± {:.3f}".format(*interval(gains[name] - first))
        mean = {key: np.mean([row[key]["rate"] for row in rows]) for key in ("win_rate", "reward_accuracy")}
        kl = np.mean([row["kl_per_sequence"] for row in rows])
        gain, half = interval(gains[name])
        rates = (f"{gain / first.mean():.0%}", f"{mean['win_rate']:.1%}", f"{mean['reward_accuracy']:.1%}")
        cells.append((name, f"{gain:.3f} ± {half:.3f}", difference, *rates, f"{kl:.2f}"))
    head = ("arm", "gold gain over base policy", "against one round", "share of its gain", "wins against base", "reward accuracy")
    return markdown_table((*head, "KL per text"), cells) + "\n"


def draw(gains: dict[str, np.ndarray]) -> Figure:
    """Draw the gain of each arm: every seed as a tick, the mean with its interval, the first arm on top."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    places = np.arange(len(gains))[::-1]
    for place, values in zip(places, gains.values(), strict=True):
        mean, half = interval(values)
        axes.plot(values, np.full(len(values), place), "|", color=COLOURS[5], markersize=9)
        interval_bars(axes, [place], [(mean, mean - half, mean + half)], across=True)
    axes.set_yticks(places, list(gains))
    axes.set_ylim(-0.6, len(gains) - 0.4)
    axes.set_xlim(left=0)
    dress(axes, "gold score gained over the base policy")
    return figure


if __name__ == "__main__":
    main(tyro.cli(FeedbackStudy))
