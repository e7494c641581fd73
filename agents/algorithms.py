"""The on-policy algorithms by name, as the command line calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import agents


@dataclass(frozen=True)
class Algorithm:
    """One of our algorithms with settings that suit models of about a million parameters.

    Attributes:
        name: Of the class, in `agents`.
        group_size: Texts for each prompt that it compares; 1: it does not.
        minibatches: Whether it splits a rollout into minibatches.
        settings: Arguments that differ from the class's own defaults.
        when_loaded: Attributes that a checkpoint is given: one of PPO may be of another class, see `on_ranks`.
    """

    name: str
    group_size: int = 1
    minibatches: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    when_loaded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> Any:
        """The class, a `TextAlgorithm`."""
        return getattr(agents, self.name)

    @property
    def policy(self) -> str:
        """Name of the policy class that it takes."""
        return "MaskableTransformerPolicy" if self.name == "TextMaskablePPO" else "TransformerPolicy"


_DAPO = dict(clip_range_high=0.28, loss_aggregation="token", skip_equal_groups=True, max_sampling_rounds=4, beta=0.0)

ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": Algorithm("TextPPO", when_loaded={"rollout_buffer_kwargs": {"whiten_advantages": True}}),
    "maskable-ppo": Algorithm("TextMaskablePPO"),
    "nlpo": Algorithm("NLPO"),
    "a2c": Algorithm("TextA2C", minibatches=False),
    "trpo": Algorithm("TextTRPO", settings={"cg_max_steps": 5, "n_critic_updates": 4}),
    "reinforce": Algorithm("Reinforce"),
    "reinforce++": Algorithm("ReinforcePlusPlus"),
    "reinforce++-baseline": Algorithm("ReinforcePlusPlus", group_size=4, settings={"estimator": "reinforce++_baseline"}),
    "rloo": Algorithm("RLOO", group_size=4, settings={"n_epochs": 2}),
    "grpo": Algorithm("GRPO", group_size=4),
    "dr-grpo": Algorithm("GRPO", group_size=4, settings={"estimator": "group_mean", "loss_aggregation": "budget"}),
    "dapo": Algorithm("GRPO", group_size=4, settings=_DAPO),
}

_PPO_ON_RANKS = Algorithm(
    "TextPolicyGradient",
    settings={"estimator": "gae", "n_epochs": 4, "whiten_advantages": True},
    when_loaded={"estimator": "gae", "whiten": True, "rollout_buffer_kwargs": {"kl_reward": "k1"}},
)


def on_ranks(name: str) -> Algorithm:
    """Return what several processes train with where one trains with `name`; SB3's own `train()` knows no other process.

    Raises:
        ValueError: There is no such algorithm for several processes.
    """
    if name == "ppo":
        return _PPO_ON_RANKS
    if name not in ALGORITHMS or not ALGORITHMS[name].made._on_ranks:
        known = [known for known in ALGORITHMS if known == "ppo" or ALGORITHMS[known].made._on_ranks]
        raise ValueError(f"--algo {name} trains in one process: start it without torchrun, or choose from {', '.join(known)}")
    return ALGORITHMS[name]
