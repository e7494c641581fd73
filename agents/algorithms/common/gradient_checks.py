"""Checks that an update can reach the policy, and did."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...distributed.ranks import Ranks
from ...policies.transformer_policy import TransformerPolicy


def trainable_parameters(policy: TransformerPolicy) -> list[nn.Parameter]:
    """Return the actor's trainable parameters; the optimizer must hold them, and those of the critic.

    Raises:
        RuntimeError: It does not.
    """
    held = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in policy.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise RuntimeError(
            f"{len(missing)} trainable parameters are not in the optimizer, {missing[0]} among them: give adapters to the policy "
            "as policy_kwargs={'lora': ...}, or build the optimizer after adding them"
        )
    return policy.actor_parameters()


def check_gradients(trainable: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Check that an update left a gradient, on any rank.

    Raises:
        RuntimeError: There is none.
    """
    if not any(ranks.gather(any(p.grad is not None and bool(p.grad.any()) for p in trainable))):
        raise RuntimeError(f"no gradient reached the {len(trainable)} trainable parameters of the policy: is the model detached somewhere?")
