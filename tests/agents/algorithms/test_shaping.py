"""What happens to scores before the update, KL by enumeration, schedules, ptx, and sampling again."""

import re
import warnings

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import RLOO, SFT, ScheduledKLController, SequenceRolloutBuffer, TextPolicyGradient, TextPPO
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.evaluation.exact_optimum import optimality_gap
from agents.models.log_probs import action_logits, full_kl
from agents.rollouts.kl_controller import as_kl_controller
from agents.rollouts.reward_scaling import ScoreScale, whiten
from textrl_env.tasks.exact import TASKS

from ..conftest import LLAMA, VOCAB
from .test_policy_gradient import exact_gradient, expected_update, grouped, make, tiny, tokens  # noqa: F401  # fixtures


def halving(left):
    return 0.4 * left


def test_running_scale_by_hand():
    scale = ScoreScale(norm_reward=True, clip_reward=1.5)
    steps = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)
    out = scale(steps, np.array([1.0, 3.0]))  # deviation 1
    np.testing.assert_allclose(out, [[0, 1], [1.5, 1.5]])
    scale(steps, np.array([5.0, 7.0, 9.0]))  # of 1 3 5 7 9: variance 8
    assert np.sqrt(scale.squares / scale.count) == pytest.approx(np.sqrt(8))
    assert ScoreScale(norm_reward=True)(steps, np.array([2.0, 2.0])).tolist() == steps.tolist()
    with pytest.raises(ValueError, match="clip_reward=0"):
        ScoreScale(clip_reward=0)


def test_scores_are_scaled_before_kl_and_returns_whitened_after_it(make_env):
    options = {"norm_reward": True, "clip_reward": 1.0, "whiten_rewards": True}
    buffers = {}
    for name, kwargs in {"plain": {}, "shaped": options}.items():
        agent = TextPPO(
            "TransformerPolicy", make_env(reward=lambda completions: [float(len(c)) for c in completions]), n_episodes=12, seed=0,
            policy_kwargs={"model": LLAMA}, beta=0.5, rollout_buffer_kwargs=kwargs,
        )  # fmt: skip
        agent.policy.lm.lm_head.weight.data *= 1.5  # away from the reference
        agent._setup_learn(1)
        agent.collect_rollouts(agent.env, quiet(agent), agent.rollout_buffer, 1)
        buffers[name] = agent.rollout_buffer
    plain, shaped = buffers.values()
    ends = plain._offsets[1:] - 1
    expected = -0.5 * plain.kl.astype(float)
    np.testing.assert_allclose(plain.rewards - expected, np.bincount(ends, plain.scores, len(expected)), atol=1e-5)
    expected[ends] += np.clip(plain.scores / plain.scores.std(), -1, 1)
    returns = np.add.reduceat(expected, plain._offsets[:-1])  # (S,)
    expected /= returns.std()
    expected[ends] += returns.mean() - returns.mean() / returns.std()
    np.testing.assert_allclose(shaped.rewards, expected, atol=1e-5)
    assert np.abs(plain.kl).max() > 0.1


def quiet(agent):
    return agent._init_callback(None)


def test_a_schedule_of_beta(make_env):
    agent = make(TextPPO, make_env(), beta=halving, n_episodes=16)
    seen = []
    agent.learn(300, callback=lambda scope, _: seen.append((agent.num_rollouts, agent.kl_controller.beta)) or True)
    assert isinstance(agent.kl_controller, ScheduledKLController)
    by_rollout = dict(seen)
    assert by_rollout[0] == 0.4 and all(b < a for a, b in zip(list(by_rollout.values()), list(by_rollout.values())[1:], strict=False))
    assert agent.rollout_buffer.beta == by_rollout[max(by_rollout)]
    with pytest.raises(ValueError, match="beta=-1"):
        as_kl_controller(lambda left: -1.0)


@pytest.mark.parametrize("rules", [{}, {"temperature": 0.7, "top_k": 5}], ids=["plain", "cut"])
def test_full_kl_by_brute_force(make_env, rules):
    agent = make(TextPPO, make_env(), policy_kwargs={"model": LLAMA, **rules})
    agent.learn(40)
    buffer, policy = agent.rollout_buffer, agent.policy
    batch = buffer.samples(np.arange(6)).observations
    found = full_kl(policy.backbone, buffer.reference, batch, buffer.sampler, VOCAB)
    own, other = (action_logits(m, m.hidden(batch), batch, buffer.sampler, VOCAB).double() for m in (policy.backbone, buffer.reference))
    for row, p, q in zip(found.tolist(), own.softmax(-1).tolist(), other.softmax(-1).tolist(), strict=True):
        assert row == pytest.approx(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0), abs=1e-6)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.lm.parameters())


def test_full_kl_in_reward_and_loss_is_the_exact_gradient(tiny):  # noqa: F811
    logits, reference, *_ = tiny
    own = logits.log_softmax(-1)
    local = (own.exp() * (own - reference)).sum(-1)  # KL after nothing, after 1, after 2

    def update(log_probs, refs, scores, beta, with_loss=True):
        text = tiny[2][[*tiny[3]].index(scores[0])]
        states = [0 if t == 0 else text[0] for t in range(len(text))]
        rewards = -beta * local.detach()[states]
        rewards[-1] += scores[0]
        to_go = rewards.flip(0).cumsum(0).flip(0)
        surrogate = (to_go * tokens(own, text)).sum()
        return surrogate - beta * local[states].sum() if with_loss else surrogate

    exact = exact_gradient(tiny, 0.3)
    torch.testing.assert_close(expected_update(tiny, 0.3, 1, update), exact, atol=1e-9, rtol=1e-9)
    half = expected_update(tiny, 0.3, 1, lambda *args: update(*args, with_loss=False))  # rewards that ignore their action
    assert (half - exact).abs().max() > 0.01


@pytest.mark.slow
def test_training_with_full_kl_reaches_the_optimum():
    table = {
        "class": "agents.evaluation.exact_optimum:Table",
        "vocab_size": TASKS["Smooth"].vocab_size,
        "length": TASKS["Smooth"].length + 1,
    }
    agent = RLOO(
        "TransformerPolicy", TASKS["Smooth"].id, learning_rate=lambda left: 0.05 * left, beta=0.5, seed=0, kl_estimator="full",
        policy_kwargs={"model": table},
    )  # fmt: skip
    agent.learn(40_000)
    gap = optimality_gap(agent.policy.backbone, agent.rollout_buffer.reference, "Smooth", 0.5)
    assert gap.closed > 0.9
    buffer = agent.rollout_buffer
    shaped = buffer.scores - np.add.reduceat(buffer.rewards, buffer._offsets[:-1])  # beta times the KL of a text's steps
    assert (shaped > 0).all()  # unlike k1, never negative
    assert shaped.mean() / 0.5 == pytest.approx(gap.achieved.kl, rel=0.25)


def test_ptx_is_next_token_learning_beside_the_policys(grouped):  # noqa: F811
    texts = [("1 2", "7 7 7"), ("3", "5")]
    agent = make(RLOO, grouped(), ptx_coef=2.0, ptx_texts=texts, n_episodes=16, batch_size=16, beta=0.0)
    agent._setup_learn(1)
    agent.collect_rollouts(agent.env, quiet(agent), agent.rollout_buffer, 1)
    part = next(agent.rollout_buffer.parts(16))
    np.random.seed(5)
    notes = agent._add_gradients(part)
    np.random.seed(5)
    drawn = [texts[i] for i in np.random.randint(2, size=16)]
    expected = SFT(agent.policy.lm, agent.env.unwrapped.core.task.tokenizer).loss_of(drawn)
    assert notes["ptx_loss"] == pytest.approx(expected.item(), abs=1e-6)
    agent.ptx_coef = 0.0
    assert notes["loss"] == pytest.approx(agent._add_gradients(part)["loss"] + 2 * expected.item(), abs=1e-5)
    agent.ptx_coef = 2.0
    before = expected.item()
    agent.learn(300)
    assert SFT(agent.policy.lm, agent.env.unwrapped.core.task.tokenizer).loss_of(texts).item() < 0.8 * before


def test_groups_that_scored_alike_are_written_again(grouped):  # noqa: F811
    env = grouped()
    env.core.reward_model = lambda prompts, completions: [
        float("7" in c) if len(p) == 1 else 0.0 for p, c in zip(prompts, completions, strict=True)
    ]
    settings = {"kl_in": "loss", "kl_estimator": "k2", "n_episodes": 16}
    agent = make(RLOO, env, skip_equal_groups=True, max_sampling_rounds=6, **settings)
    agent._setup_learn(1)
    agent.collect_rollouts(agent.env, quiet(agent), agent.rollout_buffer, 1)
    buffer = agent.rollout_buffer
    assert len(buffer.segments) > 16 and len(buffer.segments) % 4 == 0
    agent._estimate()
    prompts = {buffer.segments[i].context.tobytes() for i in buffer.trained}
    assert prompts == {np.array([4]).tobytes()}  # the only prompt whose texts may differ
    ends = buffer._offsets[1:] - 1
    np.testing.assert_allclose(buffer.rewards[ends], buffer.scores)  # every text has its own score at its own end
    assert len(buffer.actions) == sum(s.steps.stop - s.steps.start for s in buffer.segments)
    samples = buffer.samples(np.arange(len(buffer.segments)))
    log_prob = agent.policy.evaluate_actions(samples.observations, samples.actions)[1]
    torch.testing.assert_close(log_prob.detach(), samples.old_log_prob, atol=1e-5, rtol=1e-5)


def test_sampling_again_stops(grouped):  # noqa: F811
    env = grouped()
    env.core.reward_model = lambda completions: [1.0] * len(completions)
    with pytest.warns(UserWarning, match="nothing to learn from"):
        agent = make(RLOO, env, skip_equal_groups=True, max_sampling_rounds=3, beta=0.0)
        agent.learn(30)
    assert len(agent.rollout_buffer.segments) == 48


def started(env, **settings):
    """An agent with a collected rollout, its policy away from the reference."""
    agent = make(RLOO, env, skip_equal_groups=True, **{"n_episodes": 16, **settings})
    with torch.no_grad():
        agent.policy.lm.lm_head.weight.mul_(1.5)
    agent._setup_learn(1)
    agent.collect_rollouts(agent.env, quiet(agent), agent.rollout_buffer, 1)
    return agent, agent.rollout_buffer


def ones(completions):
    return [1.0] * len(completions)


def of_length(prompts, completions):
    return [5.0 + 0.1 * len(c) for c in completions]


@pytest.mark.reports("Groups are dealt again and left out by one rule: whether the returns that their advantages are made of are equal")
@pytest.mark.parametrize(
    ("reward", "rules", "settings", "dealt", "trained"),
    [
        (ones, {}, {"beta": 0.5}, 16, 16),  # KL in the reward makes texts differ that scored alike
        (ones, {}, {"beta": 0.0}, 48, 0),
        (ones, {}, {"beta": 0.5, "kl_in": "loss", "kl_estimator": "k3"}, 48, 0),
        (ones, {"soft_max_tokens": 0, "max_new_tokens": 50}, {"beta": 0.0}, 16, 16),  # penalties make them differ
        (of_length, {}, {"beta": 0.0, "rollout_buffer_kwargs": {"clip_reward": 2.0}}, 48, 0),  # clipping makes them equal
    ],
)  # fmt: skip
def test_one_rule_for_dealing_again_and_leaving_out(make_env, reward, rules, settings, dealt, trained):
    env = make_env(8, reward=reward, group_size=4, **rules)
    agent, buffer = started(env, max_sampling_rounds=3, **settings)
    beta, count = agent.kl_controller.beta, (agent.score_scale.count, agent.score_scale.squares)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        agent._estimate()
    assert (len(buffer.segments), len(buffer.trained)) == (dealt, trained)
    assert agent.kl_controller.beta == beta and count == (agent.score_scale.count, agent.score_scale.squares)


@pytest.mark.reports("Sampling again never writes more than max_sampling_rounds times n_episodes")
def test_the_limit_of_sampling_again(make_env):
    dealt = []
    for seed in range(8):
        env = make_env(12, reward=only_after_4, group_size=4)
        agent, buffer = started(env, max_sampling_rounds=2, beta=0.0, n_episodes=12, seed=seed)
        agent._estimate()
        dealt.append(len(buffer.segments))
        assert len(buffer.trained) >= 12 or dealt[-1] == 24
    assert max(dealt) == 24


def only_after_4(prompts, completions):
    return [float(p == "4") * len(c) for p, c in zip(prompts, completions, strict=True)]


@pytest.mark.reports("A rollout whose groups are all equal has no update: a warning and the log say so, and training goes on")
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_a_rollout_of_equal_groups_is_skipped(make_env, beta):
    env = make_env(8, reward=ones, group_size=4)
    agent = make(RLOO, env, skip_equal_groups=True, n_episodes=16, beta=beta)  # at first the policy is the reference, and KL is 0
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    skipped = []

    class Reads(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            skipped.append(agent.logger.name_to_value.get("policy/update_skipped"))

    with pytest.warns(TrainingWarning) as warned:
        agent.learn(200, Reads())
    assert any("it has no update" in str(w.message) for w in warned) and len(skipped) > 1
    assert agent.logger.name_to_value["policy/update_skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())
    env.reward_model = of_length
    agent.learn(100)
    assert agent.logger.name_to_value["policy/update_skipped"] == 0
    assert not all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


@pytest.mark.reports("Values that are equal up to rounding have advantages 0 after whitening, not rounding errors made large")
@pytest.mark.parametrize("value", [0.1, -3.3e4, 0.0])
def test_equal_values_have_no_variance(value):
    values = np.full(1001, value, np.float32)
    values[::2] = np.nextafter(values[::2], np.float32(9e9) if value else values[::2])
    assert not whiten(values).any()
    np.testing.assert_allclose(whiten(np.array([1.0, 1.01])), [-1, 1], atol=1e-3)


@pytest.mark.reports("skip_equal_groups is refused where advantages compare no groups")
@pytest.mark.parametrize("estimator", ["gae", "reinforce", "reinforce++"])
def test_equal_groups_need_groups(grouped, estimator):  # noqa: F811
    with pytest.raises(ValueError, match=f"skip_equal_groups=True with estimator='{re.escape(estimator)}', which has no groups"):
        make(TextPolicyGradient, grouped(), estimator=estimator, skip_equal_groups=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_in": "loss", "kl_estimator": "k4"}, "kl_estimator='k4'"),
        ({"kl_estimator": "full", "whiten_advantages": True}, "rescales the advantages"),
        ({"kl_estimator": "full", "estimator": "grpo"}, "rescales the advantages"),
        ({"max_sampling_rounds": 0}, "max_sampling_rounds=0"),
        ({"max_sampling_rounds": 2}, "only with skip_equal_groups"),
        ({"ptx_coef": 1.0}, "0 ptx_texts"),
    ],
)
def test_settings_that_make_no_sense(grouped, settings, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        make(RLOO, grouped(), **settings)


def test_a_buffer_without_the_policy_cannot_know_the_full_kl(make_env):
    with pytest.raises(ValueError, match="kl_reward='k2'"):
        SequenceRolloutBuffer(1, make_env().observation_space, make_env().action_space, kl_reward="k2")
    agent = make(TextPPO, make_env(), rollout_buffer_kwargs={"kl_reward": "full"})
    with pytest.raises(ValueError, match="only TextPolicyGradient"):
        agent.learn(30)


def test_all_of_it_resumes_bit_by_bit(grouped, tmp_path):  # noqa: F811
    settings = {
        "estimator": "rloo", "kl_estimator": "full", "beta": halving, "ptx_coef": 0.1, "ptx_texts": [("1 2", "7 7"), ("3", "5 6")],
        "rollout_buffer_kwargs": {"norm_reward": True, "clip_reward": 2.0},
    }  # fmt: skip
    whole = make(TextPolicyGradient, grouped(), **settings)
    saved = []

    def keep(scope, _):
        if whole.num_rollouts == 2 and not saved:
            whole.save(tmp_path / "half")
            saved.append(whole.num_timesteps)
        return True

    whole.learn(400, callback=keep)
    again = TextPolicyGradient.load(tmp_path / "half", env=grouped())
    again.learn(400 - again.num_timesteps, reset_num_timesteps=False)
    assert again.num_timesteps == whole.num_timesteps and again.score_scale.__dict__ == whole.score_scale.__dict__
    for (name, one), two in zip(whole.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
