"""The sequence buffer against numbers by hand, and against SB3's own buffer."""

import copy
import pickle

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import obs_as_tensor

from agents import TextPPO
from agents.models.sampler import Sampler
from agents.policies.sampling_record import SamplingRecord
from agents.policies.transformer_policy import TransformerPolicy
from agents.rollouts.kl_controller import KLController
from agents.rollouts.reward_scaling import whiten
from agents.rollouts.rollout_buffer import SequenceRolloutBuffer

from ..conftest import LLAMA, MODELS, VOCAB


def stored(buffer, env, tokens, rewards, values, log_probs):
    """Play `tokens` (S, E) in `env` and store the given numbers with them; returns the last dones."""
    obs, starts = env.reset(), np.ones(env.num_envs, bool)
    dones = starts
    for step in range(len(tokens)):
        log_prob = torch.tensor(log_probs[step])
        log_prob.acting = SamplingRecord(Sampler(), None)
        new_obs, _, dones, _ = env.step(tokens[step])
        buffer.add(obs, tokens[step][:, None], np.asarray(rewards[step]), starts, torch.tensor(values[step])[:, None], log_prob)
        obs, starts = new_obs, dones
    return dones


def test_gae_by_hand(make_env):
    """One row, two texts and the beginning of a third; gamma 0.9, lambda 0.5, all worked out on paper.

    Text 1: rewards 0, 2; values .5, 1.        delta = 0 + .9*1 - .5 = .4,  2 - 1 = 1;      A = .4 + .45*1 = .85, 1
    Text 2: reward 1; value .2.                delta = 1 - .2 = .8                          A = .8
    Text 3, goes on: reward 0; value .3, next .7.  delta = .9*.7 - .3 = .33                 A = .33
    """
    env = make_env(num_envs=1)
    buffer = SequenceRolloutBuffer(4, env.observation_space, env.action_space, "cpu", gae_lambda=0.5, gamma=0.9)
    tokens = np.array([[5], [0], [0], [5]])
    dones = stored(buffer, env, tokens, [[0.0], [2.0], [1.0], [0.0]], [[0.5], [1.0], [0.2], [0.3]], [[-1.0]] * 4)
    buffer.compute_returns_and_advantage(torch.tensor([0.7]), dones)
    np.testing.assert_allclose(buffer.advantages, [0.85, 1.0, 0.8, 0.33], atol=1e-6)
    np.testing.assert_allclose(buffer.returns, [1.35, 2.0, 1.0, 0.63], atol=1e-6)
    assert [s.steps for s in buffer.segments] == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert buffer.actions.tolist() == [5, 0, 0, 5]


class _Uniform(torch.nn.Module):
    """A reference that finds every token equally likely."""

    vocab_size, hidden_size = VOCAB, 1

    def __init__(self):
        super().__init__()
        self.zeros = torch.nn.Parameter(torch.zeros(1, VOCAB))

    def forward(self, input_ids, positions, mask=None):
        return torch.zeros(*input_ids.shape, 1)

    def logits(self, hidden):
        return hidden @ self.zeros


def test_kl_shaping_by_hand(make_env):
    """Against a uniform reference, log(pi / pi_ref) = log pi + log V; beta 0.5, gamma = lambda = 1, values 0."""
    env = make_env(num_envs=2)
    buffer = SequenceRolloutBuffer(
        2, env.observation_space, env.action_space, "cpu", n_envs=2, reference=_Uniform(), beta=KLController(0.5)
    )
    tokens = np.array([[5, 0], [0, 0]])
    log_probs = [[-1.0, -2.0], [-3.0, -0.5]]
    dones = stored(buffer, env, tokens, [[0.0, 1.0], [4.0, 2.0]], [[0.0, 0.0]] * 2, log_probs)
    buffer.compute_returns_and_advantage(torch.zeros(2), dones)
    log_v = np.log(VOCAB)
    # segments in the order in which they began: row 0 (2 tokens), row 1 (1), row 1 again (1)
    np.testing.assert_allclose(buffer.kl, [-1 + log_v, -3 + log_v, -2 + log_v, -0.5 + log_v], atol=1e-6)
    shaped = [-0.5 * (log_v - 1), 4 - 0.5 * (log_v - 3), 1 - 0.5 * (log_v - 2), 2 - 0.5 * (log_v - 0.5)]
    np.testing.assert_allclose(buffer.rewards, shaped, atol=1e-6)
    np.testing.assert_allclose(buffer.returns, [shaped[0] + shaped[1], *shaped[1:]], atol=1e-6)
    assert buffer.stats.kl_per_sequence == pytest.approx((4 * log_v - 6.5) / 3, abs=1e-5)
    assert buffer.stats.kl_per_token == pytest.approx(log_v - 6.5 / 4, abs=1e-5)
    assert buffer.stats.score == pytest.approx(7 / 3)


def test_whitening_by_hand(make_env):
    env = make_env(num_envs=1)
    buffer = SequenceRolloutBuffer(3, env.observation_space, env.action_space, "cpu", whiten_advantages=True)
    dones = stored(buffer, env, np.array([[0], [0], [0]]), [[1.0], [2.0], [6.0]], [[0.0]] * 3, [[-1.0]] * 3)
    buffer.compute_returns_and_advantage(torch.zeros(1), dones)
    np.testing.assert_allclose(buffer.advantages, (np.array([1, 2, 6]) - 3) / np.sqrt(14 / 3), atol=1e-6)
    np.testing.assert_allclose(buffer.returns, [1, 2, 6])


def counted(episodes):
    return [f"{len(e.response_ids)} 3"[: 2 + 9 * (len(e.response_ids) % 3)] for e in episodes]


# Turns end with any of a third of the tokens; replies of one or two tokens
DIALOGUE = {"reply": counted, "stop_tokens": list(range(1, 9)), "max_new_tokens": 21, "max_turns": 4}


def record(model, steps):
    """Fill SB3's per-transition buffer and ours with one rollout of the same policy."""
    env, policy = model.env, model.policy
    args = (steps, env.observation_space, env.action_space)
    kwargs = {"device": "cpu", "gamma": 0.97, "gae_lambda": 0.9, "n_envs": env.num_envs}
    buffers = DictRolloutBuffer(*args, **kwargs), SequenceRolloutBuffer(*args, **kwargs)
    policy.set_training_mode(False)
    obs, starts = env.reset(), np.ones(env.num_envs, bool)
    for _ in range(steps):
        with torch.no_grad():
            actions, values, log_probs = policy(obs_as_tensor(obs, policy.device))
        new_obs, rewards, dones, _ = env.step(actions.numpy())
        for buffer in buffers:
            buffer.add(obs, actions.numpy()[:, None], rewards, starts, values, log_probs)
        obs, starts = new_obs, dones
    with torch.no_grad():
        last = policy.predict_values(obs_as_tensor(obs, policy.device))
    for buffer in buffers:
        buffer.compute_returns_and_advantage(last, dones)
    return buffers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("rules", "settings"),
    [({}, {}), ({"temperature": 0.7, "min_new_tokens": 3}, {}), ({"min_new_tokens": 2}, DIALOGUE)],
    ids=["plain", "rules", "dialogue"],
)
def test_unmodified_ppo_learns_the_same_from_both_buffers(make_env, name, rules, settings):
    """SB3's own `PPO.train` over one batch of all tokens: same losses, gradients and new weights."""
    env = make_env(num_envs=5, **settings)
    kwargs = {"model": MODELS[name], "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}, **rules}
    model = PPO(
        TransformerPolicy, env, n_steps=31, batch_size=5 * 31, n_epochs=1, ent_coef=0.02, vf_coef=0.3, max_grad_norm=1e9,
        policy_kwargs=kwargs, learning_rate=0.1, device="cpu", seed=1,
    )  # fmt: skip
    torch.nn.init.normal_(model.policy.value_head.weight, std=0.5)
    theirs, ours = record(model, 31)
    assert len(ours.segments) > (4 if settings else 15)
    assert any(segment.replies for segment in ours.segments) == bool(settings)
    start = copy.deepcopy(model.policy.state_dict())
    # One step from slightly other weights, so that the ratio is not 1 and clipping happens
    moved = {k: v + 0.05 * torch.randn_like(v) for k, v in start.items()}
    results = []
    for buffer in (theirs, ours):
        model.policy.load_state_dict(moved)
        model.rollout_buffer, model._n_updates = buffer, 0
        model.set_logger(configure(None, []))
        model.train()
        log = {k: v for k, v in model.logger.name_to_value.items() if k.startswith("train/")}
        gradients = {n: p.grad.clone() for n, p in model.policy.named_parameters()}
        results.append((log, gradients, copy.deepcopy(model.policy.state_dict())))
    (log, gradients, weights), (our_log, our_gradients, our_weights) = results
    assert log["train/clip_fraction"] > 0.01
    for key in log:
        assert our_log[key] == pytest.approx(log[key], abs=1e-5, rel=1e-5), key
    for key in gradients:
        torch.testing.assert_close(our_gradients[key], gradients[key], atol=1e-5, rtol=1e-4)
        assert gradients[key].abs().max() > 0, key
    for key in weights:
        torch.testing.assert_close(our_weights[key], weights[key], atol=1e-5, rtol=1e-4)


def test_unmodified_ppo_runs_with_policy_and_buffer(make_env, tmp_path):
    """Rollouts that cut texts in the middle, a reference from a folder, and learning."""
    from agents.models.loading import load_lm, save_lm

    save_lm(load_lm(LLAMA), tmp_path / "lm")
    model = PPO(
        TransformerPolicy, make_env(num_envs=8), n_steps=20, batch_size=16, gamma=1.0, learning_rate=3e-3, device="cpu", seed=0,
        rollout_buffer_class=SequenceRolloutBuffer, rollout_buffer_kwargs={"reference": str(tmp_path / "lm"), "beta": 0.05},
        policy_kwargs={"model": str(tmp_path / "lm")},
    )  # fmt: skip
    model.learn(160)
    first = model.rollout_buffer.stats
    assert first.kl_per_sequence == pytest.approx(0, abs=1e-5)
    model.learn(4000)
    last = model.rollout_buffer.stats
    assert last.score > first.score + 0.5
    assert last.kl_per_sequence > 0.1


def test_a_reference_that_trains_is_copied_and_frozen(make_env):
    from agents.models.loading import load_lm

    env, lm = make_env(num_envs=1), load_lm(LLAMA).train()
    buffer = SequenceRolloutBuffer(4, env.observation_space, env.action_space, "cpu", reference=lm)
    before = lm.lm_head.weight.detach().clone()
    with torch.no_grad():
        lm.lm_head.weight.add_(1.0)
    reference = buffer.reference.lm
    assert torch.equal(reference.lm_head.weight, before) and not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    same = SequenceRolloutBuffer(4, env.observation_space, env.action_space, "cpu", reference=reference)
    assert same.reference.lm is reference  # a frozen module takes no second copy


@pytest.mark.reports("A log-probability that lost the record of its sampling rules is refused with the cause: copied, moved, or never ours")
@pytest.mark.parametrize("copy_of", [torch.clone, torch.Tensor.detach, lambda t: t.to(torch.float64), lambda t: t * 1, torch.zeros_like])
def test_a_lost_record_is_refused(make_env, copy_of):
    env = make_env(num_envs=1)
    buffer = SequenceRolloutBuffer(4, env.observation_space, env.action_space, "cpu")
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, temperature=0.5)
    obs = env.reset()
    with torch.no_grad():
        actions, values, log_probs = policy(obs_as_tensor(obs, "cpu"))
    step = (obs, actions.numpy(), np.zeros(1), np.ones(1), values)
    with pytest.raises(TypeError, match=r"clone\(\), to\(\), detach\(\) or arithmetic lose it; pass the tensor that the policy returned"):
        buffer.add(*step, copy_of(log_probs))
    copied = copy_of(log_probs)
    copied.acting = log_probs.acting  # as the message says
    buffer.add(*step, copied)
    assert buffer.sampler.temperature == 0.5
    buffer.add(*step, pickle.loads(pickle.dumps(log_probs)))  # torch keeps attributes here
    assert buffer.pos == 2


@pytest.mark.reports("Sampling rules that change within a rollout, or between it and its update, are refused")
def test_rules_stay_the_same_from_the_first_token_to_the_update(make_env):
    changed = Sampler(temperature=2.0, eos_token_id=0)

    def within(scope, _):
        if scope["self"].num_timesteps > 12:
            scope["self"].policy.sampler = changed
        return True

    settings = {"n_episodes": 6, "batch_size": 6, "policy_kwargs": {"model": LLAMA}}
    with pytest.raises(ValueError, match=r"changed within a rollout, at step \d+, to Sampler\(temperature=2.0"):
        TextPPO("TransformerPolicy", make_env(), **settings).learn(30, callback=within)

    class AtTheEnd(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.policy.sampler = changed

    with pytest.raises(ValueError, match=r"change them after train\(\)"):
        TextPPO("TransformerPolicy", make_env(), **settings).learn(30, callback=AtTheEnd())

    class BeforeTheNext(AtTheEnd):
        def _on_rollout_start(self):
            self.model.policy.sampler = Sampler(temperature=1 + self.model.num_rollouts, eos_token_id=0)

        def _on_rollout_end(self):
            pass

    agent = TextPPO("TransformerPolicy", make_env(), **settings)
    agent.learn(100, callback=BeforeTheNext())
    assert agent.rollout_buffer.sampler.temperature == agent.num_rollouts > 1


@pytest.mark.reports("A rollout's KL moves beta once and its scores the running scale once: returns are computed once for each rollout")
def test_returns_are_computed_once(make_env):
    env = make_env(num_envs=2)
    buffer = SequenceRolloutBuffer(
        2, env.observation_space, env.action_space, "cpu", n_envs=2, reference=_Uniform(), beta={"beta": 0.5, "horizon": 100},
        norm_reward=True,
    )  # fmt: skip
    numbers = ([[0.0, 1.0], [4.0, 2.0]], [[0.0, 0.0]] * 2, [[-1.0, -2.0], [-3.0, -0.5]])
    dones = stored(buffer, env, np.array([[5, 0], [0, 0]]), *numbers)
    buffer.compute_returns_and_advantage(torch.zeros(2), dones)
    shaping = buffer.kl_shaping
    beta, count, rewards = shaping.controller.beta, shaping.score_scale.count, buffer.rewards.copy()
    assert beta != 0.5 and count == 3
    with pytest.raises(RuntimeError, match=r"called twice for one rollout.*call reset\(\) first"):
        buffer.compute_returns_and_advantage(torch.zeros(2), dones)
    assert (shaping.controller.beta, shaping.score_scale.count) == (beta, count)
    np.testing.assert_array_equal(buffer.rewards, rewards)
    buffer.reset()
    dones = stored(buffer, env, np.array([[5, 0], [0, 0]]), *numbers)
    buffer.compute_returns_and_advantage(torch.zeros(2), dones)
    assert shaping.score_scale.count == 6


def test_whiten_by_hand():
    values = np.array([1.0, 3.0, 5.0, 7.0])  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    np.testing.assert_allclose(whiten(values), np.array([-3, -1, 1, 3]) / np.sqrt(5 + 1e-8), rtol=1e-12)
