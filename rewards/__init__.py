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
    from .classifier import ClassifierReward, ScalarHeadReward
    from .combine import EnsembleReward, GoldAndProxyReward, MinimumReward, ProductReward, SumReward
    from .data import Preference, Ranking, write_preferences
    from .diversity import DistinctReward, SelfBleuReward, distinct_n
    from .embedding import EmbeddingReward
    from .fitting import fit_preference_model
    from .http import HttpReward
    from .improvement import ImprovementReward
    from .judge import JudgeReward
    from .likelihood import LikelihoodReward
    from .metrics import BleuReward, ChrfReward, MeteorReward, RougeReward, TerReward
    from .numeric import NumericReward
    from .personal import PersonalRewardModel, fit_personal_model
    from .preference import PreferenceRewardModel
    from .preference_files import read_preference_file, read_preferences, read_rankings
    from .private import fit_private_model
    from .rules import ForbiddenReward, KeywordReward, KnownWordsReward, LengthReward, RegexReward, RepetitionReward, VaderReward
    from .transform import ClipReward, DebiasLengthReward, NormalizedReward, ThresholdReward
    from .verifiers import ChoiceReward, ExactMatchReward, JsonReward, PythonSyntaxReward

_LAZY = {
    "BertScoreReward": "bertscore",
    "BleuReward": "metrics",
    "ChoiceReward": "verifiers",
    "ChrfReward": "metrics",
    "CiderReward": "cider",
    "ClassifierReward": "classifier",
    "ClipReward": "transform",
    "DebiasLengthReward": "transform",
    "DistinctReward": "diversity",
    "EmbeddingReward": "embedding",
    "EnsembleReward": "combine",
    "ExactMatchReward": "verifiers",
    "ForbiddenReward": "rules",
    "GoldAndProxyReward": "combine",
    "HttpReward": "http",
    "ImprovementReward": "improvement",
    "JsonReward": "verifiers",
    "JudgeReward": "judge",
    "KeywordReward": "rules",
    "KnownWordsReward": "rules",
    "LengthReward": "rules",
    "LikelihoodReward": "likelihood",
    "MeteorReward": "metrics",
    "MinimumReward": "combine",
    "NormalizedReward": "transform",
    "NumericReward": "numeric",
    "PersonalRewardModel": "personal",
    "Preference": "data",
    "PreferenceRewardModel": "preference",
    "ProductReward": "combine",
    "PythonSyntaxReward": "verifiers",
    "Ranking": "data",
    "RegexReward": "rules",
    "RepetitionReward": "rules",
    "RewardCheck": "checks",
    "RougeReward": "metrics",
    "ScalarHeadReward": "classifier",
    "SelfBleuReward": "diversity",
    "SumReward": "combine",
    "TerReward": "metrics",
    "ThresholdReward": "transform",
    "VaderReward": "rules",
    "check": "checks",
    "distinct_n": "diversity",
    "fit_personal_model": "personal",
    "fit_preference_model": "fitting",
    "fit_private_model": "private",
    "read_preference_file": "preference_files",
    "read_preferences": "preference_files",
    "read_rankings": "preference_files",
    "write_preferences": "data",
}

__all__ = [
    "BertScoreReward",
    "BleuReward",
    "ChoiceReward",
    "ChrfReward",
    "CiderReward",
    "ClassifierReward",
    "ClipReward",
    "DebiasLengthReward",
    "DistinctReward",
    "EmbeddingReward",
    "EnsembleReward",
    "ExactMatchReward",
    "ForbiddenReward",
    "GoldAndProxyReward",
    "HttpReward",
    "ImprovementReward",
    "JsonReward",
    "JudgeReward",
    "KeywordReward",
    "KnownWordsReward",
    "LengthReward",
    "LikelihoodReward",
    "MeteorReward",
    "MinimumReward",
    "NormalizedReward",
    "NumericReward",
    "PersonalRewardModel",
    "Preference",
    "PreferenceRewardModel",
    "ProductReward",
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
    "ScalarHeadReward",
    "SelfBleuReward",
    "SumReward",
    "TerReward",
    "ThresholdReward",
    "VaderReward",
    "check",
    "distinct_n",
    "fit_personal_model",
    "fit_preference_model",
    "fit_private_model",
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
