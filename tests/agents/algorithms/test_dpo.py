"""DPO, IPO and best-of-n against numbers worked out apart."""

import itertools
import math

import numpy as np
import pytest
import torch

from agents import DPO, best_of_n
from agents.algorithms.best_of import kl_bound
from agents.evaluation.exact_optimum import distributions
from agents.evaluation.policy_texts import make_policy
from rewards.preferences.preference import Preference
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.tasks.exact import TokenTree

from ..conftest import LLAMA, VOCAB

PAIRS = [Preference("1 2", " 3 4", " 5"), Preference("7", " 8", " 9 10 11"), Preference("4 4", "", " 6")]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_loss_by_hand(loss):
    trainer = DPO(LLAMA, IntegerTokenizer(VOCAB, 0), beta=0.3, loss=loss, max_new_tokens=3)
    with torch.no_grad():
        for parameter in trainer.lm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def log_prob(lm, prompt, response):
        ids = [int(t) for t in (prompt + response).split()]
        n = len(prompt.split())
        if len(ids) - n < 3:
            ids.append(0)
        with torch.no_grad():
            table = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(table[t - 1, ids[t]]) for t in range(n, len(ids)))

    expected = []
    for pair in PAIRS:
        ratios = [
            log_prob(trainer.lm, pair.prompt, text) - log_prob(trainer.reference.lm, pair.prompt, text)
            for text in (pair.chosen, pair.rejected)
        ]
        difference = ratios[0] - ratios[1]
        expected.append(math.log1p(math.exp(-0.3 * difference)) if loss == "sigmoid" else (difference - 1 / 0.6) ** 2)
    assert trainer.evaluate(PAIRS) == pytest.approx(np.mean(expected), abs=1e-4)


def test_it_starts_at_log_2_and_leaves_the_reference_alone():
    trainer = DPO(LLAMA, IntegerTokenizer(VOCAB, 0), learning_rate=1e-2)
    before = {name: p.clone() for name, p in trainer.reference.lm.named_parameters()}
    assert trainer.evaluate(PAIRS) == pytest.approx(math.log(2), abs=1e-6)
    trainer.learn(PAIRS, 30)
    assert trainer.losses[-1] < 0.5
    assert all(torch.equal(p, before[name]) for name, p in trainer.reference.lm.named_parameters())


def test_with_bradley_terry_preferences_its_optimum_is_that_of_the_kl_regularised_return():
    """The expected gradient over all pairs of texts, as often as the reference writes and the annotator answers so."""
    beta, rng = 0.5, np.random.default_rng(0)
    rewards = rng.normal(size=(3, 3))
    tree = TokenTree(3, 2, lambda texts: rewards[texts[:, 0], texts[:, 1]])
    trainer = DPO(
        {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 3, "length": 3},
        IntegerTokenizer(3, 0),
        beta=beta,
        max_new_tokens=2,
    )
    reference = distributions(trainer.reference, 1, tree.prefixes, 3)
    _, star = tree.optimum(reference, beta)
    texts = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]

    def probability(levels, text):
        return math.exp(levels[0][0, text[0]] + (levels[1][text[0] - 1, text[1]] if len(text) > 1 else 0.0))

    def gradient():
        total = torch.zeros_like(trainer.lm.rows.weight)
        for one, two in itertools.product(texts, repeat=2):
            scores = [rewards[text[0], text[1] if len(text) > 1 else 0] for text in (one, two)]
            weight = probability(reference, one) * probability(reference, two) / (1 + math.exp(scores[1] - scores[0]))
            loss = trainer._loss([([1], list(one), list(two))])
            total += weight * torch.autograd.grad(loss, trainer.lm.rows.weight)[0]
        return total.abs().max()

    assert gradient() > 0.01
    base = 3 + 1
    with torch.no_grad():
        trainer.lm.rows.weight[2] = torch.from_numpy(star[0][0]).float()  # after the prompt, whose digit is 1 + 1
        for token in (1, 2):
            trainer.lm.rows.weight[2 + (token + 1) * base] = torch.from_numpy(star[1][token - 1]).float()
    np.testing.assert_allclose(distributions(trainer.backbone, 1, tree.prefixes, 3)[1], star[1], atol=1e-6)
    assert gradient() < 1e-6


def test_settings():
    with pytest.raises(ValueError, match="beta=0"):
        DPO(LLAMA, IntegerTokenizer(VOCAB, 0), beta=0)
    with pytest.raises(ValueError, match="empty prompt"):
        DPO(LLAMA, IntegerTokenizer(VOCAB, 0)).learn([Preference("", " 1", " 2")], 1)


def digits(prompts, completions):
    return [float(len(completion)) for completion in completions]


def test_best_of_n():
    tokenizer = IntegerTokenizer(VOCAB, 0)
    task = TextTask(tokenizer, [Prompt("1 2 3")], max_new_tokens=9)
    policy = make_policy(task, LLAMA)
    found = best_of_n(policy, tokenizer, ["1 2 3", "4"], 8, digits, max_new_tokens=9, seed=0)
    assert len(found) == 2 and all(len(best.scores) == 8 and best.score == best.scores.max() for best in found)
    assert found[0].scores.std() > 0
    with pytest.raises(ValueError, match="n=0"):
        best_of_n(policy, tokenizer, ["4"], 0, digits, max_new_tokens=9)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_kl_bound_of_best_of_n_by_enumeration(n):
    """Of a distribution over 40 texts: P(best = i) = F(i)^n - F(i - 1)^n, in the order of scores."""
    p = np.random.default_rng(0).dirichlet(np.full(40, 0.5))
    below = np.concatenate([[0], np.cumsum(p)])
    best = below[1:] ** n - below[:-1] ** n
    kl = float((best * np.log(best / p)).sum())
    assert kl <= kl_bound(n) + 1e-12 and (n == 1 or kl > 0.5 * kl_bound(n))
    if n == 2:  # the formula itself, from all pairs
        pairs = np.zeros(40)
        for i, j in itertools.product(range(40), repeat=2):
            pairs[max(i, j)] += p[i] * p[j]
        np.testing.assert_allclose(best, pairs, atol=1e-12)
