"""Best of n: write n texts, keep the one that pays most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from textrl_env import Prompt

from ..generation.text_generation import play_prompts
from ..policies.transformer_policy import TransformerPolicy


class Best(NamedTuple):
    """The best of n responses to a prompt.

    Attributes:
        response: Its text.
        score: What an environment pays for it in all: the reward's score, rewards of steps, and the penalties among the settings.
        scores: The same of all n, shape (n,).
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
        reward: What an environment's `reward` takes.
        max_new_tokens: Longest response.
        **settings: Further arguments of `agents.generate`, such as `seed`, and fields of `TextTask`, such as `missing_eos_penalty`.

    Raises:
        ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"n={n}: write at least one response")
    repeated = [prompt for prompt in prompts for _ in range(n)]
    episodes, paid = zip(*play_prompts(policy, tokenizer, repeated, max_new_tokens, reward, **settings), strict=True)
    scores = np.asarray(paid).reshape(len(prompts), n)  # (prompts, n)
    return [Best(episodes[row * n + int(own.argmax())].response, float(own.max()), own) for row, own in enumerate(scores)]


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
