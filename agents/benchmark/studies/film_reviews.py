"""Every algorithm on `textrl/Review-v0`, judged by the gold score: `python -m agents.benchmark.studies.film_reviews`.

For each seed the base policy writes pairs of texts, a simulated annotator compares them, and a reward model is fitted to the choices.
Algorithms that ask for a reward learn from that model; DPO and its relatives, KTO and SFT learn from the same comparisons.  Then each
policy goes on with the 500 openings of the test split, and the task's gold score, which no algorithm saw, compares its texts with those of
the base policy on the same openings.  The share of openings on which it wins has Student's 95% interval over seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from rewards.preferences.preference_files import read_preferences
from rewards.preferences.thumbs import thumbs_of
from rewards.utils.intervals import mean_interval, win_rate
from textrl_env import TextTask, make_task
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import NoReward
from textrl_env.utils.files import write_json, write_text

from ...algorithms.expert_iteration import ExpertIteration
from ...algorithms.registry import ALGORITHMS
from ...evaluation.best_of import best_of_n, kl_bound
from ...evaluation.policy_texts import make_policy, write_texts
from ...models.loading import frozen, load_lm
from ...pipelines.demo import prepare
from ...pipelines.flags import Demo
from ...policies.transformer_policy import TransformerPolicy
from ...reports.plots import save
from ...reports.tables import markdown_table
from ...reports.training_plots import small_multiples
from ...training.base_policies import base_policy
from ...training.offline_training import preferred_texts, supervised
from ...training.policy_training import train_policy
from ...training.settings import OFFLINE, RATES, STEPS, PolicyTraining
from ...utils.fresh_processes import fresh_pool
from ...utils.run_folder import RunFolder
from .study import Study, side_by_side

BASELINES = ("random", "best-of-8")
NAMES = tuple(name for name in (*ALGORITHMS, *OFFLINE, *BASELINES) if name != "distill")  # there is no teacher here
_POINTS = 10  # of a learning curve, where training does not write texts by itself


@dataclass(frozen=True)
class Review(Study):
    """What to run.

    Attributes:
        algorithms: Names, as `textrl train --algo` calls them, and `random` and `best-of-8`.
        against: One of them, whose gain in gold score is taken from that of every other, seed by seed; by default none.
        out: Folder of the results; the same command goes on from there.
    """

    algorithms: tuple[str, ...] = NAMES
    against: str | None = None
    out: Path = Path("runs/review")


def main(config: Review) -> dict[str, dict[str, Any]]:
    """Run what is missing, print the table, and return its rows by algorithm."""
    base_policy(make_task("review"), progress_bar=True)  # once, before the processes ask for it
    seeds = range(config.seeds)
    missing = [(name, seed) for seed in seeds for name in config.algorithms if not _known(config, name, seed)]
    with fresh_pool(config.processes) as pool:
        list(side_by_side(pool, "prepare", [partial(share, config, seed) for seed in seeds]))
        list(side_by_side(pool, "train", [partial(run_one, config, *run) for run in missing]))
    rows = {
        name: _row([json.loads(_result(config, name, seed).read_text(encoding="utf-8")) for seed in seeds]) for name in config.algorithms
    }
    _show(config, rows)
    return rows


def share(config: Review, seed: int) -> None:
    """Prepare what the runs of a seed share: comparisons, reward model, and the base policy's own texts."""
    torch.set_num_threads(1)
    folder = config.out / f"seed-{seed}"
    prepare(Demo(out=folder, seed=seed), RunFolder(folder), make_task("review"), base_policy(make_task("review")))
    if not (folder / "base.json").is_file():
        task = make_task("review", split="test", prompt_order="sequential")
        write_json(folder / "base.json", _gold(make_policy(task, base_policy(task)), task, config.texts, 1000 + seed)[0].tolist())


def run_one(config: Review, name: str, seed: int) -> None:
    """Train once, judge, and write `result.json`."""
    torch.set_num_threads(1)
    shared, run = config.out / f"seed-{seed}", RunFolder(config.out / f"seed-{seed}" / name)
    task, test = make_task("review"), make_task("review", split="test", prompt_order="sequential")
    base = base_policy(task)
    reward = {"name": "preference", "path": str(shared / "reward")}
    began = perf_counter()
    curve: list[tuple[float, float]] = []
    if name == "best-of-8":
        policy = make_policy(task, base)
        prompts = [test.prompts[i].text for i in range(config.texts)]
        best = best_of_n(policy, task.tokenizer, prompts, 8, reward, task.max_new_tokens, seed=seed)
        assert test.gold is not None
        gold, kl = test.gold(prompts, [b.response for b in best]), kl_bound(8)
        seconds = perf_counter() - began
    else:
        policy, curve, watched = _trained(config, name, seed, task, base, reward, shared, run)
        seconds = perf_counter() - began - watched
        gold, kl = _gold(policy, test, config.texts, 2000 + seed, base)
    theirs = np.array(json.loads((shared / "base.json").read_text(encoding="utf-8")))
    outcome = {"tokens": config.tokens, "gold": gold.tolist(), "base": theirs.tolist(), "kl": kl, "seconds": seconds, "curve": curve}
    write_json(_result(config, name, seed), outcome)


def _trained(
    config: Review, name: str, seed: int, task: TextTask, base: Path, reward: Any, shared: Path, run: RunFolder
) -> tuple[TransformerPolicy, list[tuple[float, float]], float]:
    """Return the policy, its learning curve (share of the training, gold score), and the seconds spent on watching it."""
    if name == "random":
        return make_policy(task, {"class": "agents.policies.uniform:Uniform", "vocab_size": task.tokenizer.vocab_size}), [], 0.0
    if name in ALGORITHMS:
        training = PolicyTraining(total_tokens=config.tokens, seed=seed)
        grouped = dataclasses.replace(task, group_size=ALGORITHMS[name].group_size)
        env = TextGenerationVecEnv(training.n_episodes, task=grouped, reward=reward)
        train_policy(run, name, str(base), env, training, {"reward": shared / "reward"}, algo=name)
        rows = np.atleast_1d(np.genfromtxt(run.path / name / "curve.csv", delimiter=",", names=True))
        agent = ALGORITHMS[name].made.load(run.path / name / "policy.zip")
        return agent.policy, list(zip((rows["tokens"] / rows["tokens"][-1]).tolist(), rows["gold"].tolist(), strict=True)), 0.0
    watcher = _Watcher(make_policy(task, base), STEPS[name])
    if name == "expert-iteration":
        agent = ExpertIteration(task, str(base), reward, learning_rate=RATES[name], seed=seed)
        for number in range(STEPS[name]):
            agent.learn(1)
            watcher(agent.policy.lm, number + 1)
        return agent.policy, watcher.curve, watcher.seconds
    pairs: Any = read_preferences(shared / "preferences.jsonl")
    trainer = supervised(name, str(base), task, RATES[name], seed)
    texts = preferred_texts(pairs) if name == "sft" else thumbs_of(pairs) if name == "kto" else pairs
    trainer.learn(texts, STEPS[name], callback=lambda number: watcher(trainer.lm, number))
    watcher.take(trainer.lm)
    return watcher.policy, watcher.curve, watcher.seconds


class _Watcher:
    """Has a model write a few texts at regular intervals while it is trained."""

    def __init__(self, policy: TransformerPolicy, steps: int) -> None:
        self.policy, self.steps = policy, steps
        self.every = max(1, steps // _POINTS)
        self.task = make_task("review", split="validation", prompt_order="sequential")
        self.curve: list[tuple[float, float]] = []
        self.seconds = 0.0

    def __call__(self, lm: torch.nn.Module, number: int) -> None:
        if number % self.every == 0:
            began = perf_counter()
            self.take(lm)
            self.curve.append((number / self.steps, float(_gold(self.policy, self.task, 128, number)[0].mean())))
            self.seconds += perf_counter() - began

    def take(self, lm: torch.nn.Module) -> None:
        self.policy.lm.load_state_dict(lm.state_dict())
        self.policy.drop_caches()


def _gold(policy: TransformerPolicy, task: TextTask, number: int, seed: int, base: Path | None = None) -> tuple[np.ndarray, float]:
    """Return the gold scores of texts that the policy writes, and its KL to the base policy."""
    reference = None if base is None else frozen(load_lm(base))
    texts = write_texts(policy, task, number, reward=NoReward(), reference=reference, seed=seed)
    assert task.gold is not None
    return task.gold(texts.prompts, texts.responses), texts.kl_per_sequence


def _result(config: Review, name: str, seed: int) -> Path:
    return config.out / f"seed-{seed}" / name / "result.json"


def _known(config: Review, name: str, seed: int) -> bool:
    """Return whether this run is done with the tokens and texts of the configuration."""
    path = _result(config, name, seed)
    if not path.is_file():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    return (result["tokens"], len(result["gold"])) == (config.tokens, config.texts)


def _row(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the seeds of one algorithm."""
    gold, base = (np.concatenate([r[key] for r in results]) for key in ("gold", "base"))
    by_seed = [win_rate(np.array(r["gold"]), np.array(r["base"])) for r in results]
    return {
        "gold": float(gold.mean()), "base": float(base.mean()), "wins": mean_interval(np.array([won.rate for won in by_seed])),
        "by_seed": by_seed, "gains": np.array([np.mean(r["gold"]) - np.mean(r["base"]) for r in results]),
        "kl": float(np.mean([r["kl"] for r in results])), "seconds": max(r["seconds"] for r in results),
        "curves": [r["curve"] for r in results],
    }  # fmt: skip


def draw(rows: dict[str, dict[str, Any]]) -> Figure:
    """Draw the learning curves of all algorithms that have one."""
    return small_multiples({name: row["curves"] for name, row in rows.items() if row["curves"][0]}, next(iter(rows.values()))["base"])


def _show(config: Review, rows: dict[str, dict[str, Any]]) -> None:
    head = ["", "wins against base", "by seed", "gold score", "gained over the base", "KL, nats", "seconds, at most"]
    base, other = next(iter(rows.values()))["base"], config.against
    lines = [["base", "", "", f"{base:.3f}", "", "0", "0"]]
    for name, row in rows.items():
        seeds = " ".join(f"{w.rate:.2f}" for w in row["by_seed"])
        kl = ("at most " if name == "best-of-8" else "") + f"{row['kl']:.1f}"
        wins = "{:.3f} [{:.3f}, {:.3f}]".format(*row["wins"])
        lines.append([name, wins, seeds, f"{row['gold']:.3f}", _interval(row["gains"]), kl, f"{row['seconds']:.0f}"])
    if other is not None:
        head.append(f"more than {other}")
        lines = [[*line, _interval(rows[line[0]]["gains"] - rows[other]["gains"]) if line[0] in rows else ""] for line in lines]
    table = markdown_table(head, lines)
    Console(width=140).print(table)
    if config.figure is not None:
        save(draw(rows), config.figure)
    if config.markdown is not None:
        title = f"{config.tokens:,} tokens, {config.seeds} seeds, {config.texts} texts of each policy and seed."
        picture = "" if config.figure is None else f"\n![Learning curves]({config.figure.name})\n"
        write_text(config.markdown, f"# All algorithms on film reviews\n\n{__doc__}\n{title}\n\n{table}\n{picture}")


def _interval(values: np.ndarray) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*mean_interval(values))


if __name__ == "__main__":
    main(tyro.cli(Review))
