"""Advantages of policy and critic, against sums by definition and against SB3's own."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer

from agents import RLOO, TextA2C, TextPPO
from agents.policies.transformer_policy import TransformerPolicy
from agents.rollouts.generalised_advantages import Lambdas, generalised_advantages
from agents.rollouts.rollout_buffer import SequenceRolloutBuffer
from agents.rollouts.rollout_samples import Segment
from tests.slow_cases import slow_where

from ..conftest import LLAMA


def make(env, algorithm=TextPPO, **settings):
    arguments = {"n_episodes": 12, "beta": 0.2, "seed": 0, "policy_kwargs": {"model": LLAMA, "temperature": 4.0}, "learning_rate": 1e-2}
    return algorithm("TransformerPolicy", env, **{**arguments, **settings})


def by_definition(rewards, values, lam, gamma=1.0):
    """Advantages of one whole text: sums of discounted temporal differences, term by term."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_with_one_lambda_it_is_sb3s_to_the_digit():
    rng = np.random.default_rng(0)
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.7, 0.0)):
        theirs = RolloutBuffer(11, spaces.Box(0, 1, (1,)), spaces.Discrete(2), "cpu", lam, gamma, 3)
        theirs.rewards, theirs.values = rng.normal(size=(2, 11, 3)).astype(np.float32)
        starts, dones = rng.random((11, 3)) < 0.3, np.array([True, False, True])
        theirs.episode_starts, last = starts.astype(np.float32), torch.tensor(rng.normal(size=3), dtype=torch.float32)
        theirs.compute_returns_and_advantage(last, dones)
        ours = generalised_advantages(theirs.rewards, theirs.values, starts, last.numpy(), dones, gamma, lam)
        assert (ours == theirs.advantages).all() and (ours + theirs.values == theirs.returns).all()


def test_lambda_by_the_length():
    """alpha 1/2: of 4 tokens 1 - 1 / 2, of 8 tokens 1 - 1 / 4, of 2 and 1 tokens 0; the weights of the differences add up to alpha l."""
    lengths = {0: 4, 1: 8, 2: 2, 3: 1}
    segments = [Segment(np.zeros(1), 0, row, slice(1, 1 + length)) for row, length in lengths.items()]
    policy, critic = Lambdas(0.95, 1.0, 0.5).of(segments, (9, 4))
    expected = np.zeros((9, 4))
    expected[1:5, 0], expected[1:9, 1] = 0.5, 0.75
    np.testing.assert_allclose(policy, expected)
    assert critic == 1.0 and Lambdas(0.95, None, 0.5).of(segments, (9, 4))[1] == 0.95
    assert Lambdas(0.95, 1.0).of(segments, (9, 4)) == (0.95, 1.0)
    for lam, length in ((0.5, 4), (0.75, 8)):
        assert sum(lam**k for k in range(2000)) == pytest.approx(0.5 * length)


LAMBDAS = {
    "gae": ({}, lambda n: 0.95, 0.95),
    "decoupled": ({"gae_lambda_critic": 1.0}, lambda n: 0.95, 1.0),
    "both given": ({"gae_lambda": 0.6, "gae_lambda_critic": 0.3}, lambda n: 0.6, 0.3),
    "length-adaptive": ({"gae_alpha": 0.5}, lambda n: max(0, 1 - 1 / (0.5 * n)), 0.95),
    "vapo": ({"gae_alpha": 0.25, "gae_lambda_critic": 1.0}, lambda n: max(0, 1 - 1 / (0.25 * n)), 1.0),
}
CASES = itertools.product((TextPPO, TextA2C), LAMBDAS)  # both algorithms have one buffer


@pytest.mark.parametrize(
    ("algorithm", "name"), slow_where(lambda algorithm, name: algorithm is TextA2C and name not in ("gae", "vapo"), CASES)
)
def test_policy_and_critic_learn_from_their_own(make_env, name, algorithm):
    settings, of_policy, of_critic = LAMBDAS[name]
    own = {"rollout_buffer_kwargs": {"whiten_advantages": False}} | settings
    agent = make(make_env(), algorithm, **own)
    agent.learn(60)
    buffer = agent.rollout_buffer
    cut = buffer._offsets[1:-1]
    texts = [*zip(*(np.split(getattr(buffer, name), cut) for name in ("rewards", "values", "advantages", "returns")), strict=True)]
    assert len({len(text[0]) for text in texts}) > 3
    for rewards, values, advantages, returns in texts:
        np.testing.assert_allclose(advantages, by_definition(rewards, values, of_policy(len(rewards))), atol=1e-6)
        np.testing.assert_allclose(returns, np.add(by_definition(rewards, values, of_critic), values), atol=1e-6)
        if of_critic == 1:  # value pretraining: what was paid from here on, whatever the critic says
            np.testing.assert_allclose(returns, np.cumsum(rewards[::-1])[::-1], atol=1e-5)


def test_loading_and_what_is_refused(make_env, tmp_path):
    make(make_env(), gae_lambda_critic=1.0).save(tmp_path / "agent")
    same = TextPPO.load(tmp_path / "agent", env=make_env())
    assert same.rollout_buffer.lambdas == Lambdas(0.95, 1.0, None)
    changed = TextPPO.load(tmp_path / "agent", env=make_env(), gae_lambda_critic=0.5, gae_alpha=2.0)
    assert changed.rollout_buffer.lambdas == Lambdas(0.95, 0.5, 2.0)
    for settings, message in (
        ({"gae_lambda": 0.9, "gae_lambda_critic": 1.0, "gae_alpha": 0.5}, "leave it no use"),
        ({"gae_alpha": 0.0}, "gae_alpha=0.0"),
        ({"gae_lambda_critic": 1.5}, "gae_lambda_critic=1.5"),
        ({"rollout_buffer_kwargs": {"gae_lambda_critic": 1.5}}, "gae_lambda_critic=1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make(make_env(), **settings)
    with pytest.raises(ValueError, match="gae_alpha: estimator='rloo' has no critic"):
        make(make_env(), RLOO, gae_alpha=0.5)
    stock = PPO(
        TransformerPolicy, make_env(), n_steps=5, batch_size=6, rollout_buffer_class=SequenceRolloutBuffer,
        rollout_buffer_kwargs={"gae_alpha": 0.5}, policy_kwargs={"model": LLAMA}, device="cpu", seed=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="gae_alpha needs whole texts"):
        stock.learn(30)
