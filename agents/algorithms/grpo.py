"""GRPO: group-relative policy optimisation."""

from __future__ import annotations

from typing import ClassVar

from .common.policy_gradient_arguments import PolicyGradientArguments
from .policy_gradient import TextPolicyGradient


class GRPO(TextPolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024), KL in the loss.

    Its normalisation changes the objective: a prompt's reward is divided by its spread.  Dr. GRPO is `estimator="group_mean",
    loss_aggregation="budget"`; DAPO is `clip_range_high=0.28, loss_aggregation="token", skip_equal_groups=True, max_sampling_rounds=4,
    overlong_filtering=True, beta=0.0`, with the task's `soft_max_tokens` for over-long texts; GSPO, GMPO and CISPO are `surrogate=...`;
    GDPO, for sums of rewards, is `estimator="gdpo"`.
    """

    __module__ = "agents"
    _defaults: ClassVar[PolicyGradientArguments] = {
        "estimator": "grpo",
        "n_epochs": 2,  # in the only step of a first pass no ratio is clipped: all are 1
        "loss_aggregation": "sequence",  # this and the next three as in the paper
        "beta": 0.04,
        "kl_in": "loss",
        "kl_estimator": "k3",
    }
