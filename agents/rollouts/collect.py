"""Whole episodes: play exactly n texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from ..policies.transformer_policy import TransformerPolicy
from .rollout_buffer import SequenceRolloutBuffer
from .text_vec_env import check_observations, text_env_of

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
        Every step after it was stored.

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
            starts = np.ones(env.num_envs, bool)
            while (live := obs["prompt"][:, 0] >= 0).any():
                actions, values, log_probs = act(obs, starts)
                dealt = texts.core.prompt_index.copy()  # (E,): a step deals new ones to the rows that end
                new_obs, rewards, dones, infos = env.step(actions)
                buffer.add(obs, actions, rewards, starts, values, log_probs, prompt_ids=dealt, infos=infos)
                obs, starts = new_obs, dones
                yield Played(int(live.sum()), dones, infos)
            policy.drop_caches()  # makes room for the reference pass
            num_episodes = more()
        buffer.compute_returns_and_advantage(torch.zeros(env.num_envs), starts)
    finally:
        texts.end_rollout()
