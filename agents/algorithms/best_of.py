"""Best of n: write n texts, keep the one that the reward likes best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from textrl_env import Episode, Prompt
from textrl_env.reward_model import as_reward_model, checked_scores

from ..generation.text_generation import generate
from ..policies.transformer_policy import TransformerPolicy


class Best(NamedTuple):
    """The best of n responses to a prompt.

    Attributes:
        response: Its text.
        score: Its score.
        scores: Of all n, shape (n,).
    """

    response: str
    score: float
    scores: np.ndarray


def best_of_n(
    policy: TransformerPolicy, tokenizer: Any, prompts: Sequence[str | Prompt], n: int, reward: Any, max_new_tokens: int, **settings: Any
) -> list[Best]:
    """Return the best of `n` responses to each prompt.

    Args:
        policy: The policy that writes.
        tokenizer: The policy's.
        prompts: What the texts start from.
        n: Responses for each.
        reward: What an environment's `reward` takes; it sees texts.
        max_new_tokens: Longest response.
        **settings: Further arguments of `agents.generate`.

    Raises:
        ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"n={n}: write at least one response")
    model = as_reward_model(reward)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    responses = generate(policy, tokenizer, repeated, max_new_tokens, **settings)
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in repeated]
    episodes = [Episode.from_text(prompt, response) for prompt, response in zip(texts, responses, strict=True)]
    scores = np.asarray(checked_scores(model, episodes), float).reshape(len(prompts), n)
    return [Best(responses[row * n + int(own.argmax())], float(own.max()), own) for row, own in enumerate(scores)]


def kl_bound(n: int) -> float:
    """Return the most that best-of-n can be away from its policy, in nats: log n - (n - 1) / n.

    Reached where no two texts score alike (Beirami et al. 2024).
    """
    return float(np.log(n) - (n - 1) / n)


def kl_of_best(scores: np.ndarray, n: int) -> float:
    """Estimate how far best-of-n is from its policy, in nats, by the scores of the policy's texts.

    Best-of-n weighs a text y by w = (F(r)^n - F(r-)^n) / P(r), r its score and F(r), F(r-) the probabilities that a text of the policy
    scores at most r, and less; KL is the mean of log w over what best-of-n writes.  F is taken from the scores at hand, so ties count in
    full.  Few scores give a low estimate: where all differ, 0.04 nats less than log n - (n - 1) / n with m = n, 0.01 less with m = 2n.

    Args:
        scores: Of m texts of the policy to each prompt, shape (prompts, m).
        n: Texts that one is chosen from.
    """
    total = 0.0
    for row in np.asarray(scores, float):
        _, counts = np.unique(row, return_counts=True)
        upto = counts.cumsum() / len(row)
        share, chosen = counts / len(row), np.diff(upto**n, prepend=0.0)
        total += float((chosen * np.log(chosen / share)).sum())
    return total / len(scores)
