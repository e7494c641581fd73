"""How close every algorithm comes to the optimum where it is known: `python -m agents.benchmark.studies.exact_tasks`.

Each algorithm is trained on each exact task with several seeds, and judged by two measures, both by enumeration of all texts.

The first is the share of the gap between the reference and the optimum of the KL-regularised return that a run closes: 0 is the
reference, 1 the optimum, below 0 worse than doing nothing.  It is fair to those that maximise this return.

Others go elsewhere by construction: divided by the deviation of a group, a score weighs more against KL, and without KL it is all that
counts.  The second measure asks of each where it went: the share of the rise in score that is possible at the KL of its own policy, prompt
by prompt.  It is 1 for the optimum of any beta, and says nothing about which of them is wanted; the third table says how far they went.

Where GRPO and Dr. GRPO lead if nothing is sampled is known too: "at rest" is the policy at which their expected update vanishes (see
`agents.evaluation.fixed_points`), with the references of the runs.  The gap that it leaves is the objective's, not the run's.

The tables show the interquartile mean over seeds and its 95% interval (see `aggregate_statistics`).  Every finished run is a
line in `runs.jsonl`; the same command goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
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

from ...algorithms.registry import ALGORITHMS as ON_POLICY
from ...evaluation.exact_optimum import Gap, gap_between, policies_of
from ...evaluation.fixed_points import fixed_point
from ...reports.tables import markdown_table, terminal_table
from ...utils.fresh_processes import fresh_pool
from ..aggregate_statistics import interval, iqm
from .study import side_by_side


def _preset(name: str) -> dict[str, Any]:
    """Return the settings of a name of `textrl train`, with KL as every other row has it."""
    return {setting: value for setting, value in ON_POLICY[name].settings.items() if setting != "beta"}


_CISPO: dict[str, Any] = {"clip_range": 1.0, "clip_range_high": 4.0}
_GROUPS: dict[str, Any] = dict(rate=0.05, n_episodes=64, batch_size=64)
_TWICE: dict[str, Any] = {**_GROUPS, "n_epochs": 2}  # in the second step ratios are not 1
ALGORITHMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "PPO": ("TextPPO", dict(rate=0.03, n_episodes=128, batch_size=64, n_epochs=2)),
    "MaskablePPO": ("TextMaskablePPO", dict(rate=0.03, n_episodes=128, batch_size=64, n_epochs=2)),
    "A2C": ("TextA2C", dict(rate=0.05, n_episodes=64)),
    "TRPO": ("TextTRPO", dict(rate=0.05, n_episodes=256, batch_size=64, target_kl=0.02)),
    "REINFORCE": ("Reinforce", dict(rate=0.03, n_episodes=128, batch_size=128)),
    "RLOO": ("RLOO", _GROUPS),
    "RLOO, two epochs": ("RLOO", _TWICE),
    "RLOO, GSPO's ratio": ("RLOO", {**_TWICE, "surrogate": "gspo", "loss_aggregation": "sequence"}),
    "RLOO, GMPO's ratio": ("RLOO", {**_TWICE, "surrogate": "gmpo", "loss_aggregation": "sequence"}),
    "RLOO, CISPO's ratio": ("RLOO", {**_TWICE, "surrogate": "cispo", **_CISPO}),
    "RLOO, Clip-Cov": ("RLOO", {**_TWICE, "surrogate": "clip-cov", "cov_share": 0.02, "cov_low": 0.1}),
    "RLOO, KL-Cov": ("RLOO", {**_TWICE, "surrogate": "kl-cov", "cov_share": 0.02}),
    "RLOO, off-policy mask": ("RLOO", {**_TWICE, "off_policy_mask": 0.05}),
    "RLOO, entropy target": ("RLOO", {**_TWICE, "entropy_target": 1.0}),
    "REINFORCE++": ("ReinforcePlusPlus", dict(rate=0.03, n_episodes=128, batch_size=128, n_epochs=1)),
    "REINFORCE++ baseline": ("ReinforcePlusPlus", {**_GROUPS, "n_epochs": 1, "estimator": "reinforce++_baseline"}),
    "NLPO": ("NLPO", dict(rate=0.03, n_episodes=128, batch_size=64, n_epochs=2, mask_top_p=0.9, mask_refresh=10)),
    "GRPO": ("GRPO", _GROUPS),
    "Dr. GRPO": ("GRPO", {**_GROUPS, "estimator": "group_mean", "loss_aggregation": "budget"}),
    "GSPO": ("GRPO", {**_GROUPS, **_preset("gspo")}),
    "GMPO": ("GRPO", {**_GROUPS, **_preset("gmpo")}),
    "CISPO": ("GRPO", {**_GROUPS, **_preset("cispo")}),
    "Online DPO": ("OnlineDPO", _GROUPS),
    "DAPO": ("GRPO", {**_GROUPS, **_preset("dapo"), "beta": 0.0}),
    "DAPO, full texts kept": ("GRPO", {**_GROUPS, **_preset("dapo"), "beta": 0.0, "overlong_filtering": False}),
}
MEASURES = {
    "closed": "Share of the gap to the optimum of the KL-regularised return",
    "of_best_score": "Share of the rise in score that is possible at the policy's own KL",
    "kl": "KL to the reference, nats a text",
}
# Groups are the texts of a prompt in a rollout, half of 64
AT_REST = {"GRPO": (True, True), "Dr. GRPO": (False, False)}  # whose fixed point is known; see `fixed_point`
PATIENCE: Mapping[str, int] = {"REINFORCE": 2, "REINFORCE++": 2}  # times the tokens: one baseline for all prompts leaves noise


@dataclass(frozen=True)
class Exact:
    """What to run.

    Attributes:
        tasks: Names of exact tasks.
        algorithms: Names of algorithms.
        seeds: Runs of each pair.
        tokens: Tokens that a run writes; twice as many for REINFORCE and REINFORCE++, which have neither critic nor groups.
        beta: Coefficient of KL in the objective that is judged, and in every algorithm but DAPO, which has none: GSPO, GMPO and CISPO,
            whose papers have none either, take GRPO's KL in the loss.
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


def main(config: Exact) -> dict[tuple[str, str, str], IntervalEstimate]:
    """Run what is missing, print the tables, and return their cells by measure, algorithm and task."""
    path = config.out / "runs.jsonl"
    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    settings: dict[str, Any] = {"beta": config.beta, "policy": config.policy}
    tokens = {a: config.tokens * PATIENCE.get(a, 1) for a in ALGORITHMS}
    asked = {a: {**settings, "tokens": tokens[a], "settings": _plain(a)} for a in config.algorithms}
    known = {(r["algorithm"], r["task"], r["seed"]): r for r in done if asked.get(r["algorithm"], {"": 0}).items() <= r.items()}
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
    for measure, a, t in product(MEASURES, config.algorithms, config.tasks):
        runs = [known[a, t, s] for s in range(config.seeds)]
        cells[measure, a, t] = interval(iqm, np.array([[run[measure] for run in runs]]))
        if a in AT_REST:
            cells[measure, f"{a} at rest", t] = interval(iqm, np.array([[run["at_rest"][measure] for run in runs]]))
    _show(config, cells)
    return cells


def _measured(gap: Gap) -> dict[str, float]:
    """Return the numbers of the tables."""
    return {"closed": gap.closed, "of_best_score": gap.of_best_score, "kl": gap.achieved.kl}


def _plain(algorithm: str) -> dict[str, Any]:
    """Return the settings of an algorithm as a line of `runs.jsonl` holds them."""
    plain: dict[str, Any] = json.loads(json.dumps(ALGORITHMS[algorithm][1]))
    return plain


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
    learned, reference = (policies_of(model, task) for model in (agent.policy.backbone, agent.rollout_buffer.reference))
    gap, rest = gap_between(learned, reference, task, beta), None
    if algorithm in AT_REST:
        how = AT_REST[algorithm]
        at_rest = [fixed_point(TASKS[task].tree(n), theirs, beta, None, *how) for n, theirs in enumerate(reference)]
        rest = _measured(gap_between(at_rest, reference, task, beta))
    return {
        "algorithm": algorithm, "task": task, "seed": seed, "tokens": tokens, "beta": beta, "policy": policy,
        **_measured(gap), "best_score": gap.best_score, "settings": _plain(algorithm), "at_rest": rest,
        "objective": gap.achieved.objective, "score": gap.achieved.score, "optimum": gap.optimum, "reference": gap.reference,
        "kl_to_optimum": gap.kl_to_optimum, "seconds": perf_counter() - began,
    }  # fmt: skip


def _show(config: Exact, cells: dict[tuple[str, str, str], IntervalEstimate]) -> None:
    runs = f"{config.policy}, beta {config.beta}, {config.tokens:,} tokens, {config.seeds} seeds"
    head, page = ("", *config.tasks), [f"# Distance from a known optimum\n\n{__doc__}"]
    for measure, title in MEASURES.items():
        names = [name for a in config.algorithms for name in ((a, f"{a} at rest") if a in AT_REST else (a,))]
        rows = [[a, *("{:.3f} [{:.3f}, {:.3f}]".format(*cells[measure, a, t]) for t in config.tasks)] for a in names]
        Console(width=max(80, 24 * len(head))).print(terminal_table(head, rows, f"{title}: {runs}"))
        page.append(f"## {title}\n\n{runs}.\n\n{markdown_table(head, rows)}\n")
    if config.markdown is not None:
        write_text(config.markdown, "\n".join(page))


if __name__ == "__main__":
    main(tyro.cli(Exact))
