"""RLOO: REINFORCE leave-one-out."""

from .policy_gradient import TextPolicyGradient


class RLOO(TextPolicyGradient):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a text's baseline is the mean return of its prompt's other texts.

    It is `TextPolicyGradient` under the paper's name, with the same defaults.
    """

    __module__ = "agents"
