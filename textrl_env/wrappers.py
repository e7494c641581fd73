"""Wrappers for agents of other libraries, which would read token ids as magnitudes.

For vectors: `gymnasium.wrappers.vector.VectorizeTransformObservation(envs, TokenIds)`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TransformObservation


class TokenIds(TransformObservation[Any, Any, Any], RecordConstructorArgs):
    """Prompt and response side by side as `MultiDiscrete([V + 1] * (P + T))`: 0 where nothing is, i + 1 for token i.

    For agents that embed ids, or read `MultiDiscrete` one-hot themselves, as Stable-Baselines3 does.

    Args:
        env: A text environment.

    Raises:
        TypeError: Its observations hold something else than prompt and response, which would be lost.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        TransformObservation.__init__(self, env, _side_by_side, spaces.MultiDiscrete(_numbers_of_values(env)))


class OneHotTokens(TransformObservation[Any, Any, Any], RecordConstructorArgs):
    """Prompt and response one-hot, `Box(0, 1, ((P + T) * (V + 1),), float32)`, for agents whose networks take real numbers.

    Each position has V + 1 of them: the first is 1 where nothing is.

    Args:
        env: A text environment.

    Raises:
        TypeError: Its observations hold something else than prompt and response, which would be lost.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        numbers = _numbers_of_values(env)
        RecordConstructorArgs.__init__(self)
        TransformObservation.__init__(self, env, partial(_one_hot, numbers[0]), spaces.Box(0, 1, (sum(numbers),), np.float32))


class WithoutInfo(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Leave the infos empty, for agents that store them and need the same keys at every step: ours tell of a text where it begins and ends.

    Args:
        env: Any environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new text."""
        return self.env.reset(seed=seed, options=options)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Append a token."""
        return *self.env.step(action)[:4], {}


def _numbers_of_values(env: gym.Env[Any, Any]) -> list[int]:
    """Return how many values there are at each position of prompt and response: V + 1."""
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or list(space.spaces) != ["prompt", "response"]:
        raise TypeError(f"observations in {space}: a text environment has Dict(prompt, response), and nothing else may be lost")
    return [int(high) + 2 for part in space.values() if isinstance(part, spaces.Box) for high in part.high]


def _side_by_side(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([observation["prompt"], observation["response"]]) + 1  # (P + T,)


def _one_hot(number: int, observation: dict[str, np.ndarray]) -> np.ndarray:
    ids = _side_by_side(observation)
    one_hot = np.zeros((len(ids), number), np.float32)
    one_hot[np.arange(len(ids)), ids] = 1
    return one_hot.ravel()  # ((P + T) * (V + 1),)
