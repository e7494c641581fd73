"""Seeds and states of all random generators, which a training must restore to go on bit by bit."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from rewards.utils.devices import generator_state, set_generator_state

from ...rollouts.text_vec_env import text_env_of


def seed_of_rows(seed: int) -> int:
    """Return the seed of an environment's first row; row i gets this plus i, as in Stable-Baselines3.

    There the rows of seed s have s, s + 1, and so on, so that of 64 rows 63 are those of seed s + 1 too, and runs that are to differ by
    chance alone would learn from nearly the same prompts.  Here no two seeds are equal and neighbours are more than a thousand million
    apart: multiplication by an odd number near 2**32 / 1.618 (Knuth, "The Art of Computer Programming", volume 3, section 6.4).  0 stays 0.
    """
    return seed * 2_654_435_761 % 2**32


def generators(env: VecEnv, device: torch.device) -> dict[str, Any]:
    """Return the states of all generators that a rollout and an update on this device draw from."""
    return {
        "torch": torch.get_rng_state().numpy(),
        "device": None if device.type == "cpu" else (device.type, generator_state(device).numpy()),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "env": text_env_of(env).random_state(),
    }


def restore_generators(state: dict[str, Any], env: VecEnv, device: torch.device) -> None:
    """Restore what `generators` returned; the order of prompts only if the environment deals the same ones."""
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    kind, own = _of_device(state, device)
    if kind != device.type:
        warnings.warn(
            f"training was saved on {kind} and goes on on {device.type}, with other random numbers than it would have", stacklevel=2
        )
    elif own is not None:
        set_generator_state(device, torch.from_numpy(own))
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    try:
        text_env_of(env).set_random_state(state["env"])
    except ValueError as error:
        warnings.warn(f"training goes on with other prompts than it would have: {error}", stacklevel=2)


def _of_device(state: dict[str, Any], device: torch.device) -> tuple[str, np.ndarray | None]:
    """Return on what kind of device training was, and the state of its generator; None: the CPU's is all."""
    if "device" in state:
        return state["device"] or ("cpu", None)
    if device.type == "cuda" and state["cuda"]:  # earlier versions saved those of all GPUs, and nothing of other devices
        return "cuda", state["cuda"][min(device.index or 0, len(state["cuda"]) - 1)]
    return "cpu", None
