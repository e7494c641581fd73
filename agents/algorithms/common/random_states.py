"""States of all random generators, which a training must restore to go on bit by bit."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from ...rollouts.text_vec_env import text_env_of


def generators(env: VecEnv) -> dict[str, Any]:
    """Return the states of all generators that a rollout and an update draw from."""
    cuda = [state.numpy() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state().numpy(),
        "cuda": cuda,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "env": text_env_of(env).random_state(),
    }


def restore_generators(state: dict[str, Any], env: VecEnv) -> None:
    """Restore what `generators` returned; the order of prompts only if the environment deals the same ones."""
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.from_numpy(device) for device in state["cuda"]])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    try:
        text_env_of(env).set_random_state(state["env"])
    except ValueError as error:
        warnings.warn(f"training goes on with other prompts than it would have: {error}", stacklevel=2)
