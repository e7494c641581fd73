"""Agents of Stable-Baselines3 and sb3-contrib, with policies of their own, on the environment as it is.

The toy: write sevens, six tokens at most; a text scores a third for each.  For MaskablePPO the environment also has a
constraint, an odd digit and an even one in turn, so that three sevens are the most; it asks the environment for the legal tokens
(`action_masks`).  An agent that ignores masks may play there too, but an illegal token ends its text at the score -1.

SB3's MultiInputPolicy would read token ids as magnitudes, so a features extractor embeds them; -1, the padding, becomes 0.
gamma is 1, for a text is scored once, at its end.  DQN and QRDQN bootstrap from the next state; that is right here because a text
always *terminates*, at its length limit too.

    python examples/sb3_agents.py --algorithm maskable-ppo
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import tyro
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

from textrl_env import IntegerTokenizer, Prompt, TextGenerationVecEnv, TextTask


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
        algorithm: Who plays.
        tokens: Tokens that it writes in training.
        seed: Of everything.
    """

    algorithm: Literal["ppo", "a2c", "dqn", "trpo", "maskable-ppo", "qrdqn"] = "ppo"
    tokens: int = 20_000
    seed: int = 0


class TokenEmbeddings(BaseFeaturesExtractor):
    """Embeddings of all prompt and response positions side by side."""

    def __init__(self, observation_space: Any, size: int = 8) -> None:
        width = sum(space.shape[0] for space in observation_space.spaces.values())
        super().__init__(observation_space, features_dim=size * width)
        self.embed = nn.Embedding(int(observation_space["prompt"].high.max()) + 2, size)

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return features of shape (B, size * (P + T))."""
        ids = torch.cat([observations["prompt"], observations["response"]], dim=1).long()
        return self.embed(ids + 1).flatten(1)


def sevens(prompts: list[str], completions: list[str]) -> list[float]:
    """A third for each seven."""
    return [text.split().count("7") / 3 for text in completions]


def make_env(masked: bool) -> VecMonitor:
    """Eight texts side by side; with the constraint for MaskablePPO, without it for the others."""
    constraint = {"regex": "( [1357] [246])*"} if masked else None
    task = TextTask(IntegerTokenizer(8), [Prompt("1 2"), Prompt("3")], max_new_tokens=6, constraint=constraint)
    return VecMonitor(TextGenerationVecEnv(8, task=task, reward=sevens))


def make_agent(config: Config) -> Any:
    """Return the untrained agent."""
    env = make_env(config.algorithm == "maskable-ppo")
    policy = {"features_extractor_class": TokenEmbeddings, "net_arch": [64]}
    common: dict[str, Any] = {"gamma": 1.0, "seed": config.seed, "device": "cpu", "policy_kwargs": policy}
    on_policy = {**common, "n_steps": 48, "batch_size": 128}
    off_policy = {
        **common, "learning_rate": 1e-3, "buffer_size": 20_000, "learning_starts": 500, "train_freq": 4, "target_update_interval": 250
    }  # fmt: skip
    if config.algorithm == "ppo":
        return PPO("MultiInputPolicy", env, learning_rate=1e-3, ent_coef=0.01, **on_policy)
    if config.algorithm == "maskable-ppo":
        return MaskablePPO("MultiInputPolicy", env, learning_rate=1e-3, ent_coef=0.01, **on_policy)
    if config.algorithm == "trpo":
        return TRPO("MultiInputPolicy", env, **on_policy)
    if config.algorithm == "a2c":
        return A2C("MultiInputPolicy", env, n_steps=12, learning_rate=2e-3, ent_coef=0.01, **common)
    kind = {"dqn": DQN, "qrdqn": QRDQN}[config.algorithm]
    return kind("MultiInputPolicy", env, exploration_fraction=0.5, **off_policy)


def main(config: Config) -> tuple[float, float]:
    """Train, and return the mean score of the last hundred texts before and after."""
    agent = make_agent(config)
    agent.learn(1000)
    before = float(np.mean([episode["r"] for episode in agent.ep_info_buffer]))
    agent.learn(config.tokens, reset_num_timesteps=False)
    after = float(np.mean([episode["r"] for episode in agent.ep_info_buffer]))
    print(f"{config.algorithm}: mean score of the last {len(agent.ep_info_buffer)} texts {before:.3f} -> {after:.3f}")
    return before, after


if __name__ == "__main__":
    main(tyro.cli(Config))
