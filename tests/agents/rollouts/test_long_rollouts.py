"""Sums over whole rollouts, and whitening where texts differ in length."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from agents import RLOO, SequenceRolloutBuffer, TextPPO, TransformerPolicy
from agents.algorithms.common.advantage_estimators import ESTIMATORS, Rollout
from agents.rollouts.kl_controller import KLController
from agents.rollouts.kl_shaping import KLShaping, RecordedTokens
from agents.rollouts.reward_scaling import ScoreScale, whiten_returns

from ..conftest import LLAMA

TEXTS, TOKENS = 1024, 512


@pytest.fixture(scope="module")
def long_rollout():
    """Rewards of 1024 texts of 512 tokens, most of one sign: the sum over the rollout is 500,000."""
    rewards = np.random.default_rng(0).uniform(0, 2, TEXTS * TOKENS).astype(np.float32)
    offsets = np.arange(0, TEXTS * TOKENS + 1, TOKENS)
    return Rollout(rewards, offsets, np.arange(TEXTS) // 4, np.zeros_like(rewards), 0.0)


@pytest.mark.reports("Reward to go and returns of 1024 texts of 512 tokens are right to 1e-9: summed text by text, in double precision")
def test_sums_of_a_long_rollout(long_rollout):
    exact = long_rollout.rewards.astype(float).reshape(TEXTS, TOKENS)
    to_go = np.array([[row[t:].sum() for t in (0, 1, 300, TOKENS - 1)] for row in exact])  # (1024, 4)
    found = long_rollout.to_go.reshape(TEXTS, TOKENS)[:, [0, 1, 300, TOKENS - 1]]
    np.testing.assert_allclose(found, to_go, rtol=0, atol=1e-9)
    np.testing.assert_allclose(long_rollout.returns, exact.sum(1), rtol=0, atol=1e-9)
    apart = np.concatenate([exact[7] * 1e6, exact[8] * 1e-6])  # a large text leaves its neighbour's digits alone
    pair = Rollout(apart, np.array([0, TOKENS, 2 * TOKENS]), np.zeros(2, int), apart, 0.0)
    assert pair.to_go[TOKENS] == pytest.approx(exact[8].sum() * 1e-6, rel=1e-12)
    centred = ESTIMATORS["rloo"](long_rollout).reshape(TEXTS, TOKENS)[:, 0]
    groups = exact.sum(1).reshape(-1, 4)
    np.testing.assert_allclose(centred, (groups - (groups.sum(1, keepdims=True) - groups) / 3).ravel(), atol=1e-9)


@pytest.mark.reports("Logged KL, its low-variance estimate and entropy are right to 7 digits, also where KL is a millionth of its terms")
def test_logged_numbers_of_a_long_rollout():
    rng, number = np.random.default_rng(1), TEXTS * TOKENS
    log_probs = rng.uniform(-3, -1, number).astype(np.float32)
    reference = (log_probs - 1e-4 * rng.normal(size=number)).astype(np.float32)
    d = log_probs.astype(float) - reference
    shaping = KLShaping(KLController(0.1), ScoreScale(), 24, reference=object())
    shaping.reference_log_probs = lambda tokens: reference
    tokens = RecordedTokens(log_probs, None, None, None, np.arange(0, number + 1, TOKENS))
    stats = shaping(np.zeros(number, np.float32), np.zeros(TEXTS), tokens).stats
    assert stats.kl_per_sequence == pytest.approx(d.sum() / TEXTS, rel=1e-6)
    assert stats.kl_per_token == pytest.approx(d.mean(), rel=1e-6)
    assert stats.kl_per_token_k3 == pytest.approx((d**2 / 2 - d**3 / 6).mean(), rel=1e-6)
    assert stats.entropy == pytest.approx(-log_probs.mean(dtype=float), rel=1e-9)
    assert stats.shaped_return == pytest.approx(-0.1 * d.sum() / TEXTS, rel=1e-5)


@pytest.mark.reports("norm_reward's running deviation is that of all scores to 9 digits, also far from 0")
def test_running_moments_far_from_zero(make_env):
    scores = 10_000 + np.random.default_rng(2).normal(size=4096)
    scale = ScoreScale(norm_reward=True)
    for part in np.split(scores, 64):
        scale(np.zeros(64, np.float32), part)
    assert np.sqrt(scale.squares / scale.count) == pytest.approx(scores.std(), rel=1e-9)
    agent = TextPPO("TransformerPolicy", make_env(), n_episodes=6, batch_size=6, n_epochs=1, policy_kwargs={"model": LLAMA})
    agent.learn(1)
    assert agent.rollout_buffer.scores.dtype == np.float64


def ragged(deviation):
    """Texts of 1 to 60 tokens, the score at the end of each."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 61, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rewards = np.zeros(offsets[-1], np.float32)
    rewards[offsets[1:] - 1] = 2 + deviation * rng.normal(size=200)
    return rewards, offsets, lengths


@pytest.mark.reports("whiten_rewards pays nothing for length: returns of ragged texts keep their mean and their order, with variance 1")
def test_whitened_returns_do_not_depend_on_length():
    rewards, offsets, lengths = ragged(0.5)
    returns = np.add.reduceat(rewards, offsets[:-1])
    white = np.add.reduceat(whiten_returns(rewards, offsets), offsets[:-1])
    np.testing.assert_allclose(white, (returns - returns.mean()) / returns.std() + returns.mean(), rtol=1e-5)
    assert abs(np.corrcoef(white, lengths)[0, 1] - np.corrcoef(returns, lengths)[0, 1]) < 1e-6
    equal, offsets, _ = ragged(0.0)
    np.testing.assert_array_equal(whiten_returns(equal, offsets), equal)  # equal returns have no scale
    # returns 1, 3, 1: mean 5/3, variance 8/9
    by_hand = whiten_returns(np.array([0.0, 1.0, 3.0, 0.5, 0.5]), np.array([0, 2, 3, 5]))
    s, shift = np.sqrt(8 / 9), 5 / 3 * (1 - 1 / np.sqrt(8 / 9))
    np.testing.assert_allclose(by_hand, [0, 1 / s + shift, 3 / s + shift, 0.5 / s, 0.5 / s + shift])


@pytest.mark.reports("With equal scores and whiten_rewards, advantages of texts of any length are equal")
def test_equal_scores_teach_no_length(make_env):
    agent = RLOO(
        "TransformerPolicy", make_env(num_envs=32, reward=lambda completions: [1.0] * len(completions), group_size=4), n_episodes=32,
        beta=0.0, seed=0, policy_kwargs={"model": LLAMA}, rollout_buffer_kwargs={"whiten_rewards": True}, estimator="reinforce++",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="nothing to learn from"):
        agent.learn(1)
    buffer = agent.rollout_buffer
    assert len(set(np.diff(buffer._offsets))) > 4
    assert np.abs(buffer.advantages).max() < 1e-6


@pytest.mark.reports("whiten_rewards is refused where a rollout cuts texts: half a text has no return")
def test_whitening_needs_whole_texts(make_env):
    agent = PPO(
        TransformerPolicy, make_env(num_envs=4), n_steps=5, batch_size=4, gamma=1.0, rollout_buffer_class=SequenceRolloutBuffer,
        rollout_buffer_kwargs={"whiten_rewards": True}, policy_kwargs={"model": LLAMA}, device="cpu", seed=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="whiten_rewards=True needs whole texts"):
        agent.learn(40)
