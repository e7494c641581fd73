import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rewards.fitting.comparisons import PairRows
from rewards.fitting.losses import blend_weights, bradley_terry_loss, pair_accuracy
from rewards.fitting.scorer_training import fit_scorer
from rewards.models.scorers import NgramScorer, pad


def test_loss_by_hand():
    # margins 0, ln 3 and -ln 3: sigmoid = 1/2, 3/4, 1/4
    margins = torch.tensor([0.0, math.log(3), -math.log(3)])
    expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
    assert bradley_terry_loss(margins + 5, torch.full((3,), 5.0)).item() == pytest.approx(expected, abs=1e-6)


def test_loss_gradient_by_hand():
    # d/dm of -log sigmoid(m) is -(1 - sigmoid(m)): -1/4 at ln 3, halved by the mean over 2
    chosen = torch.tensor([math.log(3), 0.0], requires_grad=True)
    bradley_terry_loss(chosen, torch.zeros(2)).backward()
    assert chosen.grad.tolist() == pytest.approx([-0.125, -0.25])


def test_loss_is_finite_far_out():
    assert bradley_terry_loss(torch.tensor([-1000.0]), torch.tensor([0.0])).item() == 1000.0
    assert bradley_terry_loss(torch.tensor([1000.0]), torch.tensor([0.0])).item() == 0.0


def test_accuracy_counts_ties_as_half():
    assert pair_accuracy(torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 1.0, 1.0])) == 2.5 / 4


@pytest.mark.parametrize("function", [bradley_terry_loss, pair_accuracy])
@pytest.mark.parametrize(("a", "b"), [((2,), (3,)), ((3, 1), (3, 1)), ((0,), (0,))])
def test_shapes_must_agree(function, a, b):
    with pytest.raises(ValueError, match=r"\(B,\)"):
        function(torch.zeros(a), torch.zeros(b))


def test_ngram_scorer_by_brute_force():
    scorer = NgramScorer(vocab_size=5, buckets=7)
    scorer.weight.data = torch.randn(12, generator=torch.Generator().manual_seed(0))
    rows = [[1, 2, 1, 2, 1], [4], [0, 0, 3], [3, 1, 4, 2, 0, 1, 2]]
    expected = []
    for row in rows:
        pairs = {5 + (a * 1000003 + b * 7919 + 17) % (2**31 - 1) % 7 for a, b in pairwise(row)}
        features = set(row) | pairs
        expected.append(sum(scorer.weight[f].item() for f in features) / len(features) ** 0.5)
    scores = scorer(*pad([np.array(r) for r in rows], torch.device("cpu")))
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_repeating_a_word_does_not_pay():
    scorer = NgramScorer(vocab_size=3, buckets=64)
    scorer.weight.data.fill_(1.0)
    scores = scorer(*pad([np.array([1] * n) for n in (2, 3, 30)], torch.device("cpu")))
    assert scores.tolist() == pytest.approx([2**0.5] * 3)  # one token and one pair, however often


def test_blend_prefers_the_scorer_that_knows():
    generator = torch.Generator().manual_seed(0)
    good = torch.rand(200, generator=generator) + 0.1
    noise = torch.randn(200, generator=generator)
    weights = blend_weights(torch.stack([good, noise], 1))
    assert weights[0] > 0 and weights[1] == 0
    weights = blend_weights(torch.stack([noise, 100 * good], 1))
    assert weights[0] == 0 and weights[1] > 0


def test_blend_of_two_halves_uses_both():
    # either scorer is right on its own half and silent on the other
    half = torch.cat([torch.ones(50), torch.zeros(50)])
    weights = blend_weights(torch.stack([half, 1 - half], 1))
    assert weights[0] == pytest.approx(weights[1].item(), rel=1e-5) and weights[0] > 0


@pytest.mark.reports("Two scorers are blended by the soft labels and margins that they learned from, down to saying next to nothing")
@pytest.mark.parametrize(("label", "margin"), [(0.6, 0.0), (0.52, 0.0), (0.9, 2.0)])
def test_blend_heeds_labels_and_margins(label, margin):
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 1, (400, 2)) * [1.0, 30.0] + 0.5
    labels, margins = np.full(400, label), np.full(400, margin)

    def loss(weights):
        odds = differences @ weights - margins
        return np.mean(np.logaddexp(0, -odds) + (1 - labels) * odds)

    tensors = {"label": torch.tensor(labels), "margin": torch.tensor(margins)}
    found = blend_weights(torch.tensor(differences), **tensors).numpy()
    best = minimize(loss, np.zeros(2), bounds=[(0, None)] * 2, method="L-BFGS-B").fun
    assert loss(found) == pytest.approx(best, abs=0.01)
    assert margin or loss(found) < math.log(2) + 1e-3 < loss(blend_weights(torch.tensor(differences)).numpy())


def rows_of(token, n, rng):
    return [np.append(rng.integers(2, 20, rng.integers(1, 9)), token) for _ in range(n)]


def test_fit_finds_a_planted_token_and_reports_progress():
    rng = np.random.default_rng(0)
    train, held_out = (PairRows(rows_of(0, n, rng), rows_of(1, n, rng)) for n in (200, 50))
    scorer, seen = NgramScorer(20, 256), []
    losses, best = fit_scorer(
        scorer,
        train,
        held_out,
        epochs=3,
        batch_size=32,
        learning_rate=0.05,
        weight_decay=0.0,
        generator=torch.Generator().manual_seed(0),
        progress=lambda *a: seen.append(a),
    )
    assert pair_accuracy(*held_out.scores(scorer, 16, torch.device("cpu"))) == 1.0
    assert losses[0] > losses[1] > losses[2] and 1 <= best <= 3
    assert [s[0] for s in seen] == list(range(1, 22)) and {s[1] for s in seen} == {21}  # 3 epochs of ceil(200 / 32)


def test_diverged_fit_is_an_error():
    rng = np.random.default_rng(0)
    pairs = PairRows(rows_of(0, 40, rng), rows_of(1, 40, rng))
    scorer = NgramScorer(20, 8)
    scorer.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="lower the learning rate"):
        fit_scorer(
            scorer,
            pairs,
            pairs,
            epochs=1,
            batch_size=8,
            learning_rate=1.0,
            weight_decay=0.0,
            generator=torch.Generator(),
        )
