"""REINFORCE and REINFORCE++."""

from __future__ import annotations

from typing import Any

from .policy_gradient import TextPolicyGradient


class Reinforce(TextPolicyGradient):
    """REINFORCE (Williams 1992) with reward to go and a moving average of returns as the baseline."""

    __module__ = "agents"

    def __init__(self, policy: Any, env: Any, estimator: str = "reinforce", **settings: Any) -> None:
        super().__init__(policy, env, estimator, **settings)


class ReinforcePlusPlus(TextPolicyGradient):
    """REINFORCE++ (Hu et al. 2025): reward to go, whitened over the rollout; `estimator="reinforce++_baseline"` for its group form."""

    __module__ = "agents"

    def __init__(self, policy: Any, env: Any, estimator: str = "reinforce++", n_epochs: int = 2, **settings: Any) -> None:
        super().__init__(policy, env, estimator, n_epochs=n_epochs, **settings)
