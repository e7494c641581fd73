"""The on-policy algorithms by name, as the command line calls them: a row here is all that `textrl train` and `textrl bench` need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Algorithm:
    """An algorithm, with settings that suit models of about a million parameters.

    Attributes:
        path: Module of `agents.algorithms` and class, as `"ppo:TextPPO"`.
        group_size: Texts for each prompt that it compares with each other; 1: it compares none.
        minibatches: Whether it splits a rollout into minibatches, and so takes `batch_size`.
        critic: Whether it has one.
        judge: Whether it takes one, which compares texts with each other.
        settings: Arguments that differ from the class's own defaults.
        when_loaded: Arguments with which a checkpoint is loaded: one of PPO by several processes was of another class before.
    """

    path: str
    group_size: int = 1
    minibatches: bool = True
    critic: bool = False
    judge: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    when_loaded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the class."""
        return self.path.partition(":")[2]

    @property
    def made(self) -> Any:
        """The class, a `TextAlgorithm`."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(f"agents.algorithms.{module}"), name)

    @property
    def policy(self) -> str:
        """Name of the policy class that it takes."""
        return next(iter(self.made.policy_aliases))


_RESAMPLED = dict(loss_aggregation="token", skip_equal_groups=True, max_sampling_rounds=4, beta=0.0)
_GMPO = dict(surrogate="gmpo", clip_range=1 - math.exp(-0.4), clip_range_high=math.exp(0.4) - 1, beta=0.0)

ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": Algorithm("ppo:TextPPO", critic=True, when_loaded={"rollout_buffer_kwargs": {"whiten_advantages": True}}),
    "maskable-ppo": Algorithm("maskable_ppo:TextMaskablePPO", critic=True),
    "nlpo": Algorithm("nlpo:NLPO", critic=True),
    "a2c": Algorithm("a2c:TextA2C", minibatches=False, critic=True),
    "trpo": Algorithm("trpo:TextTRPO", critic=True, settings={"cg_max_steps": 5, "n_critic_updates": 4}),
    "reinforce": Algorithm("reinforce:Reinforce"),
    "reinforce++": Algorithm("reinforce:ReinforcePlusPlus"),
    "reinforce++-baseline": Algorithm("reinforce:ReinforcePlusPlus", group_size=4, settings={"estimator": "reinforce++_baseline"}),
    "rloo": Algorithm("rloo:RLOO", group_size=4, settings={"n_epochs": 2}),
    "grpo": Algorithm("grpo:GRPO", group_size=4),
    "dr-grpo": Algorithm("grpo:GRPO", group_size=4, settings={"estimator": "group_mean", "loss_aggregation": "budget"}),
    "gdpo": Algorithm("grpo:GRPO", group_size=4, settings={"estimator": "gdpo"}),
    "dapo": Algorithm("grpo:GRPO", group_size=4, settings={"clip_range_high": 0.28, "overlong_filtering": True, **_RESAMPLED}),
    "gspo": Algorithm("grpo:GRPO", group_size=4, settings={"surrogate": "gspo", "beta": 0.0}),
    "gmpo": Algorithm("grpo:GRPO", group_size=4, settings=_GMPO),
    "cispo": Algorithm("grpo:GRPO", group_size=4, settings={"surrogate": "cispo", "clip_range": 1.0, "clip_range_high": 4.0, **_RESAMPLED}),
    "online-dpo": Algorithm("online_dpo:OnlineDPO", group_size=2, judge=True, settings={"beta": 0.1, "n_epochs": 2}),
    "distill": Algorithm("distillation:Distillation", settings={"beta": 1.0}),
}


def on_ranks(name: str) -> Algorithm:
    """Return the algorithm of this name, with which several processes can train one policy.

    Raises:
        ValueError: They cannot.
    """
    if name not in ALGORITHMS or not ALGORITHMS[name].made._on_ranks:
        known = [known for known in ALGORITHMS if ALGORITHMS[known].made._on_ranks]
        raise ValueError(f"--algo {name} trains in one process: start it without torchrun, or choose from {', '.join(known)}")
    return ALGORITHMS[name]
