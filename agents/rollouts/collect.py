"""Whole episodes: play exactly n texts with a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..policies.transformer_policy import TransformerPolicy
from .rollout_buffer import SequenceRolloutBuffer


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
) -> Iterator[Played]:
    """Reset `env`, deal exactly `num_episodes` texts, write them all into `buffer`, and compute its returns.

    Args:
        policy: Acts.
        env: A `TextGenerationVecEnv`, wrapped or not.
        buffer: Emptied first.
        num_episodes: How many.
        use_masking: Whether the environment's action masks are followed.
        more: Called when all are written: how many to write besides, 0 for none.

    Yields:
        Every step after it was stored.
    """
    texts = env.unwrapped
    assert isinstance(texts, TextGenerationVecEnv)
    buffer.reset()
    try:
        while num_episodes:
            texts.begin_rollout(num_episodes)
            obs: Any = env.reset()
            starts = np.ones(env.num_envs, bool)
            while (live := obs["prompt"][:, 0] >= 0).any():
                with torch.no_grad():
                    actions, values, log_probs = policy(
                        obs_as_tensor(obs, policy.device), action_masks=texts.core.legal() if use_masking else None
                    )
                chosen = actions.cpu().numpy()
                new_obs, rewards, dones, infos = env.step(chosen)
                buffer.add(obs, chosen, rewards, starts, values, log_probs)
                obs, starts = new_obs, dones
                yield Played(int(live.sum()), dones, infos)
            num_episodes = more()
        policy.drop_caches()  # makes room for the reference pass
        buffer.compute_returns_and_advantage(torch.zeros(env.num_envs), starts)
    finally:
        texts.end_rollout()
