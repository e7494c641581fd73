"""RLOO, REINFORCE, REINFORCE++ and GRPO: `TextPolicyGradient` with the defaults of each."""

from __future__ import annotations

from typing import Any

from .policy_gradient import TextPolicyGradient


class RLOO(TextPolicyGradient):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a text's baseline is the mean return of its prompt's other texts."""

    __module__ = "agents"

    def __init__(self, policy: Any, env: Any, estimator: str = "rloo", **settings: Any) -> None:
        super().__init__(policy, env, estimator, **settings)
