"""Where GRPO comes to rest: its expected update, over all groups of texts, vanishes there."""

import itertools

import numpy as np
import pytest
import torch

from agents import GRPO
from agents.algorithms.common.policy_loss import estimated_kl
from agents.benchmark.studies.sampler_mismatch import texts_of
from agents.evaluation.exact_optimum import distributions
from agents.evaluation.fixed_points import fixed_point, mean_advantages, quantised
from textrl_env.tasks.exact import PROMPTS, TASKS, TokenTree

TEXTS = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]  # three tokens, at most two: of seven texts


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(4)
    paid = dict(zip(TEXTS, rng.normal(size=7), strict=True))
    tree = TokenTree(3, 2, lambda texts: np.array([paid[tuple(row) if row[0] else (0,)] for row in texts.tolist()]))
    reference = [np.log(rng.dirichlet(np.ones(3), size=len(prefixes))) for prefixes in tree.prefixes]
    return tree, paid, reference


def expected_update(policy, paid, reference, beta, group, scaled, by_length):
    """Return the gradient of GRPO's loss, averaged over all groups, as the policy's logits see it."""
    logits = torch.tensor(np.concatenate(policy), requires_grad=True)  # after nothing, after 1, after 2
    own, ref = logits.log_softmax(-1), torch.tensor(np.concatenate(reference))
    of = [torch.stack([own[0 if t == 0 else text[0], token] for t, token in enumerate(text)]) for text in TEXTS]
    of_ref = [torch.stack([ref[0 if t == 0 else text[0], token] for t, token in enumerate(text)]) for text in TEXTS]
    total = 0.0
    if group is None:
        rewards, mass = np.array([paid[text] for text in TEXTS]), np.exp([o.sum().item() for o in of])
        mean = mass @ rewards
        scale = np.sqrt(mass @ (rewards - mean) ** 2) + 1e-4 if scaled else 1.0
        for i, advantage in enumerate((rewards - mean) / scale):
            ratio = (of[i] - of[i].detach()).exp()
            text = advantage * ratio - beta * estimated_kl("k3", of[i], ratio, of_ref[i])
            total = total + mass[i] * (text.mean() if by_length else text.sum())
        return torch.autograd.grad(total, logits)[0]
    for chosen in itertools.product(range(7), repeat=group):
        rewards = np.array([paid[TEXTS[i]] for i in chosen])
        advantages = rewards - rewards.mean()
        if scaled:
            advantages = advantages / (rewards.std(ddof=1) + 1e-4)
        loss = 0.0
        for i, advantage in zip(chosen, advantages, strict=True):
            ratio = (of[i] - of[i].detach()).exp()
            text = advantage * ratio - beta * estimated_kl("k3", of[i], ratio, of_ref[i])
            loss = loss + (text.mean() if by_length else text.sum())
        total = total + torch.exp(sum(of[i].detach().sum() for i in chosen)) * loss
    return torch.autograd.grad(total, logits)[0] / group


@pytest.mark.parametrize(
    ("group", "scaled", "by_length"),
    [
        (2, True, True), pytest.param(3, True, True, marks=pytest.mark.slow), (3, True, False), (2, False, False), (3, False, True),
        (None, True, True), (None, False, False),
    ],
)  # fmt: skip
def test_the_expected_update_vanishes_there_and_nowhere_before(small, group, scaled, by_length):
    tree, paid, reference = small
    beta = 2.0 if group is None else 0.7
    found = fixed_point(tree, reference, beta, group, scaled, by_length)
    there = expected_update(found, paid, reference, beta, group, scaled, by_length)
    assert there.abs().max() < 1e-6
    assert expected_update(reference, paid, reference, beta, group, scaled, by_length).abs().max() > 0.02
    _, best = tree.optimum(reference, beta)
    assert expected_update(best, paid, reference, beta, group, scaled, by_length).abs().max() > 1e-4  # J's optimum is elsewhere


def test_divided_by_a_deviation_that_falls_with_it_a_policy_has_no_rest_before_one_text(small):
    """Below some beta: the less spread is left, the less KL weighs against it."""
    tree, paid, reference = small
    found = fixed_point(tree, reference, 0.5, None, True, True)
    at_rest, most = tree.evaluate(found, reference, 1.0), max(paid.values())
    assert at_rest.score == pytest.approx(most, abs=1e-3)
    assert tree.evaluate(fixed_point(tree, reference, 0.5, None, False, True), reference, 1.0).score < most - 0.01


def test_advantages_by_hand():
    values, points, weights = np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([0.25, 0.75])
    root = np.sqrt(2)
    # of two: 0 beside 0 or 1; 2 beside 0 or 1
    expected = [0.75 * -0.5 / (0.5 * root + 1e-4), 0.25 * 1 / (root + 1e-4) + 0.75 * 0.5 / (0.5 * root + 1e-4)]
    assert mean_advantages(values, points, weights, 2, True) == pytest.approx(expected, abs=1e-12)
    assert mean_advantages(values, points, weights, 4, False) == pytest.approx([-0.75 * 0.75, 1.25 * 0.75], abs=1e-12)


def test_a_distribution_of_few_points_has_the_same_mean():
    rng = np.random.default_rng(0)
    rewards, masses = rng.normal(size=300), rng.dirichlet(np.ones(300))
    points, weights = quantised(rewards, masses, 16)
    assert len(points) <= 16 and weights.sum() == pytest.approx(1) and points @ weights == pytest.approx(rewards @ masses)
    points, weights = quantised(np.array([1.0, 3.0, 1.0]), np.array([0.2, 0.5, 0.3]), 16)
    assert points.tolist() == [1, 3] and weights == pytest.approx([0.5, 0.5])


def test_a_policy_that_swings_is_led_to_rest_by_smaller_steps():
    """On this first policy steps of one half swing for ever; the expected update over all texts vanishes where smaller ones end."""
    task, beta = TASKS["Smooth"], 0.5
    table = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": task.vocab_size, "length": task.length + 1}
    agent = GRPO("TransformerPolicy", task.id, seed=2, policy_kwargs={"model": table}, n_episodes=64, batch_size=64)
    tree = task.tree(1)
    reference = distributions(agent.rollout_buffer.reference, int(PROMPTS[1]), tree.prefixes, task.vocab_size)
    nodes, tokens, offsets, scores = texts_of(tree)
    logits = torch.tensor(np.concatenate(fixed_point(tree, reference, beta, None, True, True)), requires_grad=True)
    own, ref = logits.log_softmax(-1)[nodes, tokens], torch.tensor(np.concatenate(reference))[nodes, tokens]
    lengths = torch.tensor(np.diff(offsets))
    text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    mass = torch.zeros(len(lengths), dtype=own.dtype).index_add(0, text, own.detach()).exp()
    paid = torch.tensor(scores)
    advantages = (paid - mass @ paid) / ((mass @ (paid - mass @ paid) ** 2).sqrt() + 1e-4)
    ratio = (own - own.detach()).exp()
    loss = (mass / lengths)[text] * (advantages[text] * ratio - beta * estimated_kl("k3", own, ratio, ref))
    assert torch.autograd.grad(loss.sum(), logits)[0].abs().max() < 1e-6
