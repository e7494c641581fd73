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
    """

    name: str
    group_size: int = 1
    minibatches: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

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
    "ppo": Algorithm("TextPPO"),
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
