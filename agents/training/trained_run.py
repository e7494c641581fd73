"""A finished run, opened to write or to measure texts with its policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from textrl_env import TextTask, make_task

from ..algorithms.registry import ALGORITHMS
from ..evaluation.policy_texts import make_policy
from ..policies.transformer_policy import TransformerPolicy
from .base_policies import base_policy
from .text_corpus import task_of


@dataclass(frozen=True)
class TrainedRun:
    """A run that left a policy.

    Attributes:
        name: The policy's subfolder.
        task: What it was trained on, with the prompts of the test split in order if the task has splits.
        policy: Who writes.
        reference: What KL is measured against; None: nothing.
        reward: What it was trained for: a name, the folder of a saved reward model, or a JSON object.
        first: The model it started from; None if there was none.
    """

    name: str
    task: TextTask
    policy: TransformerPolicy
    reference: nn.Module | str | None
    reward: str
    first: str | None


def open_run(folder: Path, policy: str | None = None) -> TrainedRun:
    """Open a run folder.

    Args:
        folder: Of `textrl train` or `textrl demo`.
        policy: Subfolder of the policy; None takes the only one, or that with KL shaping.

    Raises:
        FileNotFoundError: The folder holds no configuration or no finished policy.
        ValueError: There is no such policy, several and none is named, or the configuration is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} holds no config.yaml: pass the folder of a textrl run")
    policies = sorted({path.parent.name for name in ("policy.zip", "model") for path in folder.glob(f"*/{name}")})
    if not policies:
        raise FileNotFoundError(f"{folder} holds no finished policy (*/policy.zip or */model): run textrl train or textrl demo first")
    name = policy or (policies[0] if len(policies) == 1 else "kl")
    if name not in policies:
        raise ValueError(f"{folder} has no policy {name!r}: choose one of {', '.join(policies)} with --policy")
    settings = _settings(folder / "config.yaml")
    if "algo" in settings:
        task, reward = task_of(settings, folder, "test"), settings["reward"]
    else:
        task, reward = make_task("review", split="test"), str(folder / "reward")
    ordered = dataclasses.replace(task, prompt_order="sequential")
    first = settings.get("model") or (None if task.recipe is None or settings.get("algo") == "sft" else str(base_policy(task)))
    if not (folder / name / "policy.zip").is_file():
        return TrainedRun(name, ordered, make_policy(task, folder / name / "model"), first, reward, first)
    algorithm = ALGORITHMS[settings.get("algo", "ppo")].made.load(folder / name / "policy.zip", device="cpu")
    if algorithm.policy.vocab_size != task.tokenizer.vocab_size:
        raise ValueError(
            f"the policy in {folder / name} writes {algorithm.policy.vocab_size} tokens, and the task of this run's config.yaml has "
            f"{task.tokenizer.vocab_size}: the folder holds runs on two tasks; train into a folder for each"
        )
    return TrainedRun(name, ordered, algorithm.policy, algorithm.reference, reward, first)


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        settings = " ".join(str(error).split())
    if not isinstance(settings, dict) or ("algo" in settings and not {"task", "reward"} <= settings.keys()):
        raise ValueError(f"{file} is empty or damaged ({settings}): the command that made the run, given again, writes it anew")
    return settings
