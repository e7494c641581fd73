"""The dynamics of text episodes, for B texts at once: the only place where tokens are appended and episodes end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from .episode import Episode
from .reward_model import RewardModel, as_reward_model, checked_scores
from .task import TextTask

PAD = -1  # fills unused positions of observations; no token has this id, so padding never collides with end-of-text


@dataclass(frozen=True)
class StepResult:
    """What one step did to the B rows.

    Attributes:
        rewards: Scores of the texts that ended, 0 elsewhere, shape (B,), float64.
        terminated: True where a text ended, shape (B,), bool.
        episodes: The texts that ended, by row.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    episodes: dict[int, Episode]


class TextCore:
    """B texts being written, one token a step.

    A row is live (it has a prompt and takes tokens), or idle (its observation is all `PAD` and its action is ignored).
    Only `begin_rollout` makes idle rows; otherwise callers restart each row that ended.

    Args:
        task: What the texts are.
        num_rows: B, at least 1.
        reward: Anything that `as_reward_model` accepts; None takes the task's own.
    """

    def __init__(self, task: TextTask, num_rows: int, reward: Any = None) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}: need at least 1 text")
        self.task = task
        self.num_rows = num_rows
        self.reward_model = task.reward if reward is None else reward
        self.generators: list[np.random.Generator | None] = [None] * num_rows
        self.cursor = 0  # next row of data when prompts come in order
        self.undealt: int | None = None  # episodes that `begin_rollout` may still start; None: as many as asked for
        self.prompt = np.full((num_rows, task.prompt_width), PAD, np.int64)
        self.response = np.full((num_rows, task.max_new_tokens), PAD, np.int64)
        self.length = np.zeros(num_rows, np.int64)  # tokens written so far
        self.prompt_index = np.zeros(num_rows, np.int64)
        self.live = np.zeros(num_rows, bool)

    @property
    def reward_model(self) -> RewardModel:
        """The reward model that scores finished texts; assign anything that `as_reward_model` accepts to swap it."""
        return self._reward_model

    @reward_model.setter
    def reward_model(self, reward: Any) -> None:
        self._reward_model = as_reward_model(reward)

    def seed(self, row: int, seed: int | None) -> None:
        """Give a row its own generator, seeded with `seed` (None: from the operating system)."""
        self.generators[row], _ = seeding.np_random(seed)

    def restart(self, rows: Sequence[int] | np.ndarray) -> None:
        """Start a new text in each of `rows`, or leave it idle when `begin_rollout`'s number is used up."""
        for row in rows:
            self.prompt[row] = PAD
            self.response[row] = PAD
            self.length[row] = 0
            self.live[row] = self.undealt is None or self.undealt > 0
            if not self.live[row]:
                continue
            if self.undealt is not None:
                self.undealt -= 1
            index = self._draw(int(row))
            ids = self.task.prompt_ids[index]
            self.prompt_index[row] = index
            self.prompt[row, : len(ids)] = ids

    def begin_rollout(self, num_episodes: int) -> None:
        """Deal exactly `num_episodes` texts to the restarts that follow, then leave rows idle."""
        if num_episodes < 1:
            raise ValueError(f"num_episodes={num_episodes}: a rollout needs at least 1")
        self.undealt = num_episodes

    def end_rollout(self) -> None:
        """Deal as many texts as restarts ask for, as before `begin_rollout`."""
        self.undealt = None

    def step(self, actions: np.ndarray) -> StepResult:
        """Append one token to every live row, and score the texts that end with it in one call.

        Args:
            actions: Token ids, shape (B,), integers in [0, V); ignored where a row is idle.

        Raises:
            TypeError: Not integers.
            ValueError: Another shape, or an id outside the vocabulary.
            RuntimeError: No row is live: `restart` first.
            RewardError: The reward model failed.
        """
        tokens = self._checked(actions)
        rows = np.flatnonzero(self.live)
        self.response[rows, self.length[rows]] = tokens[rows]
        self.length[rows] += 1
        is_eos = tokens == self.task.tokenizer.eos_token_id
        terminated = self.live & (is_eos | (self.length == self.task.max_new_tokens))
        ended = np.flatnonzero(terminated)
        self.live[ended] = False
        rewards = np.zeros(self.num_rows)
        if not len(ended):
            return StepResult(rewards, terminated, {})
        episodes = self._episodes(ended, is_eos)
        rewards[ended] = checked_scores(self.reward_model, episodes)
        return StepResult(rewards, terminated, dict(zip(ended.tolist(), episodes, strict=True)))

    def observe(self) -> dict[str, np.ndarray]:
        """Return a fresh copy of the observation: prompt (B, P) and response (B, T), int64, `PAD` where empty."""
        return {"prompt": self.prompt.copy(), "response": self.response.copy()}

    def start_info(self, row: int) -> dict[str, Any]:
        """Return the info of a text that just began; empty for an idle row."""
        if not self.live[row]:
            return {}
        index = int(self.prompt_index[row])
        return {"prompt": self.task.prompts[index].text, "prompt_id": index}

    def final_info(self, row: int, episode: Episode, score: float) -> dict[str, Any]:
        """Return the info of a text that just ended."""
        return {
            "prompt": episode.prompt,
            "prompt_id": int(self.prompt_index[row]),
            "response": episode.response,
            "finish_reason": episode.finish_reason,
            "score": score,
        }

    def text(self, row: int) -> tuple[str, str]:
        """Return prompt and response so far, as text."""
        if self.length[row] == 0 and not self.live[row]:
            return "", ""
        response = self.response[row, : self.length[row]]
        return self.task.prompts[int(self.prompt_index[row])].text, self.task.tokenizer.decode_batch([response.tolist()])[0]

    def _draw(self, row: int) -> int:
        if self.task.prompt_order == "sequential":
            index = self.cursor % len(self.task.prompts)
            self.cursor += 1
            return index
        generator = self.generators[row]
        if generator is None:
            self.seed(row, None)
            generator = self.generators[row]
        assert generator is not None
        return int(generator.integers(len(self.task.prompts)))

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        tokens = np.asarray(actions)
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"actions have dtype {tokens.dtype}: pass integer token ids")
        if tokens.shape != (self.num_rows,):
            raise ValueError(f"actions have shape {tokens.shape}: pass one token id for each of {self.num_rows} rows")
        if not self.live.any():
            raise RuntimeError("no text is being written: call reset() before step()")
        vocab_size = self.task.tokenizer.vocab_size
        bad = self.live & ((tokens < 0) | (tokens >= vocab_size))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"token id {tokens[row]} in row {row} is outside the vocabulary [0, {vocab_size})")
        return tokens

    def _episodes(self, rows: np.ndarray, is_eos: np.ndarray) -> list[Episode]:
        ids = [self.response[row, : self.length[row]].copy() for row in rows]
        texts = self.task.tokenizer.decode_batch(ids)
        episodes = []
        for row, response_ids, text in zip(rows, ids, texts, strict=True):
            index = int(self.prompt_index[row])
            prompt = self.task.prompts[index]
            episodes.append(
                Episode(
                    prompt=prompt.text,
                    response=text,
                    prompt_ids=self.task.prompt_ids[index],
                    response_ids=response_ids,
                    action_mask=np.ones(len(response_ids), bool),
                    finish_reason="eos" if is_eos[row] else "length",
                    references=prompt.references,
                    metadata=prompt.metadata,
                )
            )
        return episodes


class CoreShell:
    """What the three shells share: the core, its spaces, and the reward model that can be swapped."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human"], "render_fps": 10}
    core: TextCore

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


def spaces_of(task: TextTask) -> tuple[spaces.Dict, spaces.Discrete]:
    """Return the observation space of one text and its action space."""
    vocab_size = task.tokenizer.vocab_size
    observation = spaces.Dict(
        {
            "prompt": spaces.Box(PAD, vocab_size - 1, (task.prompt_width,), np.int64),
            "response": spaces.Box(PAD, vocab_size - 1, (task.max_new_tokens,), np.int64),
        }
    )
    return observation, spaces.Discrete(vocab_size)


def transcript(prompt: str, response: str, outcome: str = "") -> str:
    """Return a text for a terminal: the prompt dim, the response plain, the outcome in brackets."""
    return f"\x1b[2m{prompt}\x1b[0m{response}{f'  [{outcome}]' if outcome else ''}"
