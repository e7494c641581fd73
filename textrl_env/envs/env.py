"""The scalar Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ..task import TextTask
from .base import TextEnvMixin, refuse_options, spaces_of
from .transcript import Terminal, transcript


class TextGenerationEnv(TextEnvMixin, gym.Env[dict[str, np.ndarray], np.int64]):
    """Write a text, one token a step, and be scored at its end.

    ## Description
    The episode starts from a prompt.  Each action appends one token.  When the text ends, a reward model that can be
    swapped scores it.

    ## Action Space
    `Discrete(V)`: the id of the next token; a `TokenSpace`, which also says which ids end a text.  V is the tokenizer's largest id + 1.

    ## Observation Space
    `Dict(prompt=Box(-1, V-1, (P,), int64), response=Box(-1, V-1, (T,), int64))`: the ids of the prompt and of what has
    been written, padded on the right with -1.  If the task's prompts have pictures (`Prompt.image`, as in `textrl/Caption-v0`), also
    `image=Box(0, 255, (H, W, 3), uint8)`: the picture of the prompt, the same at every step of a text.

    ## Rewards
    0 at every step but the last, whose reward is the reward model's score of the finished text, with the task's penalties
    for a missing end-of-text and for length.  A reward model that also has `score_steps(episodes)` or
    `score_turns(episodes)` scores unfinished texts after each other step, or after each of the agent's turns.

    ## Starting State
    A prompt of the task, drawn with the environment's generator (or the next one, if the task's prompts come in order),
    and an empty response.

    ## Episode End
    *Termination*, with `info["finish_reason"]`: the action is the end-of-text token (`"eos"`) or a stop token, or completes a
    stop string (`"stop"`); the response has T tokens (`"length"`); the task says so (`"task"`); a dialogue had its last turn
    (`"turns"`); the action is illegal under the task's constraint (`"illegal"`).  All are scored, illegal ones with the
    task's `illegal_score`.  *Truncation*: never.  Do not add a `TimeLimit`: it would cut the text before the reward model
    is asked.

    In a dialogue (`reply`), end-of-text or a stop ends the agent's turn.  What the environment replies is appended to
    `response` in the same step: context, never an action (`Episode.action_mask` tells them apart).

    ## Info
    `reset`: `prompt`, `prompt_id`.  Last `step`: also `response`, `finish_reason`, `score`, `return` (the sum of all rewards).

    ## Arguments
    Args:
        task: Name of a task, or a `TextTask`.
        reward: Name of a reward model, `{"name": ..., **kwargs}`, an object with `score(episodes)`, or a function
            `f(prompts, completions, **columns)`; None takes the task's own.
        split: Prompts of a named task: `"train"`, `"validation"` or `"test"`.
        render_mode: `"ansi"` (render returns the text), `"rgb_array"` (an image of it, on which tokens have the colour of the reward of
            their step, or of the log-probability if `log_probs` is set before it), `"human"` (each step prints it), or None.
        **settings: Fields of `TextTask` that replace the task's own, such as `max_new_tokens` or `stop_strings`.

    ## Version History
    * v0: first version.
    """

    def __init__(
        self,
        task: str | TextTask = "review",
        reward: Any = None,
        split: str = "train",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self._make_core(1, task, reward, split, render_mode, settings)
        self.observation_space: Any
        self.observation_space, self.action_space = spaces_of(self.task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new text; see `gymnasium.Env.reset`.

        Args:
            seed: Of the prompts, whose order it starts anew; None goes on.
            options: There are none.

        Raises:
            ValueError: Options were given.
        """
        refuse_options(options)
        super().reset(seed=seed)
        self.core.generators[0] = self.np_random
        if seed is not None:
            self.core.prompt_sampler.restart()
        self.core.restart([0])
        if self.render_mode == "human":
            self._terminal = Terminal()  # the text before stays
            self.render()
        return self._observation(), self.core.start_info(0)

    def step(self, action: np.int64 | int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Append a token; see `gymnasium.Env.step`.

        Raises:
            TypeError: The action is not an integer.
            ValueError: It is outside the vocabulary.
            RuntimeError: The text has ended, or none was started.
            RewardError: The reward model failed.  On a finished text, the next step asks again, without writing its action; on an
                unfinished one, as when the task's `reply` or `ends` fail, the text is lost, and `reset` is needed.
        """
        result = self._advance(np.asarray(action).reshape(1))
        info = result.infos.get(0, {})
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(result.rewards[0]), bool(result.terminated[0]), False, info

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Deal the prompts that would have been dealt when `random_state` was called, from the next reset on."""
        super().set_random_state(state)
        if self.core.generators[0] is not None:
            self.np_random = self.core.generators[0]

    def action_masks(self) -> np.ndarray:
        """Return which tokens are legal now, shape (V,), bool; sb3-contrib's MaskablePPO asks for it."""
        return self.core.action_masks()[0]

    def render(self) -> str | np.ndarray | None:
        """Return the text so far (`"ansi"`) or an image of it (`"rgb_array"`), or print it (`"human"`)."""
        if self.render_mode == "rgb_array":
            return self._image(0)
        if self.render_mode == "human":
            self._terminal.show([self._text(0)])
            return None
        return transcript(*self._text(0))

    def _observation(self) -> dict[str, np.ndarray]:
        return {key: value[0] for key, value in self.core.observe().items()}
