"""Conservative and robust DPO, SimPO, and margins of all pairs, against the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from agents import DPO
from agents.algorithms.dpo import smoothed
from rewards.preferences.preference import Preference
from textrl_env import IntegerTokenizer

from ..conftest import LLAMA, VOCAB

PAIRS = [Preference("1 2", " 3 4", " 5"), Preference("7", " 8", " 9 10 11"), Preference("4 4", "", " 6", label=0.9, margin=0.4)]


def trainer_of(**settings):
    trainer = DPO(LLAMA, IntegerTokenizer(VOCAB, 0), learning_rate=1e-2, max_new_tokens=4, **settings)
    with torch.no_grad():
        for parameter in trainer.lm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return trainer


def log_prob(lm, prompt, response):
    """log p(response | prompt) by transformers, and the number of its tokens."""
    ids, n = [int(t) for t in (prompt + response).split()], len(prompt.split())
    ids.append(0)
    with torch.no_grad():
        table = lm(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(table[t - 1, ids[t]]) for t in range(n, len(ids))), len(ids) - n


def differences(trainer, pair):
    """log(pi / pi_ref) of the chosen text minus that of the other, and the same of log pi per token."""
    (own, n), (other, m) = (log_prob(trainer.lm, pair.prompt, text) for text in (pair.chosen, pair.rejected))
    base = [log_prob(trainer.reference.lm, pair.prompt, text)[0] for text in (pair.chosen, pair.rejected)]
    return own - base[0] - (other - base[1]), own / n - other / m


def log_loss(x):
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x))


def dpo_by_paper(h, label, e):
    """Mitchell (2023): labels that are wrong with probability e; those of the file are probabilities already."""
    up, down = (1 - e) * log_loss(h) + e * log_loss(-h), (1 - e) * log_loss(-h) + e * log_loss(h)
    return label * up + (1 - label) * down


def robust_by_paper(h, label, e):
    """Chowdhury, Kini and Natarajan (2024): the loss whose mean over the noise is that without it."""
    up, down = ((1 - e) * log_loss(x) - e * log_loss(-x) for x in (h, -h))
    return (label * up + (1 - label) * down) / (1 - 2 * e)


@pytest.mark.parametrize("e", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("loss", "by_paper"), [("sigmoid", dpo_by_paper), ("robust", robust_by_paper)])
def test_noisy_labels_by_hand(loss, by_paper, e):
    trainer = trainer_of(beta=0.3, loss=loss, label_smoothing=e, gamma=0.2)
    expected = [by_paper(0.3 * differences(trainer, pair)[0] - pair.margin - 0.2, pair.label, e) for pair in PAIRS]
    assert np.ptp(expected) > 0.1
    assert trainer.evaluate(PAIRS) == pytest.approx(np.mean(expected), abs=1e-6)


def test_robust_dpo_of_noisy_labels_is_dpo_of_clean_ones_on_average():
    """Over all ways in which labels can be turned round, as often as they are; conservative DPO has another loss."""
    e, pair = 0.2, Preference("1 2", " 3 4", " 5")
    turned = Preference("1 2", " 5", " 3 4")
    expected = trainer_of(beta=0.3)
    clean = expected.evaluate([pair])
    for loss in ("robust", "sigmoid"):
        trainer = trainer_of(beta=0.3, loss=loss, label_smoothing=e)
        trainer.lm.load_state_dict(expected.lm.state_dict())
        mean = (1 - e) * trainer.evaluate([pair]) + e * trainer.evaluate([turned])
        assert (mean == pytest.approx(clean, abs=1e-6)) == (loss == "robust")


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9, 1.0])
def test_one_takes_out_what_the_other_puts_in(robust, p):
    label = torch.tensor([p], dtype=torch.float64)
    assert float(smoothed(smoothed(label, 0.3, robust), 0.3, not robust)) == pytest.approx(p, abs=1e-12)


def test_simpo_by_hand():
    """Meng, Xia and Chen (2024), with the labels and margins of pairs."""
    trainer = trainer_of(loss="simpo")
    assert (trainer.beta, trainer.gamma) == (2.0, 1.0) and trainer.reference.lm is trainer.lm
    for settings in ({}, {"beta": 2.5, "gamma": 0.3}):
        trainer = trainer_of(loss="simpo", **settings)
        expected = []
        for pair in PAIRS:
            h = trainer.beta * differences(trainer, pair)[1] - trainer.gamma - pair.margin
            expected.append(pair.label * log_loss(h) + (1 - pair.label) * log_loss(-h))
        assert trainer.evaluate(PAIRS) == pytest.approx(np.mean(expected), abs=1e-6)
    learned = trainer.learn(PAIRS, 20)
    assert learned.losses[-1] < learned.losses[0]


def test_ipo_learns_smoothed_labels():
    trainer = trainer_of(beta=0.3, loss="ipo", label_smoothing=0.1)
    (pair,) = PAIRS[:1]
    assert trainer.evaluate([pair]) == pytest.approx((differences(trainer, pair)[0] - 0.8 / 0.6) ** 2, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge': beta must be positive, the loss one of sigmoid, ipo, robust, simpo"),
        ({"label_smoothing": 0.5}, r"label_smoothing=0.5, gamma=0.0: must be in \[0, 0.5\)"),
        ({"gamma": -1.0}, "gamma=-1.0: must be"),
        ({"loss": "ipo", "gamma": 1.0}, "IPO has a target of its own"),
        ({"loss": "simpo", "reference": LLAMA}, "compares with no reference"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(**settings)
