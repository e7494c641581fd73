"""The text environment without wrappers, for those who play its task by other means."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from .env import TextGenerationEnv

_BATCHED = "wrap a TextGenerationVecEnv in a VecEnvWrapper"
_SETTINGS = f"give the environment itself what changes (reward=, max_new_tokens=, constraint=, ...), or {_BATCHED}"
_REWARD = f"give the environment reward=, for example a function of prompts and completions, or {_BATCHED}"
_STATISTICS = "leave it out: episode statistics are added, or wrap a TextGenerationVecEnv in VecMonitor"
_FIXES = MappingProxyType({
    "TimeLimit": "give the environment max_new_tokens=: the text ends there and is scored",
    "TransformReward": _REWARD,
    "ReferenceKL": "give the algorithm beta= and reference=",
    "RecordEpisodeStatistics": _STATISTICS,
    "Monitor": _STATISTICS,
})  # fmt: skip


def bare_text_env(env: gym.Env[Any, Any]) -> TextGenerationEnv:
    """Return the scalar text environment inside what `gym.make` wraps every environment in.

    Raises:
        TypeError: It is no text environment, or it is changed by a wrapper or a subclass, which would be lost.
    """
    scalar = env.unwrapped
    if not isinstance(scalar, TextGenerationEnv):
        raise TypeError(f"{type(scalar).__name__} is not a text environment: use a textrl id, or stock Stable-Baselines3")
    changes = [] if type(scalar) is TextGenerationEnv else [type(scalar).__name__]
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, (OrderEnforcing, PassiveEnvChecker)):  # they check how it is used, and change nothing
            changes.append(type(env).__name__)
        env = env.env
    if changes:
        fixes = dict.fromkeys(_FIXES.get(name, _SETTINGS) for name in changes)
        raise TypeError(
            f"{', '.join(changes)} would be lost, for only the task and the reward of the text environment inside are used; "
            f"instead, {'; '.join(fixes)}"
        )
    return scalar
