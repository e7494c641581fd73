"""The worth of a text: reward models, preference data and their training.

`make`, `register` and `list` work on the one table of reward models, which lives in `textrl_env`.
"""

from textrl_env.reward_model import RewardError, RewardFunction, RewardModel
from textrl_env.reward_model import list_rewards as list
from textrl_env.reward_model import make_reward as make
from textrl_env.reward_model import register_reward as register

__all__ = ["RewardError", "RewardFunction", "RewardModel", "list", "make", "register"]
