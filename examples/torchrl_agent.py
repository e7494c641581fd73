"""REINFORCE with TorchRL (`pip install torchrl`), whose `GymEnv` and `GymWrapper` take our scalar environment as it is.

The toy: write as many sevens as possible in six tokens.  TorchRL's actions are one-hot; its `truncated` is never set here, because
a text that reaches its length limit has *ended* and was scored.

    python examples/torchrl_agent.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import GymWrapper, SerialEnv
from torchrl.modules import OneHotCategorical, ProbabilisticActor

from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextTask


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
        updates: Rollouts, each followed by one gradient step.
        rows: Environments.
        learning_rate: Of Adam.
        seed: Of everything.
    """

    updates: int = 60
    rows: int = 16
    learning_rate: float = 1e-2
    seed: int = 0


class Logits(nn.Module):
    """Embeddings of all positions side by side, then two layers."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, 8)  # id 0 is the padding
        self.body = nn.Sequential(nn.Linear(8 * width, 64), nn.Tanh(), nn.Linear(64, vocab_size))

    def forward(self, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (..., V)."""
        return self.body(self.embed(torch.cat([prompt, response], -1) + 1).flatten(-2))


def sevens(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of sevens among six tokens."""
    return [text.split().count("7") / 6 for text in completions]


def take_step(actor: ProbabilisticActor, optimizer: torch.optim.Optimizer, played: TensorDictBase) -> None:
    """Take a step of REINFORCE on a rollout, shape (B, S), with the mean return as the baseline."""
    reward, done = played["next", "reward"].squeeze(-1), played["next", "done"].squeeze(-1)  # (B, S)
    to_go, running = torch.zeros_like(reward), torch.zeros_like(reward[:, 0])
    for step in reversed(range(reward.shape[1])):  # gamma 1: a text is scored once, at its end
        running = torch.where(done[:, step], reward[:, step], running)
        to_go[:, step] = running
    whole = done.flip(1).cumsum(1).flip(1) > 0  # tokens of texts that ended inside the rollout
    log_prob = actor.get_dist(played).log_prob(played["action"])
    advantage = to_go - to_go[whole].mean()
    loss = -(log_prob * advantage)[whole].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main(config: Config) -> list[float]:
    """Train, and return the mean score of each rollout."""
    torch.manual_seed(config.seed)
    task = TextTask(IntegerTokenizer(8), [Prompt("1 2"), Prompt("3")], max_new_tokens=6)
    env = SerialEnv(config.rows, lambda: GymWrapper(TextGenerationEnv(task, reward=sevens)))
    env.set_seed(config.seed)
    logits = TensorDictModule(Logits(8, task.prompt_width + 6), in_keys=["prompt", "response"], out_keys=["logits"])
    actor = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=OneHotCategorical, spec=env.action_spec, return_log_prob=True)
    optimizer = torch.optim.Adam(actor.parameters(), lr=config.learning_rate)
    curve = []
    for update in range(config.updates):
        with torch.no_grad():
            played = env.rollout(12, actor, break_when_any_done=False)  # texts end and restart inside
        take_step(actor, optimizer, played)
        curve.append(float(played["next", "reward"][played["next", "done"]].mean()))
        if update % 10 == 9:
            print(f"update {update + 1:3}  score {curve[-1]:.3f} " + "#" * round(40 * curve[-1]))
    env.close()
    return curve


if __name__ == "__main__":
    main(tyro.cli(Config))
