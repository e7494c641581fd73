"""The text environment that Stable-Baselines3's wrappers hold."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from textrl_env.envs.env import TextGenerationEnv
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

DEFAULT_ROWS = 64  # rows of the batched environment that replaces a scalar one


def text_env_of(env: VecEnv) -> TextGenerationVecEnv:
    """Return the text environment inside its wrappers."""
    texts = env.unwrapped
    assert isinstance(texts, TextGenerationVecEnv)
    return texts


def as_text_vec_env(env: GymEnv, monitored: bool) -> VecEnv:
    """Turn a scalar text environment into a batched one, and add episode statistics if they are asked for.

    Raises:
        TypeError: It is no text environment.
    """
    if isinstance(env, gym.Env):
        scalar = env.unwrapped
        if not isinstance(scalar, TextGenerationEnv):
            raise TypeError(f"{type(scalar).__name__} is not a text environment: use a textrl id, or stock Stable-Baselines3")
        env = TextGenerationVecEnv(DEFAULT_ROWS, task=scalar.task, reward=scalar.reward_model)
    if not isinstance(env, VecEnv) or not isinstance(env.unwrapped, TextGenerationVecEnv):
        raise TypeError(f"{type(env).__name__}: pass a TextGenerationVecEnv (wrapped or not), a text environment, or its id")
    return VecMonitor(env) if monitored and not is_vecenv_wrapped(env, VecMonitor) else env
