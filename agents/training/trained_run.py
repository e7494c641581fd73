"""A finished run, opened to write or to measure texts with its policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from textrl_env import FileTokenizer, Prompt, TextTask, chat_template, make_task
from textrl_env.chat import ChatTemplate, render

from ..algorithms.registry import ALGORITHMS
from ..evaluation.policy_texts import make_policy
from ..models.loading import LMSource
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.reference_model import Reference
from .base_policies import base_policy
from .text_corpus import task_of

BEST = "best"  # subfolder of the best policy, where one was kept
_RULES = ("temperature", "top_k", "top_p", "min_p", "min_new_tokens", "banned_tokens", "no_repeat_ngram", "eos_token_id", "precision")


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
        named_reference: What the reference was loaded from; None: it is the first policy.
        settings: The run's own, see `config.yaml`.
    """

    name: str
    task: TextTask
    policy: TransformerPolicy
    reference: Reference | None
    reward: str
    first: str | None
    named_reference: LMSource | None
    settings: Mapping[str, Any]

    @property
    def renders(self) -> bool:
        """Whether its prompts are what users say, through a chat template."""
        return self.task.prompts[0].typed is not None

    @property
    def template(self) -> ChatTemplate:
        """The chat template of its tokenizer."""
        assert isinstance(self.task.tokenizer, FileTokenizer)
        return chat_template(self.task.tokenizer.files)

    def prompt(self, text: str) -> Prompt:
        """Return a text as a prompt of the task: through the chat template, as one message of a user, where its own went through it."""
        if not self.renders:
            return Prompt(text)
        rendered, typed = render(self.template, [{"role": "user", "content": text}])
        return Prompt(rendered, typed=typed)

    @property
    def writing(self) -> dict[str, Any]:
        """What of the task decides how a text goes on and ends, as `generate` takes it."""
        names = ["stop_strings", "stop_tokens", "min_new_tokens", "constraint"]
        names += ["max_prompt_tokens", "over_long"] if self.task.over_long != "reject" else []
        return {name: getattr(self.task, name) for name in names}

    @property
    def rules(self) -> dict[str, Any]:
        """Sampling rules of the policy, as `make_policy` takes them."""
        return {name: getattr(self.policy.settings, name) for name in _RULES}


def open_run(folder: Path, policy: str | None = None, device: str = "auto") -> TrainedRun:
    """Open a run folder.

    Args:
        folder: Of `textrl train` or `textrl demo`.
        policy: Subfolder of the policy; None takes the only one, the best where one was kept, or that with KL shaping.
        device: Where the policy goes, see `rewards.utils.devices.get_device`.

    Raises:
        FileNotFoundError: The folder holds no configuration or no finished policy.
        ValueError: There is no such policy, several and none is named, or the configuration is damaged.
    """
    settings = read_settings(folder)
    policies = sorted({path.parent.name for name in ("policy.zip", "model") for path in folder.glob(f"*/{name}")})
    if not policies:
        raise FileNotFoundError(f"{folder} holds no finished policy (*/policy.zip or */model): run textrl train or textrl demo first")
    name = policy or (policies[0] if len(policies) == 1 else BEST if BEST in policies else "kl")
    if name not in policies:
        raise ValueError(f"{folder} has no policy {name!r}: choose one of {', '.join(policies)} with --policy")
    task = task_of_run(folder, settings, "test")
    reward = settings["reward"] if "algo" in settings else str(folder / "reward")
    ordered = dataclasses.replace(task, prompt_order="sequential")
    fresh = settings.get("algo") == "sft" and not settings.get("preferences")  # a corpus is learned from nothing
    first = settings.get("model") or (None if task.recipe is None or fresh else str(base_policy(task)))
    if not (folder / name / "policy.zip").is_file():
        made = make_policy(task, folder / name / "model", device)
        return TrainedRun(name, ordered, made, first, reward, first, None, settings)
    algorithm = ALGORITHMS[settings.get("algo", "ppo")].made.load(folder / name / "policy.zip", device=device)
    if algorithm.policy.vocab_size != task.tokenizer.vocab_size:
        raise ValueError(
            f"the policy in {folder / name} writes {algorithm.policy.vocab_size} tokens, and the task of this run's config.yaml has "
            f"{task.tokenizer.vocab_size}: the folder holds runs on two tasks; train into a folder for each"
        )
    reference = algorithm.rollout_buffer.reference  # of adapters it is the model under them, which is no module of its own
    return TrainedRun(name, ordered, algorithm.policy, reference, reward, first, algorithm.reference_source, settings)


def task_of_run(folder: Path, settings: Mapping[str, Any], split: str) -> TextTask:
    """Return the task that a run was trained on, with the prompts of a split."""
    if "algo" not in settings:
        return make_task("review", split=split)
    return task_of(settings, folder, split)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run, from its `config.yaml`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.yaml: pass the folder of a textrl run")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        settings = " ".join(str(error).split())
    if not isinstance(settings, dict) or ("algo" in settings and not {"task", "reward"} <= settings.keys()):
        raise ValueError(f"{file} is empty or damaged ({settings}): the command that made the run, given again, writes it anew")
    return settings
