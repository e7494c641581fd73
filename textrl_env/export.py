"""Tasks for the trainers of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .episode import Episode
from .prompts.prompt import Prompt
from .prompts.reward_needs import see_prompts
from .reward_model import as_reward_model, checked_scores
from .task import TextTask
from .tasks.registry import make_task

if TYPE_CHECKING:
    from datasets import Dataset

# Of a task, what the environment does and a trainer that only writes texts and scores them does not
_PLAYED = ("stop_tokens", "stop_strings", "ends", "min_new_tokens", "constraint", "reply", "missing_eos_penalty", "soft_max_tokens")
_DENSE = ("score_steps", "score_turns")


def trl(task: str | Mapping[str, Any] | TextTask, reward: Any = None) -> tuple[Dataset, list[Callable[..., list[float]]]]:
    """Return a task's prompts and its reward as TRL's `GRPOTrainer` takes them.

    The trainer writes and ends the texts itself: pass it the task's `max_new_tokens` as `max_completion_length`.  Texts are scored without
    their token ids, as finished ones.

    Args:
        task: Anything that `make_task` accepts.
        reward: Anything that `gym.make` accepts as `reward`; None takes the task's own.

    Returns:
        `train_dataset`, with the columns `prompt` (text) and `prompt_id` (the row among the task's prompts), and `reward_funcs`, one
        function.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: The task has turns, constraints, endings, penalties, pictures, weights of prompts, or a reward that also scores steps or
            turns, which TRL would leave out in silence.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ImportError("a dataset for TRL needs the package datasets: pip install 'textrl-env[datasets]'") from error
    task = make_task(task)
    usual = {field.name: field.default for field in fields(TextTask)}
    lost = [name for name in _PLAYED if getattr(task, name) not in (usual[name], [])]
    lost += [] if task.image_shape is None else ["pictures"]
    lost += [] if task.prompt_weights is None else ["prompt_weights"]
    model = as_reward_model(task.reward if reward is None else reward)
    lost += [f"a reward with {name}" for name in _DENSE if hasattr(model, name)]
    if lost:
        raise ValueError(f"the task has {', '.join(lost)}, which only our environment follows: TRL would train on another task")
    prompts = [task.start_of(index)[0] for index in range(len(task.prompts))]
    see_prompts(model, prompts)

    def score(completions: Sequence[str], prompt_id: Sequence[int], **columns: Any) -> list[float]:
        return checked_scores(model, [_episode(prompts[i], text) for i, text in zip(prompt_id, completions, strict=True)]).tolist()

    score.__name__ = reward if isinstance(reward, str) else "task_reward"  # TRL logs it by this name
    return Dataset.from_dict({"prompt": [prompt.text for prompt in prompts], "prompt_id": list(range(len(prompts)))}), [score]


def _episode(prompt: Prompt, completion: str) -> Episode:
    episode = Episode.from_text(prompt.text, completion, references=prompt.references, metadata=prompt.metadata)
    return replace(episode, typed=prompt.typed)
