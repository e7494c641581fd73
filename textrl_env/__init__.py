"""Text generation as a Gymnasium environment: one step emits one token, a reward model scores the finished text."""

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from .chat import ChatTemplate, chat_template
from .core import TextCore
from .env import TextGenerationEnv
from .episode import Episode
from .prompt_order import PromptSampler
from .prompts import GeneratedPrompts, read_prompts, split_prompts
from .reward_model import RewardError, RewardFunction, RewardModel, list_rewards, make_reward, register_reward
from .reward_watch import RewardWarning
from .task import EXACT_TASKS, BaseRecipe, Prompt, TextTask, make_task
from .tokenizer import FileTokenizer, IntegerTokenizer, Tokenizer
from .vector_env import TextGenerationVectorEnv

if TYPE_CHECKING:
    from .sb3_vec_env import TextGenerationVecEnv

__all__ = [
    "BaseRecipe",
    "ChatTemplate",
    "Episode",
    "FileTokenizer",
    "GeneratedPrompts",
    "IntegerTokenizer",
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
    "Tokenizer",
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
        from .sb3_vec_env import TextGenerationVecEnv

        return TextGenerationVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# String entry points keep `spec.to_json()` working.  No `max_episode_steps`: a TimeLimit would cut the text before the
# reward model is asked.
gym.register(
    "textrl/Review-v0",
    entry_point="textrl_env.env:TextGenerationEnv",
    vector_entry_point="textrl_env.vector_env:TextGenerationVectorEnv",
    kwargs={"task": "review"},
)
for _name in EXACT_TASKS:
    gym.register(
        f"textrl/Exact-{_name}-v0",
        entry_point="textrl_env.env:TextGenerationEnv",
        vector_entry_point="textrl_env.vector_env:TextGenerationVectorEnv",
        kwargs={"task": f"exact-{_name.lower()}"},
    )
