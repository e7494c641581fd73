"""The batched Stable-Baselines3 environment; SB3 accepts no gymnasium `VectorEnv`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ..reward_model import Begun, begin_scoring, can_begin
from .base import BatchMixin, refuse_options
from .scoring import scored
from .step_result import WrittenStep
from .transcript import transcript


class _StepAhead(NamedTuple):
    """A step, the last observations of the texts that it ended, by row, and their scores that are on their way."""

    written: WrittenStep
    last: dict[int, dict[str, np.ndarray]]
    begun: list[Begun]


class TextGenerationVecEnv(BatchMixin, VecEnv):
    """`num_envs` texts for Stable-Baselines3; arguments, spaces and rewards as in `TextGenerationEnv`.

    Every step advances all rows and scores all texts that end with one call of the reward model.  Wrap it in SB3's
    `VecMonitor` for episode statistics.

    `begin_rollout(n)` before `reset()` deals exactly n texts: a row that ends takes the next prompt while any are left
    and is idle afterwards (observation all -1, reward 0, never done, action ignored).
    """

    def _set_spaces(self, observation: spaces.Dict, action: spaces.Discrete) -> None:
        VecEnv.__init__(self, self.num_envs, observation, action)
        self._ahead: deque[_StepAhead] = deque()  # steps that were written and not waited for, oldest first

    def begin_rollout(self, num_episodes: int) -> None:
        """Deal exactly `num_episodes` texts from the next `reset()` on."""
        self.core.begin_rollout(num_episodes)

    def end_rollout(self) -> None:
        """Deal texts without end again, and give up the scores of steps that nobody waited for."""
        self.core.end_rollout()
        while self._ahead:  # newest first: those that wait must not take the place of those that are asked for
            for begun in reversed(self._ahead.pop().begun):
                begun.cancel()

    def reset(self) -> VecEnvObs:
        """Start a new text in every row, with the seeds given to `seed()` since the last reset.

        Raises:
            ValueError: `set_options` gave options: there are none.
        """
        refuse_options(next(filter(None, self._options), None))
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self.core.seed(row, seed)
        self.core.restart(range(self.num_envs))
        self.reset_infos = [self.core.start_info(row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self.core.observe()

    @property
    def can_write_ahead(self) -> bool:
        """Whether `write_ahead` saves time, and nothing that is shown would lag behind."""
        return can_begin(self.reward_model) and self.render_mode is None

    def write_ahead(self, actions: np.ndarray) -> tuple[VecEnvObs, np.ndarray]:
        """Append one token to every text, and begin to score those that end without waiting for it; for loops of our own.

        Each `step_wait`, one's own or a wrapper's, then returns what the oldest of these steps did, but for the observation, which is the
        latest.  `end_rollout` gives up the rest.

        Returns:
            The observation, and where texts ended, shape (B,), bool.

        Raises:
            RewardError: The reward model could not begin; the step is made, and `step_wait` asks for its scores.
        """
        written = self.core.write(actions)
        last = self._restart(written.rows.tolist())
        self._ahead.append(_StepAhead(written, last, []))
        self._ahead[-1].begun.extend(begin_scoring(written.reward_model, written.judged))
        return self.core.observe(), written.terminated

    @property
    def oldest_is_scored(self) -> bool:
        """Whether `step_wait` need not wait for scores of the oldest step that was written ahead; there is one."""
        return all(begun.done() for begun in self._ahead[0].begun)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions, shape (B,), for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Append one token to every text.

        `infos` of finished texts hold the final info, `terminal_observation`, and `text`, the `Episode` that any reward model can score.
        """
        if self._ahead:
            step = self._ahead[0]
            result, last = scored(self.task, step.written), step.last
            self._ahead.popleft()
        else:
            result, last = self._step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row, observation in last.items():
            ended = {"text": result.episodes[row], "terminal_observation": observation, "TimeLimit.truncated": False}
            infos[row] = {**result.infos[row], **ended}
        return self.core.observe(), result.rewards.astype(np.float32), result.terminated, infos

    def _restart(self, rows: list[int]) -> dict[int, dict[str, np.ndarray]]:
        last = super()._restart(rows)
        for row in rows:
            self.reset_infos[row] = self.core.start_info(row)
        return last

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute once per row asked for; all rows share it."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute for all rows; they share it, so `indices` must be None.

        Raises:
            ValueError: Only some rows were asked for.
        """
        if indices is not None:
            raise ValueError(f"the rows share {attr_name!r}: leave indices out to set it for all")
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Call a method once, and return its result once per row asked for; of `action_masks`, each row's own."""
        value = getattr(self, method_name)(*method_args, **method_kwargs)
        return [value[row] if method_name == "action_masks" else value for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for every row: there are no scalar environments to wrap."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return an image of each text with `render_mode="rgb_array"`, else no image for every row."""
        return [self._image(row) if self.render_mode == "rgb_array" else None for row in range(self.num_envs)]

    def render(self, mode: str | None = None) -> Any:
        """Return all texts so far, one a line (`"ansi"`), or one image of them (`"rgb_array"`), or print them (`"human"`)."""
        if self.render_mode == "rgb_array":
            return super().render(mode)
        texts = [self._text(row) for row in range(self.num_envs)]
        if (mode or self.render_mode) == "human":
            self._terminal.show(texts)
            return None
        return "\n".join(transcript(*text) for text in texts)
