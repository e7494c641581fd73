"""Whole episodes: play exactly n texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from ..policies.transformer_policy import TransformerPolicy
from .rollout_buffer import SequenceRolloutBuffer
from .text_vec_env import can_write_ahead, check_observations, text_env_of

# From observations and whether each row's text begins (E,): actions (E,), values (E, 1) and log-probabilities (E,), for the buffer
Act = Callable[[dict[str, np.ndarray], np.ndarray], tuple[np.ndarray, torch.Tensor, torch.Tensor]]


class Played(NamedTuple):
    """One step of all rows.

    Attributes:
        num_live: Rows in which a token was written.
        dones: Rows whose text ended, shape (E,), bool.
        infos: One dict a row.
    """

    num_live: int
    dones: np.ndarray
    infos: list[dict[str, Any]]


class _Steps:
    """Steps of an environment.  Where scores take time the texts are written on, and each step is played when its scores have come.

    What is played, and in which order, is the same: texts that end together are scored in one call, and the environment's monitor and
    whoever gets a `Played` see step after step.
    """

    def __init__(self, env: VecEnv) -> None:
        self._env, self._texts, self._ahead = env, text_env_of(env), can_write_ahead(env)
        self._unplayed: deque[tuple[Played, np.ndarray]] = deque()  # with rewards (E,)

    def step(self, actions: np.ndarray, num_live: int) -> tuple[Any, Played, np.ndarray]:
        """Return observations, step and rewards (E,); rewards and infos of a step that is not played yet are filled in then."""
        infos: list[dict[str, Any]] = []
        if self._ahead:
            obs, dones = self._texts.write_ahead(actions)
            rewards = np.zeros(len(dones), np.float32)
        else:
            obs, rewards, dones, infos = self._env.step(actions)
        self._unplayed.append((Played(num_live, dones, infos), rewards))
        return obs, *self._unplayed[-1]

    def played(self, wait: bool = False) -> Iterator[Played]:
        """Yield the steps that are scored, oldest first, or wait for all of them."""
        while self._unplayed and (wait or not self._ahead or self._texts.oldest_is_scored):
            step, rewards = self._unplayed.popleft()
            if self._ahead:
                _, rewards[:], _, step.infos[:] = self._env.step_wait()
            yield step


def play_episodes(
    policy: TransformerPolicy,
    env: VecEnv,
    buffer: SequenceRolloutBuffer,
    num_episodes: int,
    use_masking: bool = True,
    more: Callable[[], int] = lambda: 0,
    act: Act | None = None,
) -> Iterator[Played]:
    """Reset `env`, play exactly `num_episodes` texts, store them in `buffer`, and compute its returns.

    Args:
        policy: Acts.
        env: A `TextGenerationVecEnv`, wrapped or not.
        buffer: Emptied first.
        num_episodes: How many.
        use_masking: Whether the policy follows the environment's action masks.
        more: Called when all are written: how many to write besides, 0 for none.
        act: Chooses the actions instead of the policy, see `generated_actions`.

    Yields:
        Every step after it was stored and scored.

    Raises:
        TypeError: A wrapper changes the observations.
    """
    texts = text_env_of(env)

    def sample(obs: dict[str, np.ndarray], _: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        masks = texts.core.legal() if use_masking else None
        with torch.no_grad():
            actions, values, log_probs = policy(obs, action_masks=masks)
        return actions.numpy(), values, log_probs

    act = sample if act is None else act
    buffer.reset()
    try:
        while num_episodes:
            texts.begin_rollout(num_episodes)
            obs: Any = env.reset()
            check_observations(env, obs)
            starts, steps = np.ones(env.num_envs, bool), _Steps(env)
            while (live := obs["prompt"][:, 0] >= 0).any():
                actions, values, log_probs = act(obs, starts)
                dealt = texts.core.prompt_index.copy()  # (E,): a step deals new ones to the rows that end
                new_obs, step, rewards = steps.step(actions, int(live.sum()))
                buffer.add(obs, actions, rewards, starts, values, log_probs, prompt_ids=dealt, infos=step.infos)
                obs, starts = new_obs, step.dones
                yield from steps.played()
            yield from steps.played(wait=True)
            policy.drop_caches()  # makes room for the reference pass
            num_episodes = more()
        buffer.compute_returns_and_advantage(torch.zeros(env.num_envs), starts)
    finally:
        texts.end_rollout()
