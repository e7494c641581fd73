"""Differential privacy: the accounting against others' accounting, the gradient's unit, and what it costs."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm

from rewards import Preference, fit_preference_model
from rewards.fitting import private_fitting
from rewards.fitting.private_fitting import (
    _Differences,
    _opacus,
    _units,
    epsilon_of,
    features,
    fit_private_model,
    gaussian_epsilon,
    gaussian_noise,
    noise_for,
)
from rewards.models.preference_model import PreferenceRewardModel
from rewards.models.scorers import NgramScorer, PreferenceNetwork, pad
from textrl_env import Episode, make_task

pytest.importorskip("opacus")


def delta_by_integration(noise, steps, epsilon):
    """The hockey-stick divergence of two normal distributions, as its definition says."""
    shift = math.sqrt(steps) / noise
    threshold = epsilon / shift + shift / 2
    return quad(lambda x: norm.pdf(x, shift) - math.exp(epsilon) * norm.pdf(x), threshold, threshold + 40, epsabs=1e-14)[0]


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 30), (20.0, 60)])
def test_epsilon_of_the_gaussian_mechanism(noise, steps):
    for delta in (1e-3, 1e-5):
        epsilon = gaussian_epsilon(noise, steps, delta)
        assert delta_by_integration(noise, steps, epsilon) == pytest.approx(delta, rel=1e-6)
        assert gaussian_noise(epsilon, steps, delta) == pytest.approx(noise, rel=1e-6)
    assert gaussian_epsilon(100.0, 1, 0.4) == 0


def test_another_accountant_agrees():
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    for noise, rate, steps in ((4.0, 1.0, 30), (1.5, 0.1, 100)):
        accountant = PLDAccountant()
        event = dp.GaussianDpEvent(noise) if rate == 1 else dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
        accountant.compose(event, steps)
        assert epsilon_of(noise, 1e-4, rate, steps) == pytest.approx(accountant.get_epsilon(1e-4), abs=0.02 if rate < 1 else 1e-3)
    noise = noise_for(2.0, 1e-4, 0.2, 50)
    assert 1.95 < epsilon_of(noise, 1e-4, 0.2, 50) <= 2.02


def world(number=400, seed=0):
    rng = np.random.default_rng(seed)
    task = make_task("review")
    good, bad = ("superb", "moving", "brilliant"), ("dull", "awkward", "lazy")
    pairs = [
        Preference("the plot", f" was {rng.choice(good)} .", f" was {rng.choice(bad)} .", annotator=f"w{i % 20}") for i in range(number)
    ]
    return task.tokenizer, pairs


def test_features_are_what_the_scorer_multiplies():
    tokenizer, pairs = world(10)
    scorer = NgramScorer(tokenizer.vocab_size, 64)
    torch.nn.init.normal_(scorer.weight)
    rows = PreferenceRewardModel(PreferenceNetwork(tokenizer.vocab_size, 64, None, 0.0), tokenizer, max_tokens=32).encode(
        [p.chosen for p in pairs]
    )
    found = features(scorer, rows).to_dense()
    assert torch.allclose(found @ scorer.weight, scorer(*pad(rows, torch.device("cpu"))), atol=1e-5)
    assert torch.allclose(found.norm(dim=1), torch.ones(10), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_one_gradient_for_each_unit():
    """Chosen and rejected stacked in one batch would clip each response for itself; here a unit has one gradient."""
    torch.manual_seed(0)
    module = _Differences(5)
    torch.nn.init.normal_(module.linear.weight)
    wrapped = _opacus().GradSampleModule(module, batch_first=True, loss_reduction="sum")
    differences = torch.randn(7, 3, 5)
    torch.nn.functional.softplus(-wrapped(differences)).sum().backward()
    sample = module.linear.weight.grad_sample
    assert sample.shape == (7, 1, 5)
    for unit in range(7):
        margin = differences[unit] @ module.linear.weight.detach()[0]
        by_hand = -(torch.sigmoid(-margin)[:, None] * differences[unit]).sum(0)
        assert torch.allclose(sample[unit, 0], by_hand, atol=1e-6)


@pytest.mark.parametrize("unit", ["pair", "annotator"])
def test_without_privacy_it_learns_and_with_little_it_knows_less(unit):
    tokenizer, pairs = world()
    test = world(200, seed=1)[1]

    def accuracy(model):
        chosen, rejected = (
            np.array(model.score([Episode.from_text(p.prompt, getattr(p, s)) for p in test])) for s in ("chosen", "rejected")
        )
        return (chosen > rejected).mean()

    lots, report = fit_private_model(pairs, tokenizer=tokenizer, epsilon=50.0, unit=unit, steps=10)
    assert accuracy(lots) > 0.9 and report.epsilon <= 50 and report.unit == unit and report.delta == report.units**-1.5
    assert (report.units, report.pairs, report.left_out) == ((400, 400, 0) if unit == "pair" else (20, 400, 0))
    _, strict = fit_private_model(pairs, tokenizer=tokenizer, epsilon=0.5, unit=unit, steps=10)
    assert strict.epsilon == pytest.approx(0.5, abs=1e-6) and strict.noise > 20 * report.noise
    plain, _ = fit_preference_model(pairs, tokenizer=tokenizer, trunk=None)
    assert accuracy(plain) > 0.9


def test_it_is_saved_like_any_other(tmp_path):
    tokenizer, pairs = world(40)
    model, _ = fit_private_model(pairs, tokenizer=tokenizer, epsilon=8.0, steps=3, ngram_buckets=64)
    model.save(tmp_path / "m")
    episode = [Episode.from_text("the plot", " was dull .")]
    assert type(model).load(tmp_path / "m").score(episode) == model.score(episode)


def test_noise_comes_from_the_operating_system(monkeypatch):
    """Torch's generator on a CPU would be decided by 32 bits: seeds 2^32 apart gave the same noise."""
    normals = private_fitting.system_normals(200_000)
    assert abs(normals.mean()) < 4 / np.sqrt(len(normals)) and abs(normals.std() - 1) < 4 / np.sqrt(2 * len(normals))
    assert kstest(normals, "norm").pvalue > 1e-4 and np.isfinite(normals).all()
    monkeypatch.setattr(private_fitting.os, "urandom", lambda n: b"\xff" * (n // 2) + b"\x00" * (n // 2))
    high, low = private_fitting.system_normals(2)
    assert high == -low == pytest.approx(norm.isf(2.0**-53), rel=1e-6)  # the largest there are
    monkeypatch.undo()

    def weights(rate, seed=None):
        torch.manual_seed(0)
        np.random.seed(0)
        with monkeypatch.context() as patch:
            if seed is not None:
                patch.setattr(private_fitting.os, "urandom", np.random.default_rng(seed).bytes)
            data = torch.eye(40).to_sparse(), torch.ones(40), torch.zeros(40), [[i] for i in range(40)]
            return private_fitting._descend(*data, noise=1.0, rate=rate, steps=2, clip=0.3, speed=1.0)

    for rate in (1.0, 0.5):
        assert not torch.allclose(weights(rate), weights(rate)) and not torch.allclose(weights(rate, 1), weights(rate, 2))
        assert torch.equal(weights(rate, 1), weights(rate, 1))  # who draws the noise draws the lots too, and nothing else is random
    assert kstest(private_fitting.system_uniforms(200_000), "uniform").pvalue > 1e-4


def test_the_noise_has_the_promised_size():
    """With labels of one half gradients vanish, and the weights are noise alone: lr * C * noise / units in each step."""
    tokenizer, _ = world(1)
    pairs = [Preference("", f" {i}", f" {i}", 0.5) for i in range(20)]
    model, report = fit_private_model(pairs, tokenizer=tokenizer, epsilon=1.0, steps=1, clip=0.5, learning_rate=3.0, ngram_buckets=20_000)
    weight = model.network.parts["ngrams"].weight
    assert (
        weight.std().item() == pytest.approx(3.0 * 0.5 * report.noise / 20, rel=0.03)
        and abs(weight.mean().item()) < 0.03 * weight.std().item()
    )
    again, _ = fit_private_model(pairs, tokenizer=tokenizer, epsilon=1.0, steps=1, clip=0.5, learning_rate=3.0, ngram_buckets=20_000)
    assert not torch.equal(weight, again.network.parts["ngrams"].weight)  # no seed that could be known


@pytest.mark.reports("Private fitting's delta is 1 / N^1.5, where N counts what is protected: comparisons, or annotators")
@pytest.mark.parametrize(("unit", "number", "said"), [("pair", 40, "40 comparisons"), ("annotator", 20, "20 annotators")])
def test_delta_follows_what_is_protected(unit, number, said):
    tokenizer, pairs = world(40)  # of 20 annotators
    _, report = fit_private_model(pairs, tokenizer=tokenizer, epsilon=3.0, unit=unit, steps=2, ngram_buckets=64)
    assert report.delta == pytest.approx(1 / number**1.5) and report.units == number
    assert delta_by_integration(report.noise, 2, 3.0) == pytest.approx(report.delta, rel=1e-4)
    assert str(report) == f"epsilon 3.00 at delta {1 / number**1.5:.1e}, for each of {said}"


@pytest.mark.reports("Margins of comparisons enter a private fit too")
def test_margins_push_scores_apart():
    tokenizer, pairs = world(40)
    gaps = []
    for margin in (0.0, 10.0):
        own = [Preference(p.prompt, p.chosen, p.rejected, margin=margin) for p in pairs]
        model, _ = fit_private_model(own, tokenizer=tokenizer, epsilon=500.0, steps=1, ngram_buckets=64, clip=1.5, learning_rate=1.0)
        chosen, rejected = (model.score([Episode.from_text(p.prompt, getattr(p, s)) for p in own]) for s in ("chosen", "rejected"))
        gaps.append(np.subtract(chosen, rejected).mean())
    # one step from 0: the gradient is sigmoid(margin), 1/2 and nearly 1
    assert gaps[1] / gaps[0] == pytest.approx(2, rel=0.05)


@pytest.mark.slow
def test_poisson_draws_may_be_empty():
    tokenizer, pairs = world(12)
    model, report = fit_private_model(pairs, tokenizer=tokenizer, epsilon=3.0, steps=40, sampling_rate=0.02, ngram_buckets=64)
    assert report.sampling_rate == 0.02 and report.epsilon <= 3.02 and math.isfinite(model.network.parts["ngrams"].weight.sum().item())


def test_annotators_are_capped_and_must_be_named():
    _, pairs = world(100)
    groups, left_out = _units(pairs, "annotator", 3)
    assert [len(g) for g in groups] == [3] * 20 and left_out == 40
    with pytest.raises(ValueError, match="names no annotator"):
        _units([Preference("p", "a", "b")], "annotator", 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0},
        {"delta": 0.5},
        {"sampling_rate": 0},
        {"steps": 0},
        {"clip": 0},
        {"unit": "world"},
        {"most_per_annotator": 0, "unit": "annotator"},
    ],
)
def test_numbers_out_of_range(wrong):
    tokenizer, pairs = world(20)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fit_private_model(pairs, tokenizer=tokenizer, **{"epsilon": 1.0, **wrong})
