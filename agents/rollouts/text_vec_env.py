"""The text environment that Stable-Baselines3's wrappers hold."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, is_vecenv_wrapped

from textrl_env.envs.bare_env import bare_text_env
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

DEFAULT_ROWS = 64  # rows of the batched environment that replaces a scalar one


def text_env_of(env: VecEnv | None) -> TextGenerationVecEnv:
    """Return the text environment inside its wrappers; there is one."""
    texts = None if env is None else env.unwrapped
    assert isinstance(texts, TextGenerationVecEnv)
    return texts


def as_text_vec_env(env: GymEnv, monitored: bool) -> VecEnv:
    """Turn a scalar text environment into a batched one, and add episode statistics if they are asked for.

    Raises:
        TypeError: It is no text environment, or wrapped in what would be lost.
    """
    if isinstance(env, gym.Env):
        scalar = bare_text_env(env)
        env = TextGenerationVecEnv(DEFAULT_ROWS, task=scalar.task, reward=scalar.reward_model, render_mode=scalar.render_mode)
        if scalar.core.generators[0] is not None and scalar.np_random_seed >= 0:  # it was reset with a seed
            env.seed(scalar.np_random_seed)
    if not isinstance(env, VecEnv) or not isinstance(env.unwrapped, TextGenerationVecEnv):
        raise TypeError(
            f"{type(env).__name__}: pass a TextGenerationVecEnv, by itself or in Stable-Baselines3's VecEnvWrappers, a text environment "
            "without wrappers, or its id; vectors of scalar environments are for stock Stable-Baselines3"
        )
    return VecMonitor(env) if monitored and not is_vecenv_wrapped(env, VecMonitor) else env


def can_write_ahead(env: VecEnv) -> bool:
    """Return whether steps may be written before earlier texts are scored: nobody but SB3's monitor watches them, and scores take time."""
    texts = env
    while type(texts) is VecMonitor:
        texts = texts.venv
    return type(texts) is TextGenerationVecEnv and texts.can_write_ahead


def check_observations(env: VecEnv, obs: dict[str, np.ndarray]) -> None:
    """Insist on observations that no wrapper changed: tokens are trained as they were written.

    Raises:
        TypeError: A wrapper changed them.
    """
    shown = text_env_of(env).core.observe()
    if any(not np.array_equal(obs[key], shown[key]) for key in shown):
        names = []
        while isinstance(env, VecEnvWrapper):
            names.append(type(env).__name__)
            env = env.venv
        raise TypeError(
            f"one of the wrappers {', '.join(names)} changes the observations, which must reach the policy as the token ids that they are: "
            "leave it out (VecNormalize: norm_obs=False)"
        )
