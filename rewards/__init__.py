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
from textrl_env.reward_watch import RewardWarning

if TYPE_CHECKING:
    from .bertscore import BertScoreReward
    from .checks import RewardCheck, check
    from .cider import CiderReward
    from .data import Preference, Ranking, write_preferences
    from .diversity import DistinctReward, SelfBleuReward, distinct_n
    from .fitting import fit_preference_model
    from .metrics import BleuReward, ChrfReward, MeteorReward, RougeReward, TerReward
    from .numeric import NumericReward
    from .preference import PreferenceRewardModel
    from .preference_files import read_preference_file, read_preferences, read_rankings
    from .rules import ForbiddenReward, KeywordReward, KnownWordsReward, LengthReward, RegexReward, RepetitionReward, VaderReward
    from .verifiers import ChoiceReward, ExactMatchReward, JsonReward, PythonSyntaxReward

_LAZY = {
    "BertScoreReward": "bertscore",
    "BleuReward": "metrics",
    "ChoiceReward": "verifiers",
    "ChrfReward": "metrics",
    "CiderReward": "cider",
    "DistinctReward": "diversity",
    "ExactMatchReward": "verifiers",
    "ForbiddenReward": "rules",
    "JsonReward": "verifiers",
    "KeywordReward": "rules",
    "KnownWordsReward": "rules",
    "LengthReward": "rules",
    "MeteorReward": "metrics",
    "NumericReward": "numeric",
    "Preference": "data",
    "PreferenceRewardModel": "preference",
    "Ranking": "data",
    "PythonSyntaxReward": "verifiers",
    "RegexReward": "rules",
    "RepetitionReward": "rules",
    "RewardCheck": "checks",
    "RougeReward": "metrics",
    "SelfBleuReward": "diversity",
    "TerReward": "metrics",
    "VaderReward": "rules",
    "fit_preference_model": "fitting",
    "read_preference_file": "preference_files",
    "read_preferences": "preference_files",
    "read_rankings": "preference_files",
    "check": "checks",
    "distinct_n": "diversity",
    "write_preferences": "data",
}

__all__ = [
    "BertScoreReward",
    "BleuReward",
    "ChoiceReward",
    "ChrfReward",
    "CiderReward",
    "DistinctReward",
    "ExactMatchReward",
    "ForbiddenReward",
    "JsonReward",
    "KeywordReward",
    "KnownWordsReward",
    "LengthReward",
    "MeteorReward",
    "NumericReward",
    "Preference",
    "PreferenceRewardModel",
    "PythonSyntaxReward",
    "Ranking",
    "RegexReward",
    "RepetitionReward",
    "RewardCheck",
    "RewardError",
    "RewardFunction",
    "RewardModel",
    "RewardWarning",
    "RougeReward",
    "SelfBleuReward",
    "TerReward",
    "VaderReward",
    "check",
    "distinct_n",
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
