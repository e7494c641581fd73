"""`textrl train`: one policy, one task, one reward."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from rewards.preferences.preference_files import read_preferences
from textrl_env import TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..algorithms.registry import ALGORITHMS, on_ranks
from ..distributed.process_group import ranks
from ..models.mixed_precision import Precision
from ..training.base_policies import base_policy
from ..training.offline_training import OFFLINE, learn_offline
from ..training.policy_training import PolicyTraining, train_policy
from ..training.reward_hacking_callback import RewardHackingCallback
from ..utils.run_folder import RunFolder, fingerprint, write_yaml
from ..utils.threads import choose_threads
from .arguments import reward_of, task_of

NAMES = (*ALGORITHMS, *OFFLINE)
if TYPE_CHECKING:
    AlgorithmName = str
else:
    AlgorithmName = Literal[NAMES]  # tyro refuses all others


@dataclass(frozen=True)
class Train(PolicyTraining):
    """Train a policy on a task or on the sentences of text files.

    Attributes:
        algo: `sft` trains a model on the task's corpus, or on the preferred texts of `preferences`; `dpo` and `ipo` on `preferences`;
            `expert-iteration` on the policy's own best texts; all others play the environment.
        task: Name of a task.
        corpus: Text files, one sentence a line, instead of a task: a tokenizer and a base model are trained on them.
        model: Folder or hub id of the first policy, whose tokenizer must be the task's; by default the task's base
            policy, pretrained at first use and cached.
        reward: Name of a reward model, the folder of a saved preference reward model, or a JSON object with `name` and
            its arguments.
        held_out: Another reward model, which is not optimised: an alarm tells when it falls while the reward rises.
        stop_at_alarm: End the training at such an alarm.
        temperature: Of sampling.
        top_k: Sample from the k likeliest tokens; 0 for all.
        top_p: Sample from the likeliest tokens that have this probability together.
        min_new_tokens: No end of text before this many tokens.
        precision: `bfloat16` or `float16` compute the trunk in mixed precision.
        micro_batch_size: Texts that go through the model at once in an update, for less memory; 0: the whole minibatch.
        preferences: JSON Lines of prompt, chosen and rejected, for `sft`, `dpo` and `ipo`.
        steps: Optimizer steps of `sft`, `dpo` and `ipo`, iterations of `expert-iteration`; by default what suits the task and small models.
        out: Folder of the run; running again goes on where it stopped.
    """

    algo: AlgorithmName = "ppo"
    task: str = "review"
    corpus: tuple[Path, ...] = ()
    model: str | None = None
    reward: str = "vader"
    held_out: str | None = None
    stop_at_alarm: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    precision: Precision = "float32"
    micro_batch_size: int = 0
    preferences: Path | None = None
    steps: int | None = None
    out: Path = Path("runs/train")


def run_train(config: Train) -> None:
    """Train, and leave the resolved configuration, the model and the metrics in the run folder."""
    together = ranks()
    console = Console(quiet=not together.is_main)
    if together.size > 1:
        _check_ranks(config, console, together.size)
    choose_threads()
    run = RunFolder(config.out)
    if together.is_main:
        write_yaml(run.path / "config.yaml", dataclasses.asdict(config))
    with together.main_first():
        task = task_of(config.task, config.corpus, run.path)
    if config.algo in OFFLINE:
        _offline(config, run, task)
        console.print(f"model: {run.path / config.algo / 'model'}")
        return
    base = config.model or str(base_policy(task, progress_bar=together.is_main))
    grouped = dataclasses.replace(task, group_size=ALGORITHMS[config.algo].group_size)
    env = TextGenerationVecEnv(config.n_episodes, task=grouped, reward=reward_of(config.reward))
    held_out = None if config.held_out is None or not together.is_main else reward_of(config.held_out)
    watch = RewardHackingCallback(run.path / config.algo, held_out, config.stop_at_alarm)
    train_policy(run, config.algo, base, env, config, [base, config.reward], _policy_settings(config, task), config.algo, watch)
    for name, message in watch.alarms.items():
        console.print(f"alarm, {name}: {message}", style="bold red", highlight=False, markup=False)
    console.print(f"policy: {run.path / config.algo / 'policy.zip'}\ncurve:  {run.path / config.algo / 'curve.csv'}")


def _check_ranks(config: Train, console: Console, size: int) -> None:
    if config.algo in OFFLINE:
        raise ValueError(f"--algo {config.algo} trains in one process: start it as `textrl train`, without torchrun")
    made = on_ranks(config.algo)
    console.print(f"{size} processes train one policy")
    if made is not ALGORITHMS[config.algo]:
        console.print(f"--algo {config.algo}: {made.name}(estimator='gae') with the same settings, for it knows of other processes")


def _policy_settings(config: Train, task: TextTask) -> dict[str, Any]:
    names = ["temperature", "top_k", "top_p", "min_new_tokens"]
    # Left out at their defaults: runs that began before there were such flags go on
    names += [name for name in ("precision", "micro_batch_size") if getattr(config, name) != getattr(Train, name)]
    return {**{name: getattr(config, name) for name in names}, "eos_token_id": task.tokenizer.eos_token_id}


def _offline(config: Train, run: RunFolder, task: TextTask) -> None:
    pairs = None if config.preferences is None else read_preferences(config.preferences)
    if config.algo in ("dpo", "ipo") and pairs is None:
        raise ValueError(f"--algo {config.algo} learns from preferences: pass --preferences FILE")
    data: Any
    model: Any = config.model
    steps, rate = config.steps, None if config.learning_rate == PolicyTraining.learning_rate else config.learning_rate
    if config.algo == "expert-iteration":
        data = reward_of(config.reward)
    elif config.algo != "sft":
        data = pairs
    elif pairs is not None:
        data = [(pair.prompt, pair.chosen) for pair in pairs]
    elif task.recipe is not None:  # as a base policy is made
        data, model = task.recipe.corpus(), config.model or dict(task.recipe.model)
        steps, rate = steps or task.recipe.steps, rate or task.recipe.learning_rate
    else:
        raise ValueError(f"task {config.task!r} has no corpus to learn from: pass --corpus FILE... or --preferences FILE")
    model = model or str(base_policy(task, progress_bar=True))
    depends_on = [
        str(model),
        config.task,
        [str(path) for path in config.corpus],
        config.reward,
        pairs and fingerprint(list(map(str, pairs))),
    ]
    beta = 0.1 if config.beta is None else config.beta
    learn_offline(config.algo, run, config.algo, model, task, data, depends_on, steps, rate, beta, config.seed)
