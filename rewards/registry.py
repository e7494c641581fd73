"""The table of reward models and the protocol they follow, both of which live in `textrl_env`."""

from textrl_env.reward_model import RewardError, RewardFunction, RewardModel
from textrl_env.reward_model import list_rewards as list
from textrl_env.reward_model import make_reward as make
from textrl_env.reward_model import register_reward as register
from textrl_env.reward_warnings import RewardWarning

__all__ = ["RewardError", "RewardFunction", "RewardModel", "RewardWarning", "list", "make", "register"]
