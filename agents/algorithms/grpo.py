"""GRPO: group-relative policy optimisation."""

from __future__ import annotations

from typing import Any, Literal

from .policy_gradient import Aggregation, KLIn, TextPolicyGradient


class GRPO(TextPolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024), KL in the loss.

    Its normalisation changes the objective: a prompt's reward is divided by its spread.  Dr. GRPO is `estimator="group_mean",
    loss_aggregation="budget"`; DAPO is `clip_range_high=0.28, loss_aggregation="token", skip_equal_groups=True,
    max_sampling_rounds=4, beta=0.0`, with the task's `soft_max_tokens` for over-long texts.
    """

    __module__ = "agents"

    def __init__(
        self,
        policy: Any,
        env: Any,
        estimator: str = "grpo",
        n_epochs: int = 2,
        loss_aggregation: Aggregation = "sequence",
        beta: Any = 0.04,
        kl_in: KLIn = "loss",
        kl_estimator: Literal["k2", "k3", "full"] = "k3",
        **settings: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            estimator,
            n_epochs=n_epochs,
            loss_aggregation=loss_aggregation,
            beta=beta,
            kl_in=kl_in,
            kl_estimator=kl_estimator,
            **settings,
        )
