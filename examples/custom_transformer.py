"""A GPT of one's own, in one file, trained from scratch through the environment.

`Nano` is nanoGPT-sized: pre-norm blocks, rotary positions, SDPA attention, a static key-value cache that the policy hands in.
It learns to count: from "3 4 5" it must go on "6 7 8 9" and stop; the reward is the share of numbers that are right.

    python examples/custom_transformer.py --timesteps 60000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from agents import TextPPO
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv


class Block(nn.Module):
    """Attention and a perceptron, each added to what comes in."""

    def __init__(self, index: int, width: int, heads: int) -> None:
        super().__init__()
        self.index, self.heads = index, heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            k, v = cache.update(self.index, k, v)  # (B, H, K, Dh): all that the mask speaks of
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of features by an angle that grows with the position (RoPE, Su et al. 2021)."""
    one, two = x.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


class Nano(nn.Module):
    """A decoder-only transformer that follows `agents.LanguageModel`."""

    def __init__(
        self, vocab_size: int, width: int = 128, layers: int = 4, heads: int = 4, context_length: int = 256, eos_token_id: int = 0
    ) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size, self.context_length, self.eos_token_id = vocab_size, width, context_length, eos_token_id
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(index, width, heads) for index in range(layers))
        self.norm = nn.RMSNorm(width)
        self.apply(self._initialise)
        for block in self.blocks:  # GPT-2: the sum of 2 * layers branches keeps its size
            nn.init.normal_(block.out.weight, std=0.02 / (2 * layers) ** 0.5)
            nn.init.normal_(block.down.weight, std=0.02 / (2 * layers) ** 0.5)
        self.register_buffer("frequencies", 10_000.0 ** -torch.linspace(0, 1, width // heads // 2 + 1)[:-1], persistent=False)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids: Tensor, positions: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return hidden states, shape (B, L, D); see `agents.LanguageModel` for the arguments."""
        angles = (positions[..., None] * self.frequencies)[:, None]  # (B, 1, L, Dh / 2)
        rotation = angles.cos(), angles.sin()
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, rotation, mask, cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits; the head is the embedding."""
        return hidden @ self.embedding.weight.T


def counted(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Share of the next four numbers that were written where they belong, minus 0.1 for each number too many."""
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        last, written = int(prompt.split()[-1]), [int(number) for number in completion.split()]
        right = sum(number == last + 1 + i for i, number in enumerate(written[:4]))
        scores.append(right / 4 - 0.1 * max(len(written) - 4, 0))
    return scores


@dataclass
class Config:
    """Settings.

    Attributes:
        timesteps: Tokens to write in training.
        seed: Of everything.
    """

    timesteps: int = 60_000
    seed: int = 0


def main(config: Config) -> float:
    """Train, and return the mean score of the last 100 texts."""
    prompts = [Prompt(f"{n} {n + 1} {n + 2}") for n in range(1, 10)]
    task = TextTask(IntegerTokenizer(16, eos_token_id=0), prompts, max_new_tokens=6)
    env = TextGenerationVecEnv(64, task=task, reward=counted)
    policy = {"model": {"class": "custom_transformer:Nano", "vocab_size": 16, "width": 64, "layers": 2, "context_length": 16}}
    agent = TextPPO(
        "TransformerPolicy",
        env,
        learning_rate=5e-3,
        n_episodes=128,
        batch_size=32,
        beta=0.0,
        ent_coef=0.03,
        seed=config.seed,
        policy_kwargs=policy,
    )
    agent.learn(config.timesteps, progress_bar=True)
    score = float(np.mean([episode["r"] for episode in agent.ep_info_buffer]))
    print(f"mean score of the last {len(agent.ep_info_buffer)} texts: {score:.2f}")
    return score


if __name__ == "__main__":
    main(tyro.cli(Config))
