"""NLPO's mask: the top-p tokens of the copy, in acting, update and reference, and refreshed when it is time."""

import numpy as np
import pytest
import torch

from agents import NLPO
from agents.models.loading import frozen, load_lm
from agents.models.sampler import Sampler, unpack_kept
from tests.slow_cases import slow_but

from ..conftest import LLAMA, VOCAB


def make(env, **settings):
    arguments = {"n_episodes": 12, "batch_size": 6, "n_epochs": 2, "learning_rate": 3e-2, "seed": 0, "mask_refresh": 2, "mask_top_p": 0.7}
    return NLPO("TransformerPolicy", env, policy_kwargs={"model": LLAMA}, **{**arguments, **settings})


def masks_of(agent):
    """Every text's context before each action, and the kept set that was stored with it."""
    buffer = agent.rollout_buffer
    for index, segment in enumerate(buffer.segments):
        span = range(buffer._offsets[index], buffer._offsets[index + 1])
        for n, at in enumerate(span):
            context = np.concatenate([segment.context, buffer.actions[span.start : span.start + n]])
            yield context, unpack_kept(torch.from_numpy(buffer.kept[at : at + 1]), VOCAB)[0], int(buffer.actions[at])


def share_of_top_p(agent, lm):
    """Return for which share of the actions the stored set is the top-p set of `lm`, which reads each text once."""
    buffer, same = agent.rollout_buffer, []
    for segment, start, end in zip(buffer.segments, buffer._offsets, buffer._offsets[1:], strict=False):
        text = np.concatenate([segment.context, buffer.actions[start:end]])
        with torch.no_grad():
            logits = lm(torch.as_tensor(text)[None]).logits[0, len(segment.context) - 1 : -1]  # (actions, V)
        kept = unpack_kept(torch.from_numpy(buffer.kept[start:end]), VOCAB)
        same += (Sampler(top_p=0.7).cut(logits) == kept).all(-1).tolist()
    assert len(same) == len(buffer.actions)
    return np.mean(same)


def test_the_mask_is_the_copys_and_follows_the_policy_after_each_refresh(make_env):
    agent = make(make_env())
    seen, original = [], agent.train

    def train():
        copy = {name: value.clone() for name, value in agent.mask_lm.state_dict().items()}
        policy = {name: value.clone() for name, value in agent.policy.lm.state_dict().items()}
        followed = all(torch.equal(value, policy[name]) for name, value in copy.items())
        assert all(kept[action] for _, kept, action in masks_of(agent))
        seen.append((followed, share_of_top_p(agent, agent.mask_lm), share_of_top_p(agent, agent.policy.lm)))
        original()

    agent.train = train
    agent.learn(400)
    assert len(seen) >= 4
    for number, (followed, own, theirs) in enumerate(seen):
        assert followed == (number % 2 == 0)  # rollouts 0, 2, 4, ... begin with a fresh copy
        assert own > 0.99  # ties at the border of the mass may fall either way
        assert (theirs > 0.99) == followed


def test_updates_see_the_same_distribution(make_env):
    agent = make(make_env(), n_epochs=1, batch_size=12)
    agent.learn(40)
    agent.learn(1, reset_num_timesteps=False)
    assert np.isfinite(agent.rollout_buffer.kl).all()
    assert agent.logger.name_to_value["policy/clip_fraction"] == 0  # one minibatch: the first ratios
    assert abs(agent.logger.name_to_value["policy/approx_kl"]) < 1e-6


def test_save_load_and_go_on_as_if_nothing_had_happened(make_env, tmp_path):
    agent = make(make_env(), mask_refresh=3)
    agent.learn(70)
    assert agent.num_rollouts % 3
    agent.save(tmp_path / "agent")
    agent.learn(100, reset_num_timesteps=False)
    again = NLPO.load(tmp_path / "agent", env=make_env())
    again.learn(100, reset_num_timesteps=False)
    for one, two in zip(agent.policy.state_dict().values(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_settings_out_of_range(make_env):
    for settings in ({"mask_top_p": 0}, {"mask_refresh": 0}):
        with pytest.raises(ValueError, match="a mass in"):
            make(make_env(), **settings)


@pytest.mark.reports(
    "NLPO's mask and top-k or top-p of the policy always leave a token, and only tokens that both rules and mask allow are drawn"
)
@pytest.mark.parametrize("cut", slow_but([{"top_p": 0.05}], [{"top_k": 1}, {"top_p": 0.05}, {"min_p": 1.0}]), ids=str)
@pytest.mark.parametrize("rules", [{}, {"no_repeat_ngram": 1, "min_new_tokens": 2, "banned_tokens": [3], "temperature": 0.5}], ids=str)
def test_cuts_are_made_within_the_mask(make_env, cut, rules):
    """The copy is another model here, as after an update: the likeliest tokens of the two differ."""
    env = make_env(constraint={"banned_tokens": [7]})
    agent = NLPO("TransformerPolicy", env, n_episodes=30, mask_top_p=0.01, mask_refresh=99, policy_kwargs={"model": LLAMA, **cut, **rules})
    copy = frozen(load_lm({**LLAMA, "initializer_range": 0.5}))
    agent.mask_lm.load_state_dict(copy.state_dict())
    _, callback = agent._setup_learn(1)
    agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, 1)
    differ, read = 0, {}  # with one token kept, texts to a prompt are alike, and each context is read once
    for context, kept, action in masks_of(agent):
        segment = next(s for s in agent.rollout_buffer.segments if np.array_equal(s.context, context[: len(s.context)]))
        written = context[len(segment.context) :].tolist()
        allowed = [t for t in range(VOCAB) if t != 7 and t not in rules.get("banned_tokens", ())]
        if rules:
            allowed = [t for t in allowed if t == 0 or t not in written]
            allowed = [t for t in allowed if t or len(written) >= 2]
        if context.tobytes() not in read:
            with torch.no_grad():
                read[context.tobytes()] = [lm(torch.as_tensor(context)[None]).logits[0, -1] for lm in (copy, agent.policy.lm)]
        theirs, own = read[context.tobytes()]
        likeliest = max(allowed, key=lambda token: float(theirs[token]))
        differ += max(allowed, key=lambda token: float(own[token])) != likeliest
        assert kept.nonzero().flatten().tolist() == [likeliest] and action == likeliest
    assert differ > 5
    assert not agent.rollout_buffer.log_probs.any()  # one token kept: its probability is 1


@pytest.mark.reports("The distribution that an NLPO policy returns is under its mask, as the one that it draws from")
def test_the_distribution_is_masked(make_env):
    env = make_env()
    agent = make(env, mask_top_p=0.01)
    obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    probabilities = agent.policy.get_distribution(obs).distribution.probs
    np.testing.assert_array_equal(probabilities.argmax(-1), agent.policy.predict(env.core.observe())[0])
    assert torch.allclose(probabilities.amax(-1), torch.ones(6))
