"""What a text task is made of, and the table of tasks that ship with the package."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .tokenizer import Tokenizer

GoldScore = Callable[[Sequence[str], Sequence[str]], np.ndarray]

_TASKS: dict[str, str] = {"review": "textrl_env.tasks.review.task:review_task"}


@dataclass(frozen=True)
class Prompt:
    """One row of a task's data.

    Attributes:
        text: What the episode starts from.
        references: Texts that a reward may compare the response with.
        metadata: Further columns; they reach the reward model with the episode.
    """

    text: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseRecipe:
    """How the base policy of a task is pretrained.

    Attributes:
        corpus: Returns (prompt, response) pairs to learn from.
        model: Keyword arguments of the architecture's configuration, with `model_type` (plain data).
        steps: Optimizer steps.
        batch_size: Texts per step.
        learning_rate: Peak of the one-cycle schedule.
        seed: Seed of the initial weights and the order of the texts.
    """

    corpus: Callable[[], list[tuple[str, str]]]
    model: Mapping[str, Any]
    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class TextTask:
    """A text task: where episodes start, in which tokens, and how long they may get.

    Attributes:
        tokenizer: Text to ids and back.
        prompts: The rows that episodes start from; none may be empty.
        max_new_tokens: T, the length limit of a response; reaching it ends the episode, and the text is scored.
        max_prompt_tokens: P, the width of the prompt observation; None takes the longest prompt.
        prompt_order: `"random"` draws with replacement from the row's own generator; `"sequential"` walks through the
            rows and starts over at the end, as evaluation wants it.
        reward: The reward if the user names none.
        gold: The task's own judgement of (prompts, responses), one float each, if it has one.
        recipe: How the task's base policy is pretrained, if it has one.

    Raises:
        ValueError: No prompts, an empty one, one longer than `max_prompt_tokens`, or a limit below 1.
    """

    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    max_new_tokens: int
    max_prompt_tokens: int | None = None
    prompt_order: Literal["random", "sequential"] = "random"
    reward: Any = "length"
    gold: GoldScore | None = None
    recipe: BaseRecipe | None = None
    prompt_ids: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: a response needs room for at least 1 token")
        if self.prompt_order not in ("random", "sequential"):
            raise ValueError(f"prompt_order={self.prompt_order!r}: choose 'random' or 'sequential'")
        if not self.prompts:
            raise ValueError("a task needs at least one prompt; got none")
        tokens = self.tokenizer.encode_batch([p.text for p in self.prompts])
        for row, prompt in zip(tokens, self.prompts, strict=True):
            if not row:
                raise ValueError(f"prompt {prompt.text!r} has no tokens: a policy needs at least one to start from")
        width = max(map(len, tokens))
        if self.max_prompt_tokens is None:
            object.__setattr__(self, "max_prompt_tokens", width)
        elif width > self.max_prompt_tokens:
            longest = self.prompts[int(np.argmax([len(r) for r in tokens]))].text
            limit = f"max_prompt_tokens={self.max_prompt_tokens}"
            raise ValueError(f"prompt {longest[:80]!r} has {width} tokens, {limit}: raise it or shorten the prompt")
        ids = tuple(np.asarray(row, np.int64) for row in tokens)
        for array in ids:
            array.setflags(write=False)  # episodes hand these out; nobody may change the task through them
        object.__setattr__(self, "prompt_ids", ids)

    @property
    def prompt_width(self) -> int:
        """P, the width of the prompt observation."""
        assert self.max_prompt_tokens is not None
        return self.max_prompt_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTask:
        """Return itself: a task never changes, and gymnasium deep-copies the arguments of every `make`."""
        return self


def make_task(task: str | TextTask, *, split: str = "train", **overrides: Any) -> TextTask:
    """Return the task named `task`, or `task` itself, with `overrides` of its fields.

    Args:
        task: A name from the table, or a task.
        split: Which prompts of a named task: `"train"`, `"validation"` or `"test"`.
        **overrides: Fields of `TextTask` to replace; None leaves the task's own value.

    Raises:
        ValueError: The name is unknown.
        TypeError: `task` is neither.
    """
    if isinstance(task, str):
        if task not in _TASKS:
            raise ValueError(f"no task is called {task!r}; known: {', '.join(sorted(_TASKS))}")
        module, attribute = _TASKS[task].split(":")
        task = getattr(importlib.import_module(module), attribute)(split)
    if not isinstance(task, TextTask):
        raise TypeError(f"task={task!r} is a {type(task).__name__}: pass the name of a task or a TextTask")
    changed = {key: value for key, value in overrides.items() if value is not None}
    return replace(task, **changed) if changed else task
