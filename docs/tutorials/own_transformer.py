"""Your own transformer.

Any causal or encoder-decoder model of transformers is a policy by its folder or hub id. A class of your own is one as well: it maps
ids, positions and a mask to hidden states, and hidden states to logits. `examples/custom_transformer.py` has a whole GPT; here is the
least that trains.
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from agents import TextPPO
from textrl_env import IntegerTokenizer, Prompt, TextGenerationVecEnv, TextTask

# %%
# `vocab_size`, `hidden_size`, `context_length` and `eos_token_id` are read by the policy. This model knows the last token and its
# place, no more; without a `cache` argument in `forward` it decodes by full passes.


class LastToken(nn.Module):
    """Logits from the embedding of the last token and of its position."""

    def __init__(self, vocab_size, width=32, context_length=16, eos_token_id=0):
        super().__init__()
        self.vocab_size, self.hidden_size, self.context_length, self.eos_token_id = vocab_size, width, context_length, eos_token_id
        self.tokens, self.places = nn.Embedding(vocab_size, width), nn.Embedding(context_length, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, input_ids, positions, mask=None):
        """Return hidden states, shape (B, L, D)."""
        return self.mix(self.tokens(input_ids) + self.places(positions))

    def logits(self, hidden):
        """Return logits, shape (..., V)."""
        return self.head(hidden)


# %%
# It is named by its import string, so that a checkpoint can build it again. A class in a program that is run itself has no name to
# import; this line gives it one.
sys.path.insert(0, str(Path(__file__).parent))

# %%
# The task: count on from the prompt.
task = TextTask(IntegerTokenizer(12), [Prompt(str(n)) for n in range(1, 7)], max_new_tokens=4)


def counts(prompts, completions):
    """Share of neighbours that differ by one."""
    rows = [[int(n) for n in f"{p} {c}".split()] for p, c in zip(prompts, completions, strict=True)]
    return [sum(b == a + 1 for a, b in pairwise(row)) / 4 for row in rows]


if __name__ == "__main__":
    torch.manual_seed(0)
    env = TextGenerationVecEnv(64, task, reward=counts)
    model = TextPPO(
        "TransformerPolicy",
        env,
        n_episodes=128,
        batch_size=32,
        learning_rate=5e-3,
        beta=0.0,
        ent_coef=0.01,
        policy_kwargs={"model": {"class": "own_transformer:LastToken", "vocab_size": 12}},
        seed=0,
    )
    for _ in range(4):
        model.learn(5_000, reset_num_timesteps=False)
        print(f"{model.num_timesteps:6,} tokens: score {model.rollout_buffer.stats.score:.2f}")

# %%
# With a cache it decodes at cached speed: [LanguageModel](../api/agents.LanguageModel.md) says what is asked for. What holds for each
# family of models: [families](../../families.md).
