"""The whole loop on one machine: pretrain, sample, compare, fit the reward, train, judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rewards import Preference, PreferenceRewardModel, fit_preference_model, read_preferences, write_preferences
from rewards.fitting.reward_evaluation import judge
from rewards.metrics.diversity import distinct_n
from rewards.utils.devices import get_device
from rewards.utils.intervals import win_rate
from textrl_env import Episode, FileTokenizer, TextTask, make_task
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import NoReward
from textrl_env.tasks.review.annotator import SimulatedAnnotator
from textrl_env.utils.files import plain, write_json, write_jsonl

from ..algorithms.ppo import TextPPO
from ..evaluation.policy_texts import WrittenTexts, make_policy, write_texts
from ..models.loading import frozen, load_lm
from ..training.base_policies import base_policy
from ..training.policy_training import train_policy
from ..utils.device_flag import on_device
from ..utils.progress import bar
from ..utils.run_folder import RunFolder, versions
from ..utils.threads import cpu_kind
from .demo_report import print_results, write_report
from .flags import Demo

HELD_OUT_PAIRS = 500
_RESULTS = ("results.json", "texts.jsonl", "report.html", "frontier.png", "learning_curve.png")
_ANSWERS = ("preferences.jsonl", "held_out.jsonl")
_MADE = (*_ANSWERS, "reward", *_RESULTS)


@on_device
def run_demo(config: Demo) -> None:
    """Run every stage that is not yet done, print the results, and write the report."""
    config.check()
    console = Console()
    torch.set_num_threads(1)  # of more, sums are rounded in another order: the figures would depend on the machine's load
    run = RunFolder(config.out)
    with run.begin("demo", config.overwrite, _MADE):
        run.config = config
        _run(config, run, console)


def _run(config: Demo, run: RunFolder, console: Console) -> None:
    console.print(f"[bold]textrl demo[/bold]  folder {run.path}")
    task = make_task("review")
    began = perf_counter()
    base = base_policy(task, progress_bar=True)
    pretrain = perf_counter() - began
    shared = prepare(config, run, task, base)
    reward = PreferenceRewardModel.load(run.path / "reward")
    env = TextGenerationVecEnv(config.n_episodes, task=task, reward=reward)
    depends_on = {**shared, "reward": str(run.path / "reward")}
    train_policy(run, config.variant, str(base), env, config, depends_on, outdated=_RESULTS)
    _judge(run, config, base, reward, {"pretrain": pretrain})
    report = write_report(run.path)
    print_results(run.path, console)
    console.print(f"\nReport: [bold]{report}[/bold]")
    where = f"a processor with {cpu_kind()}" if get_device().type == "cpu" else f"a device of this kind ({get_device()})"
    console.print(f"The same command gives the same figures with the same versions of packages on {where}.")
    if config.variant == "kl" and not (run.path / "no-kl").is_dir():
        console.print("What the KL term is for: run `textrl demo --beta 0` next.")


def prepare(config: Demo, run: RunFolder, task: TextTask, base: Path) -> dict[str, Any]:
    """Have pairs of texts written and compared, fit the reward model, and return the data that these stages depend on."""
    shared = {"base": base, "pairs": config.pairs, "seed": config.seed}
    with run.stage("compare", shared, makes=_ANSWERS) as stage:
        if stage.needed:
            stage.facts = _compare(run, config, base)
    answers = [run.path / name for name in _ANSWERS]
    with run.stage("reward", {**shared, "answers": answers}, makes=["reward"]) as stage:
        if stage.needed:
            stage.facts = _fit_reward(run, config, task, base)
    return shared


def _compare(run: RunFolder, config: Demo, base: Path) -> dict[str, float]:
    """Have the base policy write pairs of texts, and the annotator choose; return the facts of the stage."""
    began = perf_counter()
    annotator = SimulatedAnnotator(np.random.default_rng([config.seed, 1]))
    best_accuracy = 0.0
    for split, file, number in (("train", "preferences.jsonl", config.pairs), ("validation", "held_out.jsonl", HELD_OUT_PAIRS)):
        task = make_task("review", split=split, prompt_order="sequential")
        policy = make_policy(task, base)
        seeds = {f"write {split} texts {'ab'[i]}": config.seed * 10 + i for i in range(2)}
        a, b = (write_texts(policy, task, number, NoReward(), seed=seed, progress_bar=True, title=title) for title, seed in seeds.items())
        choices = annotator.compare(a.prompts, a.responses, b.responses)
        pairs = [
            Preference(p, *((x, y) if c == 0 else (y, x))) for p, x, y, c in zip(a.prompts, a.responses, b.responses, choices, strict=True)
        ]
        write_preferences(run.path / file, pairs)
        best_accuracy = annotator.best_accuracy(a.prompts, a.responses, b.responses)  # that of the held-out pairs is kept
    return {"best_accuracy": best_accuracy, "seconds": perf_counter() - began}


def _fit_reward(run: RunFolder, config: Demo, task: TextTask, base: Path) -> dict[str, float]:
    """Fit the reward model on the choices, and give it mean 0 and variance 1 on the base policy's texts; return the facts of the stage."""
    began = perf_counter()
    pairs, held_out = (read_preferences(run.path / name) for name in ("preferences.jsonl", "held_out.jsonl"))
    assert isinstance(task.tokenizer, FileTokenizer)
    with bar("fit the reward model", 0) as shown:
        model, report = fit_preference_model(
            pairs, tokenizer=task.tokenizer, trunk=base, max_tokens=64, epochs=2, seed=config.seed, progress=shown.follow
        )
    model.normalise([Episode.from_text(p.prompt, text) for p in held_out for text in (p.chosen, p.rejected)])
    model.save(run.path / "reward")
    seconds = perf_counter() - began
    return {"seconds": seconds, "train_accuracy": report.train_accuracy, "held_out_accuracy": judge(model, held_out).accuracy().rate}


def _judge(run: RunFolder, config: Demo, base: Path, reward: PreferenceRewardModel, seconds: dict[str, float]) -> None:
    """Have every policy of the run write on the test openings, and compare them by learned and gold score."""
    task = make_task("review", split="test", prompt_order="sequential")
    reference = frozen(load_lm(base))
    variants = [name for name in ("kl", "no-kl", config.variant) if run.facts(name)]  # those that are finished
    policies = {"base": make_policy(task, base)}
    policies |= {name: TextPPO.load(run.path / name / "policy.zip").policy for name in dict.fromkeys(variants)}
    written: dict[str, WrittenTexts] = {}
    gold: dict[str, np.ndarray] = {}
    for number, (name, policy) in enumerate(policies.items()):
        seed = 1000 + number + 10 * config.seed
        written[name] = write_texts(policy, task, config.texts, reward, reference, seed=seed, progress_bar=True, title=f"judge {name}")
        assert task.gold is not None
        gold[name] = task.gold(written[name].prompts, written[name].responses)
    results = {
        "config": plain({k: v for k, v in dataclasses.asdict(config).items() if k != "overwrite"}),
        "reward_model": {
            "pairs": config.pairs, "held_out_pairs": HELD_OUT_PAIRS, "best_accuracy": run.facts("compare")["best_accuracy"],
            **{k: v for k, v in run.facts("reward").items() if k.endswith("accuracy")},
        },
        "base": _measures(written["base"], gold["base"]),
        "variants": {name: _variant(run, name, written[name], gold) for name in policies if name != "base"},
        "seconds": {**seconds, "compare": run.facts("compare")["seconds"], "reward": run.facts("reward")["seconds"]},
        "versions": {**versions(), "processor": cpu_kind(), "device": str(get_device())},
    }  # fmt: skip
    write_json(run.path / "results.json", results)
    rows = []
    for i, prompt in enumerate(written["base"].prompts):
        texts = {n: {"response": t.responses[i], "learned": float(t.scores[i]), "gold": float(gold[n][i])} for n, t in written.items()}
        rows.append({"prompt": prompt, **texts})
    write_jsonl(run.path / "texts.jsonl", rows)


def _measures(texts: WrittenTexts, gold: np.ndarray) -> dict[str, float]:
    return {
        "learned": float(texts.scores.mean()),
        "gold": float(gold.mean()),
        "kl_per_sequence": texts.kl_per_sequence,
        "distinct_2": distinct_n(texts.responses, 2),
        "length": float(texts.lengths.mean()),
        "finished_by_eos": float(np.mean([reason == "eos" for reason in texts.finish_reasons])),
        "tokens_per_second": texts.tokens_per_second,
    }


def _variant(run: RunFolder, name: str, texts: WrittenTexts, gold: dict[str, np.ndarray]) -> dict[str, Any]:
    titles = {"kl": "with KL shaping", "no-kl": "without KL shaping"}
    curve = (run.path / name / "curve.csv").read_text(encoding="utf-8").splitlines()
    last_beta = float(curve[-1].split(",")[curve[0].split(",").index("beta")])
    return {
        "title": titles.get(name, name),
        "beta": f"adaptive, {last_beta:.3f} at the end" if name == "kl" else f"fixed, {last_beta:g}",
        **_measures(texts, gold[name]),
        "win_rate": dataclasses.asdict(win_rate(gold[name], gold["base"], texts.prompts)),
        "seconds": run.facts(name)["seconds"],
    }
