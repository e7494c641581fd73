"""How close every algorithm comes to the optimum where it is known: `python -m agents.benchmark.studies.exact_tasks`.

Each algorithm is trained on each exact task with several seeds.  The score of a run is the share of the gap between the reference
and the optimum of the KL-regularised return that it closes: 0 is the reference, 1 the optimum, below 0 worse than doing nothing.
The table shows the interquartile mean over seeds and its 95% interval (see `aggregate_statistics`).  Every finished run is a
line in `runs.jsonl`; the same command goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console

import agents
from rewards.utils.intervals import IntervalEstimate
from textrl_env.tasks.exact import TASKS
from textrl_env.utils.files import write_text

from ...evaluation.exact_optimum import optimality_gap
from ...reports.tables import markdown_table, terminal_table
from ..aggregate_statistics import interval, iqm
from ..fresh_processes import fresh_pool
from .study import side_by_side

_DAPO = dict(clip_range_high=0.28, loss_aggregation="token", skip_equal_groups=True, max_sampling_rounds=4, beta=0.0)
ALGORITHMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "PPO": ("TextPPO", dict(rate=0.03, n_episodes=128, batch_size=64, n_epochs=2)),
    "MaskablePPO": ("TextMaskablePPO", dict(rate=0.03, n_episodes=128, batch_size=64, n_epochs=2)),
    "A2C": ("TextA2C", dict(rate=0.05, n_episodes=64)),
    "TRPO": ("TextTRPO", dict(rate=0.05, n_episodes=256, batch_size=64, target_kl=0.02)),
    "REINFORCE": ("Reinforce", dict(rate=0.03, n_episodes=128, batch_size=128)),
    "RLOO": ("RLOO", dict(rate=0.05, n_episodes=64, batch_size=64)),
    "REINFORCE++": ("ReinforcePlusPlus", dict(rate=0.03, n_episodes=128, batch_size=128, n_epochs=1)),
    "REINFORCE++ baseline": (
        "ReinforcePlusPlus",
        dict(rate=0.05, n_episodes=64, batch_size=64, n_epochs=1, estimator="reinforce++_baseline"),
    ),
    "GRPO": ("GRPO", dict(rate=0.05, n_episodes=64, batch_size=64)),
    "Dr. GRPO": ("GRPO", dict(rate=0.05, n_episodes=64, batch_size=64, estimator="group_mean", loss_aggregation="budget")),
    "NLPO": ("NLPO", dict(rate=0.03, n_episodes=128, batch_size=64, n_epochs=2, mask_top_p=0.9, mask_refresh=10)),
    "DAPO": ("GRPO", dict(rate=0.05, n_episodes=64, batch_size=64, **_DAPO)),
}
PATIENCE: Mapping[str, int] = {"REINFORCE": 2, "REINFORCE++": 2}  # times the tokens: one baseline for all prompts leaves noise


@dataclass(frozen=True)
class Exact:
    """What to run.

    Attributes:
        tasks: Names of exact tasks.
        algorithms: Names of algorithms.
        seeds: Runs of each pair.
        tokens: Tokens that a run writes; twice as many for REINFORCE and REINFORCE++, which have neither critic nor groups.
        beta: Coefficient of KL in the objective that is judged, and in every algorithm but DAPO, which has none.
        policy: A table with a row for each text, or a transformer of two layers.
        processes: Runs side by side, one thread each.
        out: Folder of the results.
        markdown: A file for the table; none without.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    seeds: int = 10
    tokens: int = 150_000
    beta: float = 0.5
    policy: Literal["table", "transformer"] = "table"
    processes: int = 2
    out: Path = Path("runs/exact")
    markdown: Path | None = None


def main(config: Exact) -> dict[tuple[str, str], IntervalEstimate]:
    """Run what is missing, print the table, and return its cells by algorithm and task."""
    path = config.out / "runs.jsonl"
    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    settings: dict[str, Any] = {"beta": config.beta, "policy": config.policy}
    tokens = {a: config.tokens * PATIENCE.get(a, 1) for a in ALGORITHMS}
    known = {
        (r["algorithm"], r["task"], r["seed"]): r
        for r in done
        if settings.items() <= r.items() and r["tokens"] == tokens.get(r["algorithm"])
    }
    wanted = [(a, t, s) for s in range(config.seeds) for t in config.tasks for a in config.algorithms]
    missing = [job for job in wanted if job not in known]
    config.out.mkdir(parents=True, exist_ok=True)
    calls = [partial(train, *job, tokens[job[0]], **settings) for job in missing]
    with path.open("a", encoding="utf-8") as file, fresh_pool(config.processes) as pool:
        for result in side_by_side(pool, "train", calls):
            known[result["algorithm"], result["task"], result["seed"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
    cells = {}
    for a in config.algorithms:
        for t in config.tasks:
            cells[a, t] = interval(iqm, [np.array([known[a, t, s]["closed"] for s in range(config.seeds)])])
    _show(config, cells)
    return cells


def train(algorithm: str, task: str, seed: int, tokens: int, beta: float, policy: str) -> dict[str, Any]:
    """Train once, and return the results as plain data."""
    torch.set_num_threads(1)
    name, settings = ALGORITHMS[algorithm]
    settings = dict(settings)
    rate, size = settings.pop("rate"), TASKS[task].vocab_size
    if policy == "table":
        model: dict[str, Any] = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": size, "length": TASKS[task].length + 1}
    else:
        model = {
            "model_type": "llama", "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": 0,
            "initializer_range": 0.2,
        }  # fmt: skip
        rate = rate / 15
    own = getattr(agents, name)
    critic = {"critic": "separate"} if name.startswith("Text") or name == "NLPO" else {}
    began = perf_counter()
    agent = own(
        "MaskableTransformerPolicy" if name == "TextMaskablePPO" else "TransformerPolicy",
        TASKS[task].id,
        learning_rate=lambda left: rate * left,
        seed=seed,
        policy_kwargs={"model": model, **critic},
        **{"beta": beta, **settings},
    )
    agent.learn(tokens)
    gap = optimality_gap(agent.policy.backbone, agent.rollout_buffer.reference, task, beta)
    return {
        "algorithm": algorithm, "task": task, "seed": seed, "tokens": tokens, "beta": beta, "policy": policy, "closed": gap.closed,
        **gap.achieved._asdict(), "optimum": gap.optimum, "reference": gap.reference, "kl_to_optimum": gap.kl_to_optimum,
        "seconds": perf_counter() - began,
    }  # fmt: skip


def _show(config: Exact, cells: dict[tuple[str, str], IntervalEstimate]) -> None:
    title = f"Share of the gap closed: {config.policy}, beta {config.beta}, {config.tokens:,} tokens, {config.seeds} seeds"
    head = ("", *config.tasks)
    rows = [[a, *("{:.3f} [{:.3f}, {:.3f}]".format(*cells[a, t]) for t in config.tasks)] for a in config.algorithms]
    Console(width=max(80, 24 * len(head))).print(terminal_table(head, rows, title))
    if config.markdown is not None:
        write_text(config.markdown, f"# Distance from a known optimum\n\n{__doc__}\n{title}.\n\n{markdown_table(head, rows)}\n")


if __name__ == "__main__":
    main(tyro.cli(Exact))
