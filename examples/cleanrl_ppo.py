"""PPO in one file, in the style of CleanRL, on the batched environment: nothing here comes from our agents.

The toy: write as many sevens as possible in six tokens.  Three things differ from control tasks.  Observations are token ids
padded with -1, so ids are shifted by one before the embedding.  gamma is 1: a text is scored once, at its end.  The environment
restarts a row in the step in which its text ended (SAME_STEP), so every stored transition is real; the text's score is in
`infos["final_info"]`.  No TimeLimit: it would cut the text before it is scored.

    python examples/cleanrl_ppo.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Categorical

from textrl_env import IntegerTokenizer, Prompt, TextGenerationVectorEnv, TextTask


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
        updates: Rollouts, each followed by an update.
        rows: Texts written side by side.
        steps: Tokens per row and rollout.
        epochs: Passes over a rollout.
        minibatches: Per pass.
        learning_rate: Of Adam.
        gae_lambda: Of the advantages.
        clip: Of the probability ratio.
        entropy: Weight of the entropy bonus.
        seed: Of everything.
    """

    updates: int = 40
    rows: int = 32
    steps: int = 24
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    seed: int = 0


def sevens(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of sevens among six tokens."""
    return [text.split().count("7") / 6 for text in completions]


class Agent(nn.Module):
    """Embeddings of all positions side by side, then two layers for actor and critic."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, 8)  # id 0 is the padding
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(8 * width, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, vocab_size), nn.Linear(64, 1)

    def forward(self, tokens: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Return the distribution over the next token and the value, for ids of shape (B, P + T)."""
        hidden = self.body(self.embed(tokens + 1))
        return Categorical(logits=self.actor(hidden)), self.critic(hidden).squeeze(-1)


def tokens_of(obs: dict[str, np.ndarray]) -> torch.Tensor:
    """Prompt and response side by side, shape (B, P + T)."""
    return torch.as_tensor(np.concatenate([obs["prompt"], obs["response"]], axis=1))


def main(config: Config) -> list[float]:
    """Train, and return the mean score of the texts that ended in each rollout."""
    torch.manual_seed(config.seed)
    task = TextTask(IntegerTokenizer(8), [Prompt("1 2"), Prompt("3")], max_new_tokens=6)
    envs = TextGenerationVectorEnv(config.rows, task=task, reward=sevens)
    agent = Agent(8, task.prompt_width + task.max_new_tokens)
    optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=1e-5)
    obs, _ = envs.reset(seed=config.seed)
    tokens, curve = tokens_of(obs), []
    for update in range(config.updates):
        stored, scores = [], []
        for _ in range(config.steps):
            with torch.no_grad():
                policy, value = agent(tokens)
                action = policy.sample()
            obs, reward, ended, _, infos = envs.step(action.numpy())
            stored.append((tokens, action, policy.log_prob(action), value, torch.as_tensor(reward).float(), torch.as_tensor(ended)))
            tokens = tokens_of(obs)
            if "final_info" in infos:
                scores += infos["final_info"]["score"][infos["_final_info"]].tolist()
        with torch.no_grad():
            last = agent(tokens)[1]
        learn(agent, optimizer, [torch.stack(column) for column in zip(*stored, strict=True)], last, config)
        curve.append(float(np.mean(scores)))
        if update % 5 == 4:
            print(f"update {update + 1:3}  score {curve[-1]:.3f} " + "#" * round(40 * curve[-1]))
    return curve


def learn(agent: Agent, optimizer: torch.optim.Optimizer, batch: list[torch.Tensor], last: torch.Tensor, config: Config) -> None:
    """Take the PPO steps on one rollout; tensors have shape (S, B, ...)."""
    tokens, actions, old_log_probs, values, rewards, ended = batch
    advantages, running, following = torch.zeros_like(rewards), torch.zeros_like(last), last
    for step in reversed(range(len(rewards))):  # nothing flows back over the end of a text
        going_on = (~ended[step]).float()
        delta = rewards[step] + going_on * following - values[step]
        running = delta + config.gae_lambda * going_on * running
        advantages[step], following = running, values[step]
    returns = advantages + values
    flat = [column.flatten(0, 1) for column in (tokens, actions, old_log_probs, advantages, returns)]
    for _ in range(config.epochs):
        for index in torch.randperm(len(flat[0])).chunk(config.minibatches):
            text, action, old, advantage, target = (column[index] for column in flat)
            policy, value = agent(text)
            ratio = (policy.log_prob(action) - old).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage).mean()
            loss = -gain + 0.5 * (value - target).square().mean() - config.entropy * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


if __name__ == "__main__":
    main(tyro.cli(Config))
