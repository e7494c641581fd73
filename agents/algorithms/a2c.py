"""A2C on texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stable_baselines3 import A2C
from stable_baselines3.common.type_aliases import GymEnv

from ..policies.transformer_policy import TransformerPolicy
from .common.text_algorithm import TextAlgorithm
from .common.text_arguments import ActorCriticArguments, WhiteningArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class A2CArguments(ActorCriticArguments, WhiteningArguments, total=False):
    """What `TextA2C` takes."""


class TextA2C(TextAlgorithm, A2C):
    """SB3's A2C on texts: one step of Adam on all texts of a rollout; `train()` is SB3's own.

    Differences from `stable_baselines3.A2C` are those of `TextPPO`; Adam instead of RMSprop; and gae_lambda 0.95, as in PPO, instead of 1.
    """

    __module__ = "agents"
    _arguments = A2CArguments
    _defaults: ClassVar[A2CArguments] = {"learning_rate": 1e-3}  # SB3's 7e-4 is for RMSprop
    _on_ranks = True

    def __init__(self, policy: str | type[TransformerPolicy], env: GymEnv | str, **arguments: Unpack[A2CArguments]) -> None:
        settings = self._complete(arguments)
        whiten = settings.pop("whiten_advantages")
        self._construct(policy, env, {**settings, "use_rms_prop": False}, whiten_advantages=whiten)
