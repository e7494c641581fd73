"""The table of tasks, and making a task by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from ..reward_model import check_reward
from ..task import TextTask
from ..utils.suggestions import did_you_mean
from .corpora import real_task
from .exact import TASKS
from .ladders import factories
from .prompt_file import prompts_task
from .reasoning import reasoning_task

EXACT_TASKS = tuple(TASKS)
SPLITS = ("train", "validation", "test")

# Name -> the factory of (*arguments, split) and those arguments.
_TABLE: dict[str, tuple[str, ...]] = {
    "review": ("textrl_env.tasks.review.task:review_task",),
    **{f"exact-{name.lower()}": ("textrl_env.tasks.exact:exact_task", name) for name in EXACT_TASKS},
    **factories(),
}
# Name -> the function of settings and split; other names are those of public corpora.
_WITH_SETTINGS: Mapping[str, Callable[..., TextTask]] = {"prompts": prompts_task, "reasoning": reasoning_task}


def make_task(task: str | Mapping[str, Any] | TextTask, *, split: str = "train", **overrides: Any) -> TextTask:
    """Return the task named `task`, or `task` itself, with `overrides` of its fields.

    Args:
        task: A name from the table; a file of prompts as `{"name": "prompts", "path": ..., "tokenizer": ...}`, see
            `textrl_env.tasks.prompt_file.prompts_task`; a public corpus as `{"name": "squad", "path": ..., "tokenizer": ...}`, see
            `textrl_env.tasks.corpora.real_task`; questions of reasoning-gym as `{"name": "reasoning", "dataset": ...}`, see
            `textrl_env.tasks.reasoning.reasoning_task`; or a task.
        split: Which prompts of a named task: `"train"`, `"validation"` or `"test"`.
        **overrides: Fields of `TextTask` to replace; None leaves the task's own value.

    Raises:
        ValueError: The name is unknown, there is no such split, the task's data names another one than `split`, or the prompts lack what
            the task's reward needs.
        TypeError: `task` is neither, or an override is no field of a task.
    """
    made = unchecked_task(task, split, overrides)
    check_reward(made.reward, made.prompts)
    return made


def unchecked_task(task: str | Mapping[str, Any] | TextTask, split: str, overrides: Mapping[str, Any]) -> TextTask:
    """Do what `make_task` does for those who check the reward themselves, which need not be the task's."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}{did_you_mean(str(split), SPLITS)}: choose one of {', '.join(SPLITS)}")
    if isinstance(task, TextTask) and split != "train":
        raise ValueError(f"split={split!r}: a TextTask has prompts of its own, and no splits; leave it out, or replace its prompts")
    if isinstance(task, str):
        task = _built(task, split)
    elif isinstance(task, Mapping):
        own = {"split": split, **task}
        if split not in ("train", own["split"]):
            raise ValueError(f"split={split!r}: the task itself says split={own['split']!r}; leave one of them out")
        task = _WITH_SETTINGS.get(str(own.get("name")), real_task)(**own)
    if not isinstance(task, TextTask):
        raise TypeError(f"task={task!r} is a {type(task).__name__}: pass the name of a task, a public corpus, or a TextTask")
    known = [f.name for f in fields(TextTask) if f.init]
    for key in overrides:
        if key not in known:
            # The words that Python itself uses: TorchRL's GymEnv looks for them when it probes for an Atari argument
            hint = f"{did_you_mean(key, known)}; a task has {', '.join(known)}"
            raise TypeError(f"make_task() got an unexpected keyword argument {key!r}{hint}")
    changed = {key: value for key, value in overrides.items() if value is not None}
    return replace(task, **changed) if changed else task


def _built(name: str, split: str) -> TextTask:
    if name not in _TABLE:
        raise ValueError(f"no task is called {name!r}{did_you_mean(name, _TABLE)}; known: {', '.join(sorted(_TABLE))}")
    path, *arguments = _TABLE[name]
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)(*arguments, split)
