"""The exact tasks against brute force over all texts, one by one."""

import copy
import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from agents.evaluation.exact_optimum import Table, distributions, optimality_gap
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm
from textrl_env.tasks.exact import TASKS, ExactTask, TokenTree, smooth

from ..conftest import LLAMA


def texts_of(vocab_size, length):
    """All finished texts: tokens above 0, then 0, or full length."""
    for n in range(length + 1):
        for tokens in itertools.product(range(1, vocab_size), repeat=n):
            yield (*tokens, 0) if n < length else tokens


def log_prob(policy, vocab_size, text):
    total, index = 0.0, 0
    for t, token in enumerate(text):
        total += policy[t][index, token]
        index = index * (vocab_size - 1) + token - 1
    return total


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    task = ExactTask("Test", smooth, 4, 3)
    tree = task.tree(0)
    policies = [[np.log(rng.dirichlet(np.ones(4), size=len(p))) for p in tree.prefixes] for _ in range(2)]
    return task, tree, *policies


def brute(task, policy, reference, beta):
    score = kl = mass = tilted = 0.0
    for text in texts_of(4, 3):
        padded = np.array([[*text, 0, 0, 0][:3]])
        reward = float(task.rewards(0, padded)[0])
        p, q = math.exp(log_prob(policy, 4, text)), math.exp(log_prob(reference, 4, text))
        mass += p
        score += p * reward
        kl += p * math.log(p / q)
        tilted += q * math.exp(reward / beta)
    return mass, score, kl, beta * math.log(tilted)


def test_values_and_optimum_by_brute_force(small):
    task, tree, policy, reference = small
    beta = 0.3
    mass, score, kl, optimum = brute(task, policy, reference, beta)
    assert mass == pytest.approx(1)
    found = tree.evaluate(policy, reference, beta)
    assert found == pytest.approx((score - beta * kl, score, kl), abs=1e-12)
    best, star = tree.optimum(reference, beta)
    assert best == pytest.approx(optimum, abs=1e-12)
    assert tree.evaluate(star, reference, beta).objective == pytest.approx(optimum, abs=1e-12)
    # J* - J(pi) = beta * KL(pi || pi*)
    assert tree.evaluate(policy, star, 1.0).kl * beta == pytest.approx(best - found.objective, abs=1e-12)
    for text in texts_of(4, 3):
        reward = float(task.rewards(0, np.array([[*text, 0, 0, 0][:3]]))[0])
        expected = log_prob(reference, 4, text) + (reward - optimum) / beta
        assert log_prob(star, 4, text) == pytest.approx(expected, abs=1e-10)


def test_no_search_finds_a_better_policy(small):
    """A general optimiser over all logits ends at J*."""
    _task, tree, _, reference = small
    shapes = [r.shape for r in reference]

    def objective(flat):
        levels, at = [], 0
        for n, v in shapes:
            logits = flat[at : at + n * v].reshape(n, v)
            levels.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
            at += n * v
        return -tree.evaluate(levels, reference, 0.3).objective

    found = minimize(objective, np.zeros(sum(n * v for n, v in shapes)), method="L-BFGS-B")
    assert -found.fun == pytest.approx(tree.optimum(reference, 0.3)[0], abs=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_the_environment_pays_what_the_tree_says(name):
    task = TASKS[name]
    env = gym.make(task.id)
    rng = np.random.default_rng(0)
    for episode in range(60):
        obs, _info = env.reset(seed=episode)
        number, index, tree = int(obs["prompt"][0]) - 1, 0, None
        tree = tree_of(name, number)
        for t in range(task.length):
            token = int(rng.choice(task.vocab_size)) if t else int(rng.integers(1, task.vocab_size))
            _, reward, terminated, truncated, _ = env.step(token)
            expected = tree.rewards[t][index, token]
            assert terminated == (not np.isnan(expected)) and not truncated
            if terminated:
                assert reward == pytest.approx(expected)
                break
            index = index * (task.vocab_size - 1) + token - 1


_TREES = {}


def tree_of(name, number):
    return _TREES.setdefault((name, number), TASKS[name].tree(number))


def test_every_tasks_rewards_are_what_its_name_says():
    for name, task in TASKS.items():
        tree = tree_of(name, 0)
        rewards = np.concatenate([level[~np.isnan(level)] for level in tree.rewards])
        finished = sum(1 for _ in texts_of(task.vocab_size, task.length))
        assert len(rewards) == finished
        if name == "Needle":
            assert sorted(rewards)[-2:] == [0, 6]
        elif name == "Sparse":
            assert set(rewards) == {0, 3} and 0.03 < rewards.mean() < 0.3
        elif name == "Prefix":
            assert set(rewards.astype(int)) == set(range(task.length + 1))
        else:
            assert len(set(rewards)) > 0.9 * finished
        assert not np.array_equal(tree_of(name, 1).rewards[-1], tree.rewards[-1], equal_nan=True)  # each prompt has its own


@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_distributions_and_gaps(kind):
    task = TASKS["Prefix"]
    if kind == "table":
        source = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 6, "length": 5}
    else:
        source = {**LLAMA, "vocab_size": 6}
    policy, reference = (backbone_of(load_lm(source)) for _ in range(2))
    tree = tree_of("Prefix", 1)
    levels = distributions(policy, 2, tree.prefixes, 6)
    for t, index in ((0, 0), (1, 3), (3, 77)):
        ids = torch.tensor([[2, *tree.prefixes[t][index]]])
        logits = policy.lm(ids, torch.arange(t + 1)[None])[0, -1] if kind == "table" else policy.lm(ids).logits[0, -1]
        np.testing.assert_allclose(levels[t][index], logits.detach().double().log_softmax(-1), atol=1e-6)
    gap = optimality_gap(policy, reference, "Prefix", 0.2)
    assert gap.optimum - gap.achieved.objective == pytest.approx(0.2 * gap.kl_to_optimum, abs=1e-9)
    same = optimality_gap(reference, reference, "Prefix", 0.2)
    assert same.closed == pytest.approx(0) and same.achieved.kl == pytest.approx(0) and same.optimum > same.reference
    assert task.length == 4


def test_a_table_has_a_row_for_every_text():
    table = Table(3, 4)
    rows = set()
    for n in range(1, 5):
        for text in itertools.product(range(3), repeat=n):
            ids = torch.tensor([text])
            rows.add(tuple(table(ids, torch.arange(n)[None])[0, -1].tolist()))
    assert len(rows) == 3 + 9 + 27 + 81
    assert isinstance(TokenTree(3, 2, lambda texts: texts.sum(1).astype(float)).rewards[1][0, 1], float)


def test_the_best_score_at_a_kl_by_brute_force(small):
    _, tree, policy, reference = small
    for beta in (0.05, 0.3, 2.0):  # pi* of any beta is the best at its own KL
        found = tree.evaluate(tree.optimum(reference, beta)[1], reference, beta)
        assert tree.best_score(reference, found.kl) == pytest.approx(found.score, abs=1e-6)
    own = tree.evaluate(policy, reference, 1.0)
    best = tree.best_score(reference, own.kl)

    def worst(point):  # the same by a solver that knows nothing of pi*
        found = tree.evaluate(from_point(point, tree), reference, 1.0)
        return -found.score + 1e3 * max(0.0, found.kl - own.kl) ** 2

    start = np.concatenate([level.ravel() for level in reference])
    solved = tree.evaluate(from_point(minimize(worst, start, method="L-BFGS-B", options={"maxiter": 300}).x, tree), reference, 1.0)
    assert solved.kl == pytest.approx(own.kl, abs=2e-3) and solved.score == pytest.approx(best, abs=2e-3)
    assert own.score < best
    most = max(np.nanmax(level) for level in tree.rewards)
    assert tree.best_score(reference, 50.0) == pytest.approx(most, abs=1e-6)  # further than any policy need go
    assert tree.best_score(reference, 0.0) == pytest.approx(tree.evaluate(reference, reference, 1.0).score, abs=1e-5)


def from_point(point, tree):
    levels, start = [], 0
    for prefixes in tree.prefixes:
        part = point[start : start + 4 * len(prefixes)].reshape(-1, 4)
        start += part.size
        levels.append(part - np.log(np.exp(part).sum(1, keepdims=True)))
    return levels


def test_a_policy_is_measured_at_its_own_kl():
    """The optimum for another beta closes less of the gap, and has the best score at its KL."""
    task = TASKS["Smooth"]
    torch.manual_seed(0)
    reference = Table(task.vocab_size, task.length + 1)
    policy = copy.deepcopy(reference)
    for number, prompt in enumerate((1, 2)):
        tree = task.tree(number)
        levels = distributions(backbone_of(reference), prompt, tree.prefixes, task.vocab_size)
        _, best = tree.optimum(levels, 0.1)
        for prefixes, level in zip(tree.prefixes, best, strict=True):
            ids = np.column_stack([np.full(len(prefixes), prompt), prefixes])
            rows = ((ids + 1) * (task.vocab_size + 1) ** np.arange(ids.shape[1])).sum(1)
            policy.rows.weight.data[torch.tensor(rows)] = torch.tensor(level, dtype=torch.float32)
    gap = optimality_gap(backbone_of(policy), backbone_of(reference), "Smooth", 0.5)
    assert gap.of_best_score == pytest.approx(1, abs=1e-4) and gap.closed < 0.9
    gap = optimality_gap(backbone_of(policy), backbone_of(reference), "Smooth", 0.1)
    assert gap.closed == pytest.approx(1, abs=1e-4)
