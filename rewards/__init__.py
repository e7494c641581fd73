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
    from .data import Preference, Ranking, write_preferences
    from .fitting import fit_preference_model
    from .preference import PreferenceRewardModel
    from .preference_files import read_preference_file, read_preferences, read_rankings
    from .rules import KeywordReward, LengthReward, RegexReward, VaderReward

_LAZY = {
    "KeywordReward": "rules",
    "LengthReward": "rules",
    "Preference": "data",
    "PreferenceRewardModel": "preference",
    "Ranking": "data",
    "RegexReward": "rules",
    "VaderReward": "rules",
    "fit_preference_model": "fitting",
    "read_preference_file": "preference_files",
    "read_preferences": "preference_files",
    "read_rankings": "preference_files",
    "write_preferences": "data",
}

__all__ = [
    "KeywordReward",
    "LengthReward",
    "Preference",
    "PreferenceRewardModel",
    "Ranking",
    "RegexReward",
    "RewardError",
    "RewardFunction",
    "RewardModel",
    "VaderReward",
    "fit_preference_model",
    "list",
    "make",
    "read_preference_file",
    "read_preferences",
    "read_rankings",
    "register",
    "write_preferences",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Iterable[str]:
    return sorted({*globals(), *_LAZY})
