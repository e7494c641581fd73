"""Text generation as a Gymnasium environment: one step emits one token, a reward model scores the finished text."""

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from .chat import ChatTemplate, chat_template
from .envs.core import TextCore
from .envs.env import TextGenerationEnv
from .envs.token_space import TokenSpace
from .envs.vector_env import TextGenerationVectorEnv
from .episode import Episode
from .prompts.prompt import Prompt
from .prompts.reader import GeneratedPrompts, read_prompts, split_prompts
from .prompts.sampler import PromptSampler
from .reward_model import RewardError, RewardFunction, RewardModel, list_rewards, make_reward, register_reward
from .reward_warnings import RewardWarning
from .task import BaseRecipe, TextTask
from .tasks.ladders import LADDERS, Ladder, environment_ids
from .tasks.registry import EXACT_TASKS, make_task
from .tokenizer import FileTokenizer, IntegerTokenizer, Tokenizer, WordTokenizer

if TYPE_CHECKING:
    from .envs.sb3_vec_env import TextGenerationVecEnv

__all__ = [
    "LADDERS",
    "BaseRecipe",
    "ChatTemplate",
    "Episode",
    "FileTokenizer",
    "GeneratedPrompts",
    "IntegerTokenizer",
    "Ladder",
    "Prompt",
    "PromptSampler",
    "RewardError",
    "RewardFunction",
    "RewardModel",
    "RewardWarning",
    "TextCore",
    "TextGenerationEnv",
    "TextGenerationVecEnv",
    "TextGenerationVectorEnv",
    "TextTask",
    "TokenSpace",
    "Tokenizer",
    "WordTokenizer",
    "chat_template",
    "list_rewards",
    "make_reward",
    "make_task",
    "read_prompts",
    "register_reward",
    "split_prompts",
]


def __getattr__(name: str) -> Any:
    if name == "TextGenerationVecEnv":  # needs Stable-Baselines3, and so torch: only who asks for it pays
        from .envs.sb3_vec_env import TextGenerationVecEnv

        return TextGenerationVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# String entry points keep `spec.to_json()` working.  No `max_episode_steps`: a TimeLimit would cut the text before the
# reward model is asked.
_IDS = {
    "textrl/Review-v0": "review",
    **{f"textrl/Exact-{name}-v0": f"exact-{name.lower()}" for name in EXACT_TASKS},
    **environment_ids(),
}
for _id, _task in _IDS.items():
    gym.register(
        _id,
        entry_point="textrl_env.envs.env:TextGenerationEnv",
        vector_entry_point="textrl_env.envs.vector_env:TextGenerationVectorEnv",
        kwargs={"task": _task},
    )
