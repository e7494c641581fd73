"""KTO against NumPy, its reference point, and what it learns from."""

import copy

import numpy as np
import pytest
import torch

from agents import KTO
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.algorithms.kto import JudgedText, kto_loss
from agents.models.sequences import TextRecord
from rewards import Preference, Thumb, thumbs_of
from textrl_env import IntegerTokenizer

from ..conftest import LLAMA, VOCAB

THUMBS = [Thumb("1 2", " 3 4", 1.0), Thumb("7", " 8", 0.0), Thumb("4 4", "", 0.8), Thumb("5", " 6 7 8", 0.0)]
TABLE = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 4, "length": 5}
OF_TABLE = [Thumb("1", " 2 3", 1.0), Thumb("2", " 1", 0.0), Thumb("3 1", " 3", 0.75), Thumb("2", " 3 2", 0.0), Thumb("1", "", 1.0)]


def softmax(row):
    exps = np.exp(row - row.max())
    return exps / exps.sum()


def row_of(ids):
    """Where a table of 4 tokens keeps the logits after a text."""
    return sum((token + 1) * 5**place for place, token in enumerate(ids))


def log_prob(table, prompt, response):
    """log p(response | prompt) of a table, and its gradient by the table."""
    value, slope, ids = 0.0, np.zeros_like(table), list(prompt)
    for token in response:
        p = softmax(table[row_of(ids)])
        value += np.log(p[token])
        slope[row_of(ids)] += np.eye(4)[token] - p
        ids.append(token)
    return value, slope


def by_numpy(table, reference, thumbs, beta, weights):
    """Equation 7 of Ethayarajh et al. (2024), and the gradient, in which the reference point is a constant."""
    texts = [([int(i) for i in t.prompt.split()], [*map(int, t.response.split()), 0][:3]) for t in thumbs]
    mismatched = [(prompt, texts[(i + 1) % len(texts)][1]) for i, (prompt, _) in enumerate(texts)]
    point = max(0.0, np.mean([log_prob(table, *text)[0] - log_prob(reference, *text)[0] for text in mismatched]))
    loss, slope = 0.0, np.zeros_like(table)
    for text, thumb in zip(texts, thumbs, strict=True):
        value, own = log_prob(table, *text)
        ratio = value - log_prob(reference, *text)[0]
        up, down = (1 / (1 + np.exp(-beta * sign * (ratio - point))) for sign in (1, -1))
        loss += (weights[0] * thumb.good * (1 - up) + weights[1] * (1 - thumb.good) * (1 - down)) / len(thumbs)
        slope += own * beta * up * down * (weights[1] * (1 - thumb.good) - weights[0] * thumb.good) / len(thumbs)
    return loss, slope, point


@pytest.mark.parametrize("size", [0, 1, 2])
def test_loss_and_gradient_against_numpy(size):
    trainer = KTO(
        TABLE, IntegerTokenizer(4, 0), beta=0.7, desirable_weight=1.3, undesirable_weight=0.9, max_new_tokens=3, micro_batch_size=size
    )
    start, point = trainer.lm.rows.weight.detach().clone(), 0.0
    while point < 0.1:  # a policy that likes the mismatched texts better than the reference does
        with torch.no_grad():
            trainer.lm.rows.weight.copy_(start + torch.randn_like(start))
        table, reference = (m.rows.weight.detach().double().numpy() for m in (trainer.lm, trainer.reference.lm))
        loss, slope, point = by_numpy(table, reference, OF_TABLE, 0.7, (1.3, 0.9))
    assert point > 0.1 and np.abs(slope).max() > 0.01
    assert trainer.evaluate(OF_TABLE) == pytest.approx(loss, abs=1e-6)
    rows = trainer._encode(OF_TABLE)
    assert trainer._mean_loss(rows, backward=True) == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(trainer.lm.rows.weight.grad.numpy(), slope, atol=1e-6)
    trainer.lm.zero_grad()
    trainer.loss_of(OF_TABLE).backward()
    np.testing.assert_allclose(trainer.lm.rows.weight.grad.numpy(), slope, atol=1e-6)


def test_the_reference_point_is_never_negative_and_the_reference_stays():
    trainer = KTO(TABLE, IntegerTokenizer(4, 0), beta=0.7, max_new_tokens=3)
    before = copy.deepcopy(trainer.reference.lm.state_dict())
    assert trainer.evaluate(OF_TABLE) == pytest.approx(0.5, abs=1e-6)  # nothing differs from the reference yet
    with torch.no_grad():
        trainer.lm.rows.weight[:, 0] += 3.0  # texts end early: whatever goes on becomes less likely
    going_on = [thumb for thumb in OF_TABLE if thumb.response]
    table, reference = (m.rows.weight.detach().double().numpy() for m in (trainer.lm, trainer.reference.lm))
    loss, _, point = by_numpy(table, reference, going_on, 0.7, (1.0, 1.0))
    assert point == 0 and trainer.evaluate(going_on) == pytest.approx(loss, abs=1e-6)
    with pytest.warns(TrainingWarning, match="desirable_weight=2 of 2.75 good texts is 5.5 in all, undesirable_weight=1 of 2.25 bad ones"):
        KTO(TABLE, IntegerTokenizer(4, 0), max_new_tokens=3, desirable_weight=2.0).learn([*OF_TABLE[:4], OF_TABLE[0]], 1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.reference.lm.state_dict().items())


def test_what_people_like_becomes_likelier():
    thumbs = [Thumb("1 2", " 3 4", 1.0), Thumb("1 2", " 5", 0.0), Thumb("7", " 8", 1.0), Thumb("7", " 9 10 11", 0.0)]
    trainer = KTO(LLAMA, IntegerTokenizer(VOCAB, 0), learning_rate=1e-2, batch_size=4).learn(thumbs, 40)
    with torch.no_grad():
        ratios = trainer._log_ratios(trainer._records(trainer._encode(thumbs)))
    assert (ratios[::2] > 0.5).all() and (ratios[1::2] < -0.5).all()
    assert trainer._note().startswith(f"loss {trainer.losses[-1]:.3g} reference point ")
    assert trainer.losses[0] == pytest.approx(0.5, abs=1e-6) and trainer.losses[-1] < 0.45


def test_a_mismatched_text_is_no_longer_than_the_model_reads():
    long = [Thumb("1 " * 60, " 2 3", 1.0), Thumb("4", " 5" * 60, 0.0)]  # both fit into 64 tokens; together they do not
    trainer = KTO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=2).learn(long, 1)
    rows = trainer._encode(long)
    assert trainer._num_read(trainer._answered(rows[0], rows[1]).text) == 64
    assert trainer._answered(rows[1], rows[0]).text.actions.tolist() == [2, 3, 0]


def test_texts_as_a_policy_wrote_them():
    reply = [(2, np.array([9, 9]))]
    rows = [
        JudgedText(TextRecord(np.array([1]), np.array([3, 4, 5]), 0, reply), 1.0),
        JudgedText(TextRecord(np.array([2]), np.array([6]), 0), 0.0),
    ]
    trainer = KTO(LLAMA, IntegerTokenizer(VOCAB, 0), beta=0.3).learn(rows, 5)

    def ratio(*tokens_of):
        totals = []
        for lm in (trainer.lm, trainer.reference.lm):
            with torch.no_grad():
                table = lm(torch.tensor([[token for token, _ in tokens_of]])).logits[0, :, :VOCAB].log_softmax(-1)
            totals.append(sum(float(table[place - 1, token]) for place, (token, own) in enumerate(tokens_of) if own))
        return totals[0] - totals[1]

    wrote = [(3, True), (4, True), (9, False), (9, False), (5, True)]
    point = max(0.0, (ratio((1, False), (6, True)) + ratio((2, False), *wrote)) / 2)
    ratios = torch.tensor([ratio((1, False), *wrote), ratio((2, False), (6, True))])
    assert trainer.evaluate(rows) == pytest.approx(float(kto_loss(ratios, torch.tensor([1.0, 0.0]), point, 0.3, (1.0, 1.0))), abs=1e-5)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([Preference("1", " 2", " 3")], TypeError, "is a Preference: pass Thumbs"),
        ([Thumb("", " 2", 1.0)], ValueError, "an empty prompt"),
        ([Thumb("1", " 2", 0.5)], ValueError, "none of 1 texts is judged good or bad"),
        ([Thumb("1", " 2 0 3", 1.0)], ValueError, "holds the end-of-text token before its end"),
    ],
)
def test_what_is_refused(texts, error, message):
    with pytest.raises(error, match=message):
        KTO(LLAMA, IntegerTokenizer(VOCAB, 0)).learn(texts, 1)


def test_settings():
    for wrong in ({"beta": 0.0}, {"desirable_weight": 0.0}, {"undesirable_weight": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            KTO(LLAMA, IntegerTokenizer(VOCAB, 0), **wrong)
    with pytest.raises(ValueError, match="batch_size=1"):
        KTO(LLAMA, IntegerTokenizer(VOCAB, 0), batch_size=1)
    undecided = [*thumbs_of([Preference("1", " 2", " 3")]), Thumb("1", " 4", 0.5)]
    with pytest.warns(TrainingWarning, match="1 of 3 texts are left out: as many judgements say good as bad"):
        KTO(LLAMA, IntegerTokenizer(VOCAB, 0)).learn(undecided, 1)
