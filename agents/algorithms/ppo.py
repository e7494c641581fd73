"""PPO on texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv

from ..policies.transformer_policy import TransformerPolicy
from .common.text_algorithm import TextAlgorithm
from .common.text_arguments import ClippedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ClippedText(TextAlgorithm):
    """The constructor of `TextPPO` and `TextMaskablePPO`; stands before the library's class among their bases."""

    _arguments = ClippedArguments
    _on_ranks = True

    def __init__(self, policy: str | type[TransformerPolicy], env: GymEnv | str, **arguments: Unpack[ClippedArguments]) -> None:
        settings = self._complete(arguments)
        self._construct(policy, env, settings, whiten_advantages=True)


class TextPPO(ClippedText, PPO):
    """SB3's PPO with the defaults that texts need; `train()` is SB3's own.

    Rollouts are `n_episodes` whole texts, so nothing is bootstrapped; minibatches are whole texts; advantages are whitened once, over
    the rollout; rewards are shaped by KL to a frozen reference.
    """

    __module__ = "agents"
