"""REINFORCE and REINFORCE++."""

from __future__ import annotations

from typing import ClassVar

from .common.policy_gradient_arguments import PolicyGradientArguments
from .policy_gradient import TextPolicyGradient


class Reinforce(TextPolicyGradient):
    """REINFORCE (Williams 1992) with reward to go and a moving average of returns as the baseline."""

    __module__ = "agents"
    _defaults: ClassVar[PolicyGradientArguments] = {"estimator": "reinforce"}


class ReinforcePlusPlus(TextPolicyGradient):
    """REINFORCE++ (Hu et al. 2025): reward to go, whitened over the rollout; `estimator="reinforce++_baseline"` for its group form."""

    __module__ = "agents"
    _defaults: ClassVar[PolicyGradientArguments] = {
        "estimator": "reinforce++",
        "n_epochs": 2,  # in the only step of a first pass no ratio is clipped: all are 1
    }
