"""The worth of a text: reward models, preference data and their training.

`make`, `register` and `list` work on the one table of reward models, which lives in `textrl_env`.  The other names are
imported at first use, so that `import rewards` stays light: the rules and the preference data never need torch.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from textrl_env.reward_model import RewardError, RewardFunction, RewardModel
from textrl_env.reward_model import list_rewards as list
from textrl_env.reward_model import make_reward as make
from textrl_env.reward_model import register_reward as register

if TYPE_CHECKING:
    from .data import Preference, read_preferences, write_preferences
    from .http import HttpReward
    from .judge import JudgeReward
    from .preference import PreferenceRewardModel, fit_preference_model
    from .rules import KeywordReward, LengthReward, RegexReward, VaderReward

_LAZY = {
    "HttpReward": "http",
    "JudgeReward": "judge",
    "KeywordReward": "rules",
    "LengthReward": "rules",
    "Preference": "data",
    "PreferenceRewardModel": "preference",
    "RegexReward": "rules",
    "VaderReward": "rules",
    "fit_preference_model": "preference",
    "read_preferences": "data",
    "write_preferences": "data",
}

__all__ = [
    "HttpReward",
    "JudgeReward",
    "KeywordReward",
    "LengthReward",
    "Preference",
    "PreferenceRewardModel",
    "RegexReward",
    "RewardError",
    "RewardFunction",
    "RewardModel",
    "VaderReward",
    "fit_preference_model",
    "list",
    "make",
    "read_preferences",
    "register",
    "write_preferences",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Iterable[str]:
    return sorted({*globals(), *_LAZY})
