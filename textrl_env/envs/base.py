"""What the three kinds of environment share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from ..reward_model import RewardModel
from ..task import TextTask
from ..tasks.registry import unchecked_task
from .core import PAD, TextCore
from .step_result import StepResult
from .token_space import TokenSpace
from .transcript import Terminal, Transcripts


class TextEnvMixin:
    """A core, its spaces, its action masks, and the reward model that can be swapped."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 10}
    core: TextCore
    log_probs: Any = None  # the agent's, of the tokens that the next step appends, (B,) or a number: images show them; used up by it

    def _make_core(
        self, num_rows: int, task: str | TextTask, reward: Any, split: str, render_mode: str | None, settings: dict[str, Any]
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: pass None or one of {', '.join(map(repr, self.metadata['render_modes']))}")
        self.core = TextCore(unchecked_task(task, split, settings), num_rows, reward)
        self.render_mode = render_mode
        self._transcripts = Transcripts(self.core) if render_mode == "rgb_array" else None
        self._terminal = Terminal()
        self._last: StepResult | None = None

    def _advance(self, actions: np.ndarray) -> StepResult:
        """Step the core, and keep what is shown of it."""
        result = self.core.step(actions) if self._transcripts is None else self._transcripts.step(actions, self.log_probs)
        self._last, self.log_probs = result, None
        return result

    def _text(self, row: int) -> tuple[str, str, str]:
        """Return prompt, response and outcome; the outcome is empty while the text goes on."""
        episode = self._last.episodes.get(row) if self._last is not None and not self.core.live[row] else None
        outcome = "" if episode is None or self._last is None else f"{episode.finish_reason}, score {self._last.scores[row]:.3f}"
        return *self.core.text(row), outcome

    def _image(self, row: int) -> np.ndarray:
        assert self._transcripts is not None
        return self._transcripts.image(row, self._text(row)[2])

    @property
    def task(self) -> TextTask:
        """The task that is played."""
        return self.core.task

    @property
    def reward_model(self) -> RewardModel:
        """The reward model; assign a name, a dict, an object or a function to swap it while the environment runs."""
        return self.core.reward_model

    @reward_model.setter
    def reward_model(self, reward: Any) -> None:
        self.core.reward_model = reward

    def random_state(self) -> dict[str, Any]:
        """Return, as plain data, what decides what comes next: the rows' generators, the prompt order, and the reward model's state.

        A reward model that changes while it scores has the methods `get_state()`, which returns plain data, and `set_state(state)`.
        """
        states = [None if g is None else g.bit_generator.state for g in self.core.generators]
        return {"generators": states, "prompts": self.core.prompt_sampler.state(), "reward": self._reward_state()}

    def _reward_state(self) -> Any:
        return self.reward_model.get_state() if hasattr(self.reward_model, "get_state") else None

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Deal the prompts that would have been dealt when `random_state` was called, from the next reset on.

        Raises:
            ValueError: The state is that of another number of rows, or of another task's prompts.
        """
        if len(state["generators"]) != self.core.num_rows:
            raise ValueError(f"the state is that of {len(state['generators'])} rows, the environment has {self.core.num_rows}")
        self.core.prompt_sampler.set_state(state["prompts"])
        if state.get("reward") is not None and hasattr(self.reward_model, "set_state"):
            self.reward_model.set_state(state["reward"])
        for row, generator in enumerate(state["generators"]):
            self.core.seed_from(row, generator)

    def update_priorities(self, prompt_ids: Any, priorities: Any) -> None:
        """Set the priorities of prompts, for tasks with `prompt_order="priority"`; see `PromptSampler`."""
        self.core.prompt_sampler.update_priorities(np.asarray(prompt_ids), np.asarray(priorities, float))


class BatchMixin(TextEnvMixin):
    """What the two batched environments share: their arguments, and a step after which texts that ended start anew."""

    num_envs: int

    def __init__(
        self,
        num_envs: int = 1,
        task: str | TextTask = "review",
        reward: Any = None,
        split: str = "train",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self._make_core(num_envs, task, reward, split, render_mode, settings)
        self.num_envs = num_envs
        self._set_spaces(*spaces_of(self.task))

    def _set_spaces(self, observation: spaces.Dict, action: spaces.Discrete) -> None:
        """Set the environment's spaces, given those of one text."""
        raise NotImplementedError

    def action_masks(self) -> np.ndarray:
        """Return which tokens are legal now, shape (B, V), bool; all of them in idle rows."""
        return self.core.action_masks()

    def _step(self, actions: np.ndarray) -> tuple[StepResult, dict[int, dict[str, np.ndarray]]]:
        """Append a token to every text, and start a new one in each row that ended; return what the step did, and `_restart`'s."""
        result = self._advance(actions)
        return result, self._restart(list(result.episodes))

    def _restart(self, rows: list[int]) -> dict[int, dict[str, np.ndarray]]:
        """Start a new text in each of these rows, and return the last observation of the one before, by row."""
        if not rows:
            return {}
        last = self.core.observe()  # (B, P), (B, T)
        self.core.restart(rows)
        return {row: {key: value[row] for key, value in last.items()} for row in rows}


def refuse_options(options: dict[str, Any] | None) -> None:
    """Insist that a reset is given no options.

    Raises:
        ValueError: It is given some.
    """
    if options:
        raise ValueError(f"options={options!r}: a reset takes none; prompts come from the task, in its prompt_order")


def spaces_of(task: TextTask) -> tuple[spaces.Dict, spaces.Discrete]:
    """Return the observation space of one text and its action space."""
    vocab_size = task.tokenizer.vocab_size
    parts: dict[str, spaces.Space[Any]] = {
        "prompt": spaces.Box(PAD, vocab_size - 1, (task.prompt_width,), np.int64),
        "response": spaces.Box(PAD, vocab_size - 1, (task.max_new_tokens,), np.int64),
    }
    if task.image_shape is not None:
        parts["image"] = spaces.Box(0, 255, task.image_shape, np.uint8)
    return spaces.Dict(parts), TokenSpace(task.tokenizer)
