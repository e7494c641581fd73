"""What decides how far DPO goes from its reference: `python -m agents.benchmark.studies.dpo_distance`.

The base policy of `textrl/Review-v0` writes pairs of texts, the fitted reward of `textrl bench` prefers one, as for its agent `dpo`, and
DPO learns from them at two strengths of the KL term.  Each arm changes one thing: the learning rate, the passes over the pairs, their
number, or which of them are learned from (those whose rewards differ most; those that are about equally long).  Measured are the KL to the
base policy on test prompts, the share of the pairs that come out right, and how far h = beta * difference of log-ratios got: while it is
small, the gradient of every pair is beta / 2 whatever h is, and Adam's steps do not depend on the gradient's scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console

from rewards.utils.intervals import mean_interval
from textrl_env import make_task
from textrl_env.utils.files import read_json, write_json, write_text

from ...algorithms.dpo import DPO, Pair
from ...evaluation.policy_texts import make_policy, write_texts
from ...models.loading import frozen, load_lm
from ...reports.tables import markdown_table
from ...training.base_policies import base_policy
from ...training.review_reward import learned_reward
from ...utils.fresh_processes import fresh_pool
from ..agents import LearningSetup, compared_pairs
from .study import side_by_side

_LENGTH = 20.0  # mean tokens of a text of the base policy


@dataclass(frozen=True)
class Arm:
    """What is changed: learning rate, passes, how much is written for the pairs, and which share of the pairs is kept by what."""

    learning_rate: float = 1e-4
    epochs: float = 3
    tokens: int = 20_000
    keep: str = "all"


ARMS: Mapping[str, Arm] = {
    "as the benchmark had it": Arm(),
    "rate 3e-4": Arm(3e-4),
    "rate 1e-3": Arm(1e-3),
    "rate 3e-3": Arm(3e-3),
    "10 passes": Arm(epochs=10),
    "4 times the pairs, as many steps": Arm(epochs=0.75, tokens=80_000),
    "half of the pairs, widest margin, as many steps": Arm(epochs=6, keep="margin"),
    "half of the pairs, most equal length, as many steps": Arm(epochs=6, keep="length"),
}


@dataclass(frozen=True)
class Distance:
    """What to run.

    Attributes:
        seeds: Runs of each arm and beta.
        texts: Texts of each policy that are judged.
        processes: Runs side by side, one thread each.
        markdown: A file for the table; none without.
        betas: Strengths of the KL term.
        arms: Names of what is changed.
        out: Folder of the results; the same command goes on from there.
    """

    seeds: int = 3
    texts: int = 500
    processes: int = 2
    markdown: Path | None = None
    betas: tuple[float, ...] = (0.03, 0.3)
    arms: tuple[str, ...] = field(default_factory=lambda: tuple(ARMS))
    out: Path = Path("runs/dpo-distance")


def main(config: Distance) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Run what is missing, print the table, and return the measures by arm and beta, shape (seeds,) each."""
    learned_reward(make_task("review"), str(base_policy(make_task("review"), progress_bar=True)))  # once, before the processes ask for it
    jobs = [(arm, beta, seed) for seed in range(config.seeds) for beta in config.betas for arm in config.arms]
    with fresh_pool(config.processes) as pool:
        list(side_by_side(pool, "train", [partial(run_one, config, *job) for job in jobs if not _done(config, *job)]))
    found = {job: {name: value for name, value in read_json(_path(config, *job)).items() if name != "of"} for job in jobs}
    rows = {
        (arm, beta): {name: np.array([found[arm, beta, seed][name] for seed in range(config.seeds)]) for name in found[arm, beta, 0]}
        for arm in config.arms
        for beta in config.betas
    }
    table = _table(config, rows)
    Console(width=160).print(table)
    if config.markdown is not None:
        write_text(config.markdown, f"{table}\n")
    return rows


def run_one(config: Distance, name: str, beta: float, seed: int) -> None:
    """Train once, measure, and write the result."""
    torch.set_num_threads(1)
    arm, task = ARMS[name], make_task("review")
    base = str(base_policy(task))
    reward = {"name": "preference", "path": str(learned_reward(task, base))}
    task = dataclasses.replace(task, reward=reward)
    pairs = _kept(compared_pairs(LearningSetup(task, base, arm.tokens, seed, beta, _LENGTH)), arm.keep)
    agent = DPO(base, task.tokenizer, beta, learning_rate=arm.learning_rate, seed=seed, max_new_tokens=task.max_new_tokens)
    plain = [pair for pair, _ in pairs]
    agent.learn(plain, max(1, round(arm.epochs * len(plain) / agent.batch_size)))
    rows = agent._encode(plain)
    with torch.no_grad():
        parts = [agent._log_ratios(agent._records(rows[i : i + 64])).unflatten(0, (2, -1)) for i in range(0, len(rows), 64)]
    differences = torch.cat([chosen - rejected for chosen, rejected in parts]).numpy()  # (P,)
    policy = make_policy(task, base)
    policy.lm.load_state_dict(agent.lm.state_dict())
    test = make_task("review", split="test", prompt_order="sequential", reward=reward)
    texts = write_texts(policy, test, config.texts, reference=frozen(load_lm(base)), seed=20_000 + seed)
    assert test.gold is not None
    result = {
        "steps": len(agent.losses), "kl": texts.kl_per_sequence, "gold": float(test.gold(texts.prompts, texts.responses).mean()),
        "reward": float(texts.scores.mean()), "right": float((differences > 0).mean()), "h": float(beta * differences.mean()),
        "loss": float(np.mean(agent.losses[-20:])), "of": _inputs(config, name),
    }  # fmt: skip
    write_json(_path(config, name, beta, seed), result)


def _kept(pairs: list[tuple[Pair, float]], keep: str) -> list[tuple[Pair, float]]:
    """Return all pairs, or the half whose rewards differ most, or whose lengths differ least."""
    if keep == "all":
        return pairs
    by = [-gap if keep == "margin" else abs(len(pair.chosen.actions) - len(pair.rejected.actions)) for pair, gap in pairs]
    return [pairs[i] for i in sorted(np.argsort(by, kind="stable")[: len(pairs) // 2])]


def _inputs(config: Distance, arm: str) -> dict[str, Any]:
    """Return what a result depends on besides what its file is named after."""
    return {"texts": config.texts, **dataclasses.asdict(ARMS[arm])}


def _done(config: Distance, arm: str, beta: float, seed: int) -> bool:
    path = _path(config, arm, beta, seed)
    return path.is_file() and read_json(path).get("of") == _inputs(config, arm)


def _path(config: Distance, arm: str, beta: float, seed: int) -> Path:
    return config.out / f"{list(ARMS).index(arm)}-beta-{beta:g}-seed-{seed}.json"


def _table(config: Distance, rows: Mapping[tuple[str, float], Mapping[str, Any]]) -> str:
    head = ["", "steps", *(f"{what}, beta {beta:g}" for what in ("KL, nats", "gold score", "right", "mean h") for beta in config.betas)]
    lines = []
    for arm in config.arms:
        own = [rows[arm, beta] for beta in config.betas]
        cells = [*("{:.2f} [{:.2f}, {:.2f}]".format(*mean_interval(row[name])) for name in ("kl", "gold") for row in own)]
        cells += [f"{row['right'].mean():.0%}" for row in own] + [f"{row['h'].mean():.2f}" for row in own]
        lines.append([arm, f"{own[0]['steps'].mean():.0f}", *cells])
    return markdown_table(head, lines)


if __name__ == "__main__":
    main(tyro.cli(Distance))
