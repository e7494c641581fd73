"""Where GRPO and its relatives come to rest on an exact task: the policy at which their expected update vanishes.

With KL in the loss, a token of a text with advantage A is pushed by A - beta * log(pi / pi_ref) of the token itself, times the weight w
of a token of that text (1, or 1 / length).  At rest, what tokens are pushed by on average is one number c for all that follow a prefix:

    E[w A | prefix, token] - beta * E[w | prefix, token] * log(pi / pi_ref) = c(prefix),

which gives pi level by level, from the last to the first.  It is not the optimum of the KL-regularised return: values ahead are means where
those of the return are soft maxima, since the loss does not see what a token does to KL later; and divided by the deviation of a group,
A has units of its own, in which beta weighs more or less as that deviation falls or rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from math import factorial

import numpy as np

from textrl_env.tasks.exact import TokenTree

_POINTS = 24  # of the distribution of the others' rewards, if it has more
_GRID = 64  # rewards at which advantages are computed, and interpolated between, if there are more


def fixed_point(
    tree: TokenTree, reference: Sequence[np.ndarray], beta: float, group_size: int | None, scaled: bool, by_length: bool
) -> list[np.ndarray]:
    """Return the log-probabilities of the policy at which the expected update of GRPO vanishes, level by level, (n, V) each.

    Args:
        tree: All texts.
        reference: Its log-probabilities.
        beta: Weight of KL in the loss, > 0.
        group_size: Texts of a prompt that are compared, at least 2; None: so many that they show the whole distribution.
        scaled: Whether advantages are divided by the group's deviation (GRPO), or not (Dr. GRPO).
        by_length: Whether a token weighs 1 / length of its text (`loss_aggregation="sequence"`), or all weigh alike.

    Raises:
        RuntimeError: The search found no rest.
    """
    policy, share, before = list(reference), 0.5, np.inf
    for _ in range(2000):
        rewards, masses = _distribution(tree, policy)
        points, weights = (rewards, masses) if group_size is None else quantised(rewards, masses, _POINTS)
        grid = np.unique(rewards) if len(np.unique(rewards)) <= _GRID else np.linspace(rewards.min(), rewards.max(), _GRID)
        levels = mean_advantages(grid, points, weights, group_size, scaled)
        after = _at_rest(tree, reference, beta, [np.interp(level, grid, levels) for level in tree.rewards], by_length)
        moved = max(float(np.abs(np.exp(new) - np.exp(old)).max()) for new, old in zip(after, policy, strict=True))
        if moved < 1e-8:
            return after
        share = max(0.9 * share, 0.05) if moved >= before else share  # of the step that is taken: of too large a one, the policy swings
        before = moved
        mixed = [share * new + (1 - share) * old for new, old in zip(after, policy, strict=True)]
        policy = [level - np.logaddexp.reduce(level, 1, keepdims=True) for level in mixed]
    raise RuntimeError(f"no policy at rest was found: the last step still moved a probability by {moved:.1g}")


def mean_advantages(values: np.ndarray, points: np.ndarray, weights: np.ndarray, group_size: int | None, scaled: bool) -> np.ndarray:
    """Return the expected advantage of texts with these rewards, shape (n,), where the group's others are drawn from a distribution.

    Args:
        values: Rewards, shape (n,).
        points: Rewards that the others may have, shape (m,).
        weights: Their probabilities, shape (m,).
        group_size: k, or None, see `fixed_point`.
        scaled: Whether it is divided by the group's deviation.
    """
    if group_size is None:
        mean = points @ weights
        return (values - mean) / (np.sqrt(weights @ (points - mean) ** 2) + 1e-4 if scaled else 1.0)
    others = group_size - 1
    if not scaled:
        return (values - points @ weights) * others / group_size
    chosen = np.array(list(combinations_with_replacement(range(len(points)), others)))  # (M, k - 1), ascending
    counts = (chosen[:, :, None] == np.arange(len(points))).sum(1)  # (M, m)
    ways = factorial(others) / np.vectorize(factorial)(counts).prod(1)  # (M,)
    sums, squares = points[chosen].sum(1), (points[chosen] ** 2).sum(1)  # (M,) each, of the others
    mean = (values[:, None] + sums) / group_size  # (n, M)
    deviation = values[:, None] - mean
    spread = deviation**2 + squares - 2 * mean * sums + others * mean**2  # (n, M): sum of squares around the mean
    advantages: np.ndarray = (deviation / (np.sqrt(spread.clip(0) / others) + 1e-4)) @ (ways * weights[chosen].prod(1))
    return advantages


def quantised(rewards: np.ndarray, masses: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a distribution of at most `number` points and their probabilities: the same one, or the means of its parts of equal mass."""
    values, index = np.unique(rewards, return_inverse=True)
    mass = np.bincount(index, masses)
    if len(values) <= number:
        return values, mass
    part = np.minimum((number * (mass.cumsum() - mass / 2)).astype(int), number - 1)  # of each value
    weights = np.bincount(part, mass, number)
    kept = weights > 0
    return np.bincount(part, mass * values, number)[kept] / weights[kept], weights[kept]


def _distribution(tree: TokenTree, policy: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the reward of each text, and its probability."""
    reach, rewards, masses = np.ones(1), [], []
    for level, paid in zip(policy, tree.rewards, strict=True):
        mass = reach[:, None] * np.exp(level)  # (n, V)
        ends = ~np.isnan(paid)
        rewards.append(paid[ends])
        masses.append(mass[ends])
        reach = mass[:, 1:].ravel()
    return np.concatenate(rewards), np.concatenate(masses)


def _at_rest(
    tree: TokenTree, reference: Sequence[np.ndarray], beta: float, advantages: Sequence[np.ndarray], by_length: bool
) -> list[np.ndarray]:
    """Return the policy at rest for given advantages of finished texts, level by level, NaN where texts go on."""
    policy: list[np.ndarray] = []
    pushed = weight = np.zeros(0)  # means over what the policy writes after each prefix of the level below
    for t in reversed(range(tree.length)):
        ends, own = ~np.isnan(tree.rewards[t]), 1 / (t + 1) if by_length else 1.0
        push, w = np.where(ends, own * advantages[t], 0.0), np.where(ends, own, 0.0)  # (n, V) each
        if t < tree.length - 1:
            push[:, 1:], w[:, 1:] = pushed.reshape(len(push), -1), weight.reshape(len(push), -1)
        low, high = push.min(1, keepdims=True), push.max(1, keepdims=True)  # (n, 1): of c, at which probabilities add up to 1
        for _ in range(60):
            c = (low + high) / 2
            more = np.logaddexp.reduce(reference[t] + (push - c) / (beta * w), 1, keepdims=True) > 0
            low, high = np.where(more, c, low), np.where(more, high, c)
        level = reference[t] + (push - c) / (beta * w)
        policy.insert(0, level - np.logaddexp.reduce(level, 1, keepdims=True))
        p = np.exp(policy[0])
        pushed, weight = (p * push).sum(1), (p * w).sum(1)  # (n,) each
    return policy
