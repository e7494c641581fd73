"""Surrogates, filters and entropy control of the policy gradient, against their papers' formulas written text by text."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from agents import GRPO, RLOO, TextPolicyGradient
from agents.algorithms.common.policy_gradient_arguments import Surrogate
from agents.algorithms.common.policy_loss import SURROGATES, Clip, Tokens, pick_tokens
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.algorithms.registry import ALGORITHMS
from agents.distributed.ranks import Ranks
from agents.models.sequences import TextRecord, pack
from tests.slow_cases import slow_but

from ..conftest import LLAMA
from .test_policy_gradient import grouped, make  # noqa: F401  # a fixture

LENGTHS = (1, 3, 2)
OLD = np.array([-1.0, -0.5, -2.0, -0.7, -1.5, -0.1])
NEW = np.array([-1.4, -0.1, -2.3, -0.7, -0.9, -0.3])
ADVANTAGES = np.array([-0.5, 2.0, 2.0, 2.0, -1.0, -1.0])
PICKED = np.array([True, False, True, False, False, True])
LOW, HIGH = 0.3, 0.2


def by_hand(surrogate):
    """Return the gain of each token, and the derivative of the mean over texts of their tokens' mean gain."""
    gains, slopes = [], []
    for text in np.split(np.arange(6), np.cumsum(LENGTHS)[:-1]):
        ratios, advantage, n = np.exp(NEW[text] - OLD[text]), ADVANTAGES[text[0]], len(text)
        inside = [r < 1 + HIGH if advantage > 0 else r > 1 - LOW for r in ratios]
        clipped = [min(r * advantage, min(max(r, 1 - LOW), 1 + HIGH) * advantage) for r in ratios]
        if surrogate in ("ppo", "clip-cov"):
            keep = ~PICKED[text] if surrogate == "clip-cov" else np.ones(n)
            gains += list(keep * clipped)
            slopes += [k * i * r * advantage / n for k, i, r in zip(keep, inside, ratios, strict=True)]
        elif surrogate == "kl-cov":
            gains += [r * advantage - 0.4 * p * abs(math.log(r)) for p, r in zip(PICKED[text], ratios, strict=True)]
            slopes += [(r * advantage - 0.4 * p * np.sign(math.log(r))) / n for p, r in zip(PICKED[text], ratios, strict=True)]
        elif surrogate == "cispo":
            weights = [min(max(r, 1 - LOW), 1 + HIGH) for r in ratios]
            gains += [w * advantage * new for w, new in zip(weights, NEW[text], strict=True)]
            slopes += [w * advantage / n for w in weights]
        elif surrogate == "gspo":
            s = np.prod(ratios) ** (1 / n)
            gains += [min(s * advantage, min(max(s, 1 - LOW), 1 + HIGH) * advantage)] * n
            slopes += [(s < 1 + HIGH if advantage > 0 else s > 1 - LOW) * s * advantage / n] * n
        else:
            bounded = [min(r, 1 + HIGH) if advantage > 0 else max(r, 1 - LOW) for r in ratios]
            mean = np.prod(bounded) ** (1 / n)
            gains += [advantage * mean] * n
            slopes += [i * advantage * mean / n for i in inside]
    return np.array(gains), np.array(slopes) / len(LENGTHS)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogates_and_their_gradients_by_hand(surrogate):
    batch = pack([TextRecord(np.array([3]), np.arange(1, 1 + n), 0) for n in LENGTHS], "cpu")
    new, old = torch.tensor(NEW, requires_grad=True), torch.tensor(OLD)
    tokens = Tokens(new, new - old, (new - old).exp(), torch.tensor(ADVANTAGES), batch, torch.tensor(PICKED))
    gain, _ = SURROGATES[surrogate](tokens, Clip(LOW, HIGH, None, 0.4))
    per_text = [part.mean() for part in gain.split(LENGTHS)]
    torch.stack(per_text).mean().backward()
    expected, slopes = by_hand(surrogate)
    np.testing.assert_allclose(gain.detach(), expected, atol=1e-12)
    np.testing.assert_allclose(new.grad, slopes, atol=1e-12)
    clipped_somewhere = {"ppo": [0, 1], "clip-cov": [0, 1, 2, 5], "gmpo": [0, 1], "gspo": [0]}.get(surrogate, [])
    assert np.flatnonzero(new.grad == 0).tolist() == clipped_somewhere  # the formulas were told apart


def test_all_surrogates_can_be_named():
    assert get_args(Surrogate) == tuple(SURROGATES)


@pytest.mark.parametrize("surrogate", ["gspo", "gmpo", "cispo"])
def test_on_the_policys_own_texts_they_are_the_policy_gradient(grouped, surrogate):  # noqa: F811
    """Where all ratios are 1, nothing is clipped, and all have the gradient of advantage * log-probability."""
    gradients = []
    for name in ("ppo", surrogate):
        agent = make(GRPO, grouped(), surrogate=name, batch_size=16, learning_rate=1e-12)
        agent.learn(1)
        agent.policy.zero_grad()
        agent._loss(agent.rollout_buffer.samples(np.arange(16)))[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-3


def test_without_bounds_cispo_follows_every_token(grouped):  # noqa: F811
    agent = make(GRPO, grouped(), surrogate="cispo", clip_range=1.0, clip_range_high=1e6, n_epochs=4, learning_rate=5e-2)
    agent.learn(30)
    assert agent.logger.name_to_value["policy/clip_fraction"] == 0  # a ratio is above 0
    assert agent.logger.name_to_value["policy/ratio_min"] < 0.8


def test_a_last_step_in_which_all_is_clipped_is_no_error(grouped):  # noqa: F811
    agent = make(GRPO, grouped(), surrogate="gspo", clip_range=1e-4, n_epochs=2, batch_size=16, beta=0.0)
    agent.learn(1)
    assert agent.logger.name_to_value["policy/clip_fraction"] == pytest.approx(0.5, abs=0.1)  # all of the second step
    assert agent.policy.optimizer.state and agent.health.gradients


def test_the_off_policy_mask_by_hand(grouped):  # noqa: F811
    agent = make(RLOO, grouped(), off_policy_mask=0.2, loss_aggregation="sequence")
    agent.learn(30)
    samples = agent.rollout_buffer.samples(np.arange(4))
    lengths = np.diff(agent.rollout_buffer._offsets)[:4]
    log_prob = agent.policy.evaluate_actions(samples.observations, samples.actions)[1].detach()
    gone = torch.repeat_interleave(torch.tensor([0.5, 0.5, 0.1, -0.5]), torch.tensor(lengths))  # mean log(old / new) of each text
    advantages = torch.repeat_interleave(torch.tensor([-1.0, 1.0, -1.0, -1.0]), torch.tensor(lengths))
    loss, notes = agent._loss(samples._replace(old_log_prob=log_prob + gone, advantages=advantages))
    left = [math.exp(-0.5), max(math.exp(-0.1), 0.8) * -1, max(math.exp(0.5), 0.8) * -1]  # the first text is out, but is counted
    assert notes["policy_gradient_loss"] == pytest.approx(-sum(left) / 4, abs=1e-6)
    assert notes["off_policy_masked"] == pytest.approx(lengths[0] / lengths.sum())
    agent.policy.zero_grad()
    loss.backward()
    both = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    agent.policy.zero_grad()
    advantages[: lengths[0]] = 0.0
    agent._loss(samples._replace(old_log_prob=log_prob + gone, advantages=advantages))[0].backward()
    torch.testing.assert_close(both, torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None]))


def test_over_long_texts_leave_the_loss(grouped):  # noqa: F811
    agent = make(GRPO, grouped(), overlong_filtering=True, n_epochs=1, batch_size=16)
    agent._setup_learn(1)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    agent.num_rollouts = 1
    agent._estimate()
    buffer = agent.rollout_buffer
    ends = buffer.actions[buffer._offsets[1:] - 1] == 0
    assert 0 < ends.sum() < 16
    np.testing.assert_array_equal(buffer.trained, np.flatnonzero(ends))
    assert agent.logger.name_to_value["tokens/share_trained"] == ends.mean()
    (part,) = next(buffer.parts(16))
    assert part.whole == (ends.sum(), np.diff(buffer._offsets)[ends].sum())
    prompts = np.array([segment.prompt_id for segment in buffer.segments])
    for text in range(16):  # what was cut is part of its prompt's baseline
        group = buffer.scores[prompts == prompts[text]]
        expected = (buffer.scores[text] - group.mean()) / (group.std(ddof=1) + 1e-4)
        assert buffer.advantages[buffer._offsets[text]] == pytest.approx(expected, abs=1e-5)


def test_a_rollout_of_over_long_texts_has_no_update(grouped):  # noqa: F811
    agent = make(RLOO, grouped(), overlong_filtering=True, policy_kwargs={"model": LLAMA, "min_new_tokens": 9})
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    with pytest.warns(TrainingWarning, match="cut at 9 tokens without an end: it has no update; raise"):
        agent.learn(1)
    assert agent.logger.name_to_value["policy/update_skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


class Two(Ranks):
    """The second of two ranks, which knows what the first one has."""

    rank, size = 1, 2

    def __init__(self, first):
        self.first = first

    def gather(self, value):
        return [self.first, value]


def test_picked_tokens_by_hand():
    log_probs, advantages = np.array([-1.0, -3.0, -0.5, -2.0, -1.5]), np.array([2.0, -4.0, 1.0, 0.0, 1.0])
    covariances = (log_probs + 1.6) * advantages  # their means are -1.6 and 0: 1.2, 5.6, 1.1, 0, 0.1
    assert covariances == pytest.approx([1.2, 5.6, 1.1, 0, 0.1])
    assert np.flatnonzero(pick_tokens("kl-cov", log_probs, advantages, 0.4, (1, 5), Ranks())).tolist() == [0, 1]
    assert np.flatnonzero(pick_tokens("kl-cov", log_probs, advantages, 1e-4, (1, 5), Ranks())).tolist() == [1]  # at least one
    assert np.flatnonzero(pick_tokens("clip-cov", log_probs, advantages, 1.0, (1, 5), Ranks())).tolist() == [0, 2]  # 5.6 is beyond
    drawn = set()
    for seed in range(20):
        np.random.seed(seed)
        drawn.add(tuple(np.flatnonzero(pick_tokens("clip-cov", log_probs, advantages, 0.2, (1, 5), Ranks()))))
    assert drawn == {(0,), (2,)}
    assert not pick_tokens("clip-cov", log_probs, advantages, 1.0, (6, 9), Ranks()).any()
    assert len(pick_tokens("kl-cov", log_probs[:0], advantages[:0], 0.5, (1, 5), Ranks())) == 0
    ranks = Two((log_probs[:2], advantages[:2]))
    assert pick_tokens("kl-cov", log_probs[2:], advantages[2:], 0.6, (1, 5), ranks).tolist() == [True, False, False]


@pytest.mark.parametrize("surrogate", ["clip-cov", "kl-cov"])
def test_tokens_are_picked_among_those_that_train(grouped, surrogate):  # noqa: F811
    agent = make(RLOO, grouped(), surrogate=surrogate, cov_share=0.1, overlong_filtering=True, **bounds(surrogate))
    agent.learn(30)
    buffer = agent.rollout_buffer
    tokens = buffer._tokens(buffer.trained)
    assert 0 < len(tokens) < len(buffer.actions)
    assert buffer.picked.sum() == buffer.picked[tokens].sum() == int(0.1 * len(tokens))
    samples = buffer.samples(buffer.trained[:3])
    assert samples.picked.tolist() == buffer.picked[buffer._tokens(buffer.trained[:3])].tolist()


def bounds(surrogate):
    return {"cov_low": 0.0, "cov_high": 50.0} if surrogate == "clip-cov" else {}


def test_the_entropy_coefficient_follows_its_target_and_goes_on_bit_by_bit(grouped, tmp_path):  # noqa: F811
    settings = {"entropy_target": 2.0, "ent_coef": 0.02, "ent_coef_step": 0.015, "ent_coef_max": 0.04}
    agent = make(RLOO, grouped(), learning_rate=0.1, **settings)
    seen, coefficient = [], 0.02
    for number in range(1, 7):
        agent.learn(1, reset_num_timesteps=number == 1)
        entropy = agent.rollout_buffer.stats.entropy
        assert agent.logger.name_to_value["policy/ent_coef"] == pytest.approx(coefficient if entropy <= 2 else 0.0, abs=1e-12)
        coefficient = min(max(coefficient + (0.015 if entropy < 2 else -0.015), 0.0), 0.04)
        assert agent.ent_coef == pytest.approx(coefficient, abs=1e-12)
        seen.append(entropy <= 2)
        if number == 3:
            agent.save(tmp_path / "agent")
    assert {*seen} == {True, False}
    again = RLOO.load(tmp_path / "agent", env=grouped())
    for _ in range(3):
        again.learn(1, reset_num_timesteps=False)
    assert again.ent_coef == agent.ent_coef
    for (name, one), two in zip(agent.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"surrogate": "sapo"}, "surrogate='sapo' is not one of ppo, gspo"),
        ({"surrogate": "gspo", "dual_clip": 3.0}, "dual_clip=3.0: surrogate='gspo' does not use it; leave it out, or take ppo"),
        ({"surrogate": "kl-cov", "clip_range": 0.1}, "clip_range=0.1: surrogate='kl-cov' does not use it"),
        ({"surrogate": "kl-cov", "clip_range_high": 0.3}, "clip_range_high=0.3: surrogate='kl-cov' does not use it"),
        ({"cov_share": 0.1}, "cov_share=0.1: surrogate='ppo' does not use it; leave it out, or take clip-cov or kl-cov"),
        ({"surrogate": "clip-cov", "kl_cov_coef": 2.0}, "kl_cov_coef=2.0: surrogate='clip-cov' does not use it"),
        ({"surrogate": "clip-cov", "cov_low": 6.0}, "no covariance lies between them"),
        ({"surrogate": "gmpo", "estimator": "reinforce"}, "surrogate='gmpo' has one ratio for all tokens of a text"),
        ({"ent_coef_step": 0.1}, "ent_coef_step=0.1 without entropy_target"),
        ({"ent_coef": 2.0, "entropy_target": 1.0}, "ent_coef=2.0 is more than ent_coef_max=1.0"),
        ({"off_policy_mask": 0.0}, "off_policy_mask=0.0 is not"),
    ],
    ids=str,
)
def test_what_does_not_go_together(make_env, settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make(TextPolicyGradient, make_env(group_size=4), **{"estimator": "rloo", **settings})


@pytest.mark.parametrize("surrogate", slow_but(("gspo", "clip-cov", "kl-cov"), (name for name in SURROGATES if name != "ppo")))
def test_a_checkpoint_is_loaded_with_another_rate(grouped, surrogate, tmp_path):  # noqa: F811
    """Loading with an argument builds the agent anew from what was saved, schedules included, and checks all of it."""
    agent = make(GRPO, grouped(), surrogate=surrogate)
    agent.learn(1)
    agent.save(tmp_path / "agent")
    again = GRPO.load(tmp_path / "agent", env=grouped(), max_grad_norm=0.3)
    assert (again.surrogate, again.max_grad_norm) == (surrogate, 0.3)
    again.learn(1)


def test_the_presets_have_their_papers_settings():
    named = {name: ALGORITHMS[name].settings for name in ("dapo", "gspo", "gmpo", "cispo")}
    assert named["dapo"]["overlong_filtering"] and [named[n]["surrogate"] for n in ("gspo", "gmpo", "cispo")] == ["gspo", "gmpo", "cispo"]
    assert (1 - named["gmpo"]["clip_range"], 1 + named["gmpo"]["clip_range_high"]) == pytest.approx((math.exp(-0.4), math.exp(0.4)))
    assert named["cispo"]["clip_range"] == 1
    for settings in named.values():
        GRPO.check(**settings)
