"""`textrl train`: one policy, one task, one reward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from rewards import Preference
from rewards.preferences.preference_files import read_preferences
from textrl_env import TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.reward_model import as_reward_model

from ..algorithms.registry import ALGORITHMS, on_ranks
from ..algorithms.sft import SFT
from ..distributed.process_group import ranks
from ..models.mixed_precision import precision_of
from ..training.base_policies import base_policy
from ..training.default_settings import default_settings
from ..training.offline_training import learn_offline, preferred_texts
from ..training.policy_training import train_policy
from ..training.reward_hacking_callback import RewardHackingCallback
from ..training.run_plan import DryRun
from ..training.settings import OFFLINE, OfflineTraining, PolicyTraining, check_penalty
from ..training.text_corpus import task_of
from ..utils.run_folder import RunFolder, folder_beside
from ..utils.threads import choose_threads
from .arguments import columns_of, reward_of
from .print_plan import tell_plan
from .train_flags import Train, flags, settings_of

_LOOKED_AT = 64  # comparisons by which a base policy shows whether it knows such texts


def run_train(config: Train) -> None:
    """Train, and leave the resolved configuration, the model and the metrics in the run folder.

    Raises:
        ValueError: A setting is out of range, is missing, or is none of the algorithm's.
    """
    together = ranks()
    console = Console(quiet=not together.is_main)
    if together.size > 1:
        _check_ranks(config, console, together.size)
    _check_settings(config)
    reward = reward_of(config.reward)
    held_out = None if config.held_out is None else reward_of(config.held_out, "--held-out")
    pairs = None if config.preferences is None else read_preferences(config.preferences, columns_of(config.columns))
    choose_threads()
    if config.dry_run:
        _dry_run(config, pairs, (reward, held_out), console)
        return
    run = RunFolder(_folder(config))
    with run.begin(f"train --algo {config.algo}", config.overwrite) if together.is_main else nullcontext():
        _train(dataclasses.replace(config, out=run.path), run, pairs, (reward, held_out), console)


def _dry_run(config: Train, pairs: Sequence[Preference] | None, rewards: tuple[Any, Any], console: Console) -> None:
    """Go as far as the plan, in a folder that is thrown away."""
    with TemporaryDirectory() as folder, suppress(DryRun):
        _train(config, RunFolder(folder), pairs, rewards, console)
    out = _folder(config)
    there = f"; {out} holds a run, which would go on (--overwrite: start anew)" if (out / "stages.json").is_file() else ""
    console.print(f"--dry-run: nothing was trained or written{there}", highlight=False, soft_wrap=True)


def _folder(config: Train) -> Path:
    if config.out is not None:
        return config.out
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in config.goes_on}
    return folder_beside(Path("runs/train"), {name: value for name, value in given.items() if value != getattr(Train, name)})


def _train(config: Train, run: RunFolder, pairs: Sequence[Preference] | None, rewards: tuple[Any, Any], console: Console) -> None:
    together, (reward, held_out) = ranks(), rewards
    with together.main_first():
        task = task_of(config.task, config.corpus, run.path)
    if config.min_new_tokens > task.max_new_tokens:
        raise ValueError(f"--min-new-tokens {config.min_new_tokens}: a text of this task has at most {task.max_new_tokens} tokens")
    defaults = default_settings(config.algo, task.recipe if config.algo == "sft" and pairs is None else None)
    settings = {name: default if getattr(config, name) is None else getattr(config, name) for name, default in defaults.items()}
    training = OfflineTraining(**settings) if config.algo in OFFLINE else PolicyTraining(**settings)
    run.config = dataclasses.replace(config, **settings)
    if isinstance(training, OfflineTraining):
        _offline(config, training, run, task, pairs, reward, console)
        console.print(f"model: {run.path / config.algo / 'model'}")
        return
    grouped = dataclasses.replace(task, group_size=ALGORITHMS[config.algo].group_size)
    env = TextGenerationVecEnv(training.n_episodes, task=grouped, reward=reward)
    watch = RewardHackingCallback(run.path / config.algo, held_out if together.is_main else None, config.stop_at_alarm)
    base, before = _first_policy(config, task, console), tell_plan(console, config.dry_run)
    depends_on = {**_data(config, reward), "held_out": held_out, "stop_at_alarm": config.stop_at_alarm}
    train_policy(run, config.algo, base, env, training, depends_on, _sampling_rules(config, task), config.algo, watch, before=before)
    for name, message in watch.alarms.items():
        console.print(f"alarm, {name}: {message}", style="bold red", highlight=False, markup=False)
    console.print(f"policy: {run.path / config.algo / 'policy.zip'}\ncurve:  {run.path / config.algo / 'curve.csv'}")


def _data(config: Train, reward: Any) -> dict[str, Any]:
    return {"task": config.task, "corpus": config.corpus, "reward": reward, "preferences": config.preferences}


def _check_ranks(config: Train, console: Console, size: int) -> None:
    if config.algo in OFFLINE:
        raise ValueError(f"--algo {config.algo} trains in one process: start it as `textrl train`, without torchrun")
    made = on_ranks(config.algo)
    console.print(f"{size} processes train one policy")
    if made is not ALGORITHMS[config.algo]:
        console.print(f"--algo {config.algo}: {made.name}(estimator='gae') with the same settings, for it knows of other processes")


def _check_settings(config: Train) -> None:
    """Refuse what the algorithm would ignore, and ask for what it needs, before any work begins."""
    precision_of(config.precision)
    if unused := config.unused():
        its = flags(sorted(settings_of(config.algo)))
        raise ValueError(f"leave out {flags(unused)}, which --algo {config.algo} does not use; its settings are {its}")
    if config.corpus and config.task != Train.task:
        raise ValueError(f"--corpus and --task {config.task}: the files are learned instead of a task; leave one of them out")
    check_penalty(config.beta, config.kl_target)
    if config.algo in ("dpo", "ipo") and config.preferences is None:
        raise ValueError(f"--algo {config.algo} learns from preferences: pass --preferences FILE")
    if config.columns is not None and config.preferences is None:
        raise ValueError(f"--columns {config.columns} names the columns of --preferences, which is not given")


def _sampling_rules(config: Train, task: TextTask) -> dict[str, Any]:
    names = ["temperature", "top_k", "top_p", "min_new_tokens", "precision", "micro_batch_size"]
    ends = task.eos_token_ids
    return {**{name: getattr(config, name) for name in names}, "eos_token_id": ends[0] if len(ends) == 1 else list(ends)}


def _offline(
    config: Train,
    training: OfflineTraining,
    run: RunFolder,
    task: TextTask,
    pairs: Sequence[Preference] | None,
    reward: Any,
    console: Console,
) -> None:
    data: Any = pairs
    model: Any = config.model
    if config.algo == "expert-iteration":
        data = as_reward_model(reward)
    elif config.algo == "sft" and pairs is not None:
        data = preferred_texts(pairs)
    elif config.algo == "sft" and task.recipe is not None:  # as a base policy is made
        data, model = task.recipe.corpus(), dict(task.recipe.model) if model is None else model
    elif config.algo == "sft":
        raise ValueError(f"task {config.task!r} has no corpus to learn from: pass --corpus FILE... or --preferences FILE")
    if isinstance(model, dict):
        console.print(f"starts from fresh weights of a {model['model_type']} model", highlight=False)
    else:
        model = _first_policy(config, task, console)
    if pairs is not None and config.model is None:
        _tell_strange_texts(model, task, pairs, console)
    whole = config.algo == "sft" and pairs is None  # a corpus
    before = tell_plan(console, config.dry_run)
    learn_offline(config.algo, run, config.algo, model, task, data, training, _data(config, reward), whole, before)


def _first_policy(config: Train, task: TextTask, console: Console) -> str:
    """Say which model training starts from, and return its folder or hub id."""
    if config.model is not None:
        console.print(f"starts from {config.model}", highlight=False, soft_wrap=True)
        return config.model
    of = "the text files" if config.corpus else f"task {config.task!r}"
    console.print(f"starts from the base policy of {of}, as there is no --model", highlight=False, soft_wrap=True)
    return str(base_policy(task, progress_bar=ranks().is_main))


def _tell_strange_texts(model: str, task: TextTask, pairs: Sequence[Preference], console: Console) -> None:
    """Say so where a base policy predicts the preferred texts no better than chance."""
    knows = SFT(model, task.tokenizer, train_on_prompts=False, max_new_tokens=task.max_new_tokens)
    nats, chance = knows.evaluate([(pair.prompt, pair.chosen) for pair in pairs[:_LOOKED_AT]]), math.log(task.tokenizer.vocab_size)
    if nats > chance:
        console.print(
            f"the base policy does not know such texts: it predicts them at {nats:.1f} nats a token, and guessing among its tokens is "
            f"{chance:.1f}; pass --model of one that does, or --corpus with texts like them",
            style="bold red", highlight=False, soft_wrap=True,
        )  # fmt: skip
