"""What the mean over a minibatch's tokens does to the gradient, by enumeration: the figures of docs/algorithms.md."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from agents import RLOO
from agents.algorithms.common.policy_loss import token_weights
from textrl_env.tasks.exact import TASKS

from .test_policy_gradient import exact_gradient, expected_update, grouped, make, surrogate, tiny  # noqa: F401  # fixtures

DOCS = Path(__file__).resolve().parents[3] / "docs" / "algorithms.md"
BETA = 0.3


class Enumerated(NamedTuple):
    """All M texts of a task under a table policy: after which prefix each token comes (-1 beyond the text), and the rest per text."""

    states: np.ndarray  # (M, L)
    tokens: np.ndarray  # (M, L)
    policy: np.ndarray  # (prefixes, V) probabilities
    probability: np.ndarray  # (M,)
    rewards: np.ndarray  # (M, L), shaped with KL

    @property
    def lengths(self):
        return (self.states >= 0).sum(1)  # (M,)

    def gradient(self, weights):
        """Return E[sum_t weight_t grad log pi(token_t)] with respect to the table's logits; weights (M, L) or (M, 1)."""
        inside = self.states >= 0
        w = (self.probability[:, None] * weights * inside)[inside]
        states, tokens = self.states[inside], self.tokens[inside]
        gradient = -np.bincount(states, w, len(self.policy))[:, None] * self.policy
        np.add.at(gradient, (states, tokens), w)
        return gradient


def enumerated(vocab_size, length, reward, logits, reference):
    """Lay out all texts; `reward` takes texts padded with 0, `logits` and `reference` return a table for so many prefixes."""
    prefixes = [p for t in range(length) for p in itertools.product(range(1, vocab_size), repeat=t)]
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    texts = [(*p, a) for p in prefixes for a in range(vocab_size) if a == 0 or len(p) == length - 1]
    states, tokens = np.full((len(texts), length), -1), np.zeros((len(texts), length), int)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        states[row, : len(text)] = [number[text[:k]] for k in range(len(text))]
    log_p, log_q = (torch.as_tensor(table(len(prefixes))).double().log_softmax(-1).numpy() for table in (logits, reference))
    inside = states >= 0
    own, other = (np.where(inside, table[states, tokens], 0) for table in (log_p, log_q))  # (M, L)
    rewards = -BETA * (own - other)
    rewards[np.arange(len(texts)), inside.sum(1) - 1] += reward(tokens)
    return Enumerated(states, tokens, np.exp(log_p), np.exp(own.sum(1)), rewards)


def token_mean(task, n, estimator):
    """Return n times the expected update of a minibatch of n texts divided by the number of its tokens.

    A text's own tokens weigh E[1 / (its length + that of n - 1 others)], the others' lengths being drawn by the policy.
    """
    lengths, returns = task.lengths, task.rewards.sum(1)
    of_length, paid = np.bincount(lengths, task.probability), np.bincount(lengths, task.probability * returns)

    def tokens_of(k):
        drawn = np.ones(1)
        for _ in range(k):
            drawn = np.convolve(drawn, of_length)
        return drawn

    def inverse(others):
        return np.array([(others / np.maximum(m + np.arange(len(others)), 1)).sum() for m in range(len(of_length))])[lengths]

    alone = inverse(tokens_of(n - 1))
    if estimator == "rloo":
        baseline = inverse(np.convolve(tokens_of(n - 2), paid))
        return n * task.gradient((returns * alone - baseline)[:, None])
    to_go = np.cumsum(task.rewards[:, ::-1], 1)[:, ::-1]
    return n * task.gradient((to_go - returns @ task.probability) * alone[:, None])


def not_along(found, exact):
    """Return the share of a gradient that is not along the exact one: the sine of their angle."""
    cosine = (found * exact).sum() / np.sqrt((found**2).sum() * (exact**2).sum())
    return float(np.sqrt(1 - cosine**2))


def test_the_formula_equals_brute_force(tiny):  # noqa: F811
    logits, reference, texts, rewards = tiny
    own = {text: reward for text, reward in zip(texts, rewards, strict=True)}

    def reward(tokens):
        return np.array([own[(a,) if a == 0 else (a, b)] for a, b in tokens.tolist()])

    task = enumerated(3, 2, reward, lambda _: logits.detach(), lambda _: reference)
    np.testing.assert_allclose(task.gradient(task.rewards.sum(1)[:, None]), exact_gradient(tiny, BETA).numpy(), atol=1e-9)
    average = task.rewards.sum(1) @ task.probability
    for estimator, n in itertools.product(("rloo", "reinforce"), (2, 3)):
        update = surrogate(estimator, average)
        found = expected_update(tiny, BETA, n, lambda lp, *rest, update=update: update(lp, *rest) / sum(map(len, lp)))
        np.testing.assert_allclose(token_mean(task, n, estimator), n * found.numpy(), atol=1e-9)


@pytest.mark.reports("docs/algorithms.md says how far the default mean over tokens bends the gradient, and which setting does not")
def test_the_figures_in_the_docs():
    documented = DOCS.read_text(encoding="utf-8")
    for n in (4, 16, 64):
        shares = {"reinforce": [], "rloo": []}
        for task in TASKS.values():
            rng = np.random.default_rng(0)
            tables = [lambda k, task=task, rng=rng: rng.normal(size=(k, task.vocab_size))] * 2
            whole = enumerated(task.vocab_size, task.length, lambda texts, task=task: task.rewards(0, texts), *tables)
            exact = whole.gradient(whole.rewards.sum(1)[:, None])
            for estimator, found in shares.items():
                found.append(100 * not_along(token_mean(whole, n, estimator), exact))
        cells = [f"{min(found):.1f} to {max(found):.1f}%" for found in shares.values()]
        assert f"| {n} | {cells[0]} | {cells[1]} |" in documented


@pytest.mark.reports('loss_aggregation="budget" divides by a constant, whatever the texts are: the expected update stays exact')
def test_a_budget_is_a_constant(grouped):  # noqa: F811
    agent = make(RLOO, grouped(), loss_aggregation="budget", n_episodes=16, batch_size=16)
    agent.learn(1)
    sizes = set()
    for texts in (np.arange(4), np.arange(4, 8), np.arange(8, 12)):
        samples = agent.rollout_buffer.samples(texts)
        weights = token_weights("budget", samples.observations, next(agent.rollout_buffer.parts(4))[0].whole, 9)
        assert weights.tolist() == pytest.approx([1 / (4 * 9)] * len(weights))  # 4 texts of at most 9 tokens
        sizes.add(len(weights))
    assert len(sizes) > 1
