"""The family of clipped policy gradients: equal to PPO where it should be, and right by enumeration."""

import itertools

import numpy as np
import pytest
import torch

from agents import GRPO, RLOO, Reinforce, ReinforcePlusPlus, TextPolicyGradient, TextPPO
from agents.algorithms.common.advantage_estimators import ESTIMATORS, Rollout
from agents.algorithms.common.policy_loss import estimated_kl
from agents.evaluation.exact_optimum import optimality_gap
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.tasks.exact import TASKS

from ..conftest import LLAMA, VOCAB, sevens

CLASSES = [RLOO, Reinforce, ReinforcePlusPlus, GRPO]


def make(algorithm, env, **settings):
    arguments = {"n_episodes": 16, "batch_size": 8, "learning_rate": 1e-2, "seed": 0, "beta": 0.2, "policy_kwargs": {"model": LLAMA}}
    return algorithm("TransformerPolicy", env, **{**arguments, **settings})


@pytest.fixture
def grouped():
    def make_env(group_size=4):
        task = TextTask(
            IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4"), Prompt("5 6 7 8 9 10")], max_new_tokens=9, group_size=group_size
        )
        env = TextGenerationVecEnv(16, task=task, reward=sevens)
        env.seed(3)
        return env

    return make_env


@pytest.mark.parametrize(
    "extra", [{}, {"clip_range_vf": 0.3, "ent_coef": 0.02, "target_kl": 0.05, "vf_coef": 0.5}], ids=["plain", "options"]
)
def test_with_gae_it_is_sb3s_ppo(make_env, extra):
    agents = []
    for algorithm in (TextPPO, TextPolicyGradient):
        own = {"estimator": "gae", "whiten_advantages": True} if algorithm is TextPolicyGradient else {}
        agent = make(algorithm, make_env(), n_epochs=3, **own, **extra)
        agent.learn(250)
        agents.append(agent)
    assert agents[0]._n_updates == agents[1]._n_updates
    for (name, one), two in zip(agents[0].policy.state_dict().items(), agents[1].policy.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5, msg=name)
    for name in ("policy/loss", "value/loss", "policy/entropy_loss", "policy/approx_kl", "policy/clip_fraction"):
        ours, theirs = (agent.logger.name_to_value[name] for agent in reversed(agents))
        assert ours == pytest.approx(theirs, abs=1e-6)


def by_numpy(new, old, advantages, returns, values, entropy, clip):
    """PPO's numbers from the paper's formulas (Schulman et al. 2017), token by token."""
    losses, clipped, kl = [], 0, []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = np.exp(n - o)
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        losses.append(-min(ratio * a, bounded * a))
        clipped += abs(ratio - 1) > clip
        kl.append(ratio - 1 - (n - o))
    return {
        "policy/loss": np.mean(losses), "policy/clip_fraction": clipped / len(losses), "policy/approx_kl": np.mean(kl),
        "value/loss": np.mean((returns - values) ** 2), "policy/entropy_loss": -np.mean(entropy),
    }  # fmt: skip


@pytest.mark.parametrize("algorithm", [TextPPO, TextPolicyGradient])
def test_a_recorded_batch_against_plain_numpy(make_env, algorithm):
    own = {"estimator": "gae", "whiten_advantages": True} if algorithm is TextPolicyGradient else {}
    agent = make(algorithm, make_env(), n_epochs=1, batch_size=16, **own)
    agent.learn(30)
    buffer = agent.rollout_buffer
    samples = buffer.samples(np.arange(16))
    with torch.no_grad():  # the second update of this batch: ratios are no longer 1
        values, new, entropy = (x.flatten().double().numpy() for x in agent.policy.evaluate_actions(samples.observations, samples.actions))
    columns = (buffer.log_probs, buffer.advantages, buffer.returns)
    expected = by_numpy(new, *(c.astype(float) for c in columns), values, entropy, 0.2)
    agent.train()
    for name, value in expected.items():
        assert agent.logger.name_to_value[name] == pytest.approx(float(value), abs=1e-6), name
    assert 0 < expected["policy/clip_fraction"] < 1


@pytest.fixture(scope="module")
def tiny():
    """Three tokens, texts of at most two, a table of logits: seven texts, their log-probabilities by token, rewards."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)  # after nothing, after 1, after 2
    reference = torch.randn(3, 3, dtype=torch.float64).log_softmax(-1)
    texts = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]
    return logits, reference, texts, rng.normal(size=len(texts))


def tokens(table, text):
    return torch.stack([table[0 if t == 0 else text[0], token] for t, token in enumerate(text)])


def expected_update(tiny, beta, group, update):
    """Sum the update of every possible group of texts, times its probability."""
    logits, reference, texts, rewards = tiny
    own = logits.log_softmax(-1)
    total = torch.zeros_like(logits)
    for chosen in itertools.product(range(len(texts)), repeat=group):
        log_probs = [tokens(own, texts[i]) for i in chosen]
        refs = [tokens(reference, texts[i]) for i in chosen]
        probability = torch.exp(sum(lp.sum() for lp in log_probs)).item()
        (gradient,) = torch.autograd.grad(update(log_probs, refs, [rewards[i] for i in chosen], beta), logits, retain_graph=True)
        total += probability * gradient
    return total / group


def exact_gradient(tiny, beta):
    logits, reference, texts, rewards = tiny
    own = logits.log_softmax(-1)
    objective = 0.0
    for text, reward in zip(texts, rewards, strict=True):
        log_p, log_q = tokens(own, text).sum(), tokens(reference, text).sum()
        objective = objective + log_p.exp() * (reward - beta * (log_p - log_q))
    return torch.autograd.grad(objective, logits, retain_graph=True)[0]


def surrogate(name, average=0.7):
    def update(log_probs, refs, scores, beta):
        shaped = [(-beta * (lp - ref)).detach().numpy() for lp, ref in zip(log_probs, refs, strict=True)]
        for text, score in zip(shaped, scores, strict=True):
            text[-1] += score
        flat = np.concatenate(shaped)
        offsets = np.cumsum([0] + [len(s) for s in shaped])
        rollout = Rollout(flat, offsets, np.zeros(len(shaped), np.int64), np.zeros_like(flat), average)
        return (torch.from_numpy(ESTIMATORS[name](rollout)) * torch.cat(log_probs)).sum()

    return update


@pytest.mark.parametrize(
    ("name", "group", "factor"), [("reinforce", 1, 1), ("rloo", 2, 1), ("rloo", 3, 1), ("group_mean", 2, 0.5), ("group_mean", 3, 2 / 3)]
)
def test_the_expected_update_is_the_exact_gradient(tiny, name, group, factor):
    exact = exact_gradient(tiny, 0.3)
    found = expected_update(tiny, 0.3, group, surrogate(name))
    torch.testing.assert_close(found, factor * exact, atol=1e-6, rtol=1e-6)
    assert exact.abs().max() > 0.05


@pytest.mark.parametrize("name", ["grpo", "reinforce++", "reinforce++_baseline"])
def test_normalised_estimators_point_elsewhere_but_not_away(tiny, name):
    exact, found = exact_gradient(tiny, 0.3), expected_update(tiny, 0.3, 3, surrogate(name))
    cosine = torch.cosine_similarity(exact.flatten(), found.flatten(), dim=0)
    assert 0.5 < cosine < 0.9999


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_has_the_gradient_of_kl(tiny, estimator):
    def update(log_probs, refs, scores, beta):
        log_prob, ref = torch.cat(log_probs), torch.cat(refs)
        return estimated_kl(estimator, log_prob, (log_prob - log_prob.detach()).exp(), ref).sum()

    def bare(log_probs, refs, scores, beta):  # k1 in the loss
        return (torch.cat(log_probs) - torch.cat(refs)).sum()

    # Token by token, without what later tokens add: E[sum_t grad KL(pi(.|s_t) || ref(.|s_t))]
    logits, reference, texts, _ = tiny
    own = logits.log_softmax(-1)
    local = (own.exp() * (own - reference)).sum(-1)
    visits = torch.stack([torch.tensor(1.0, dtype=torch.float64), own[0, 1].exp(), own[0, 2].exp()]).detach()
    exact = torch.autograd.grad((visits * local).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(expected_update(tiny, 0, 1, update), exact, atol=1e-9, rtol=1e-9)
    assert expected_update(tiny, 0, 1, bare).abs().max() < 1e-12 < exact.abs().max()
    assert len(texts) == 7


def test_estimators_by_hand():
    rewards = np.array([0.0, 1.0, 3.0, 0.5, 0.5, 2.0])  # texts of 2, 1, 2 and 1 tokens; returns 1, 3, 1, 2
    rollout = Rollout(rewards, np.array([0, 2, 3, 5, 6]), np.array([0, 0, 1, 1]), np.arange(6.0), 0.5)
    np.testing.assert_allclose(rollout.to_go, [1, 1, 3, 1, 0.5, 2])
    np.testing.assert_allclose(ESTIMATORS["reinforce"](rollout), [0.5, 0.5, 2.5, 0.5, 0, 1.5])
    np.testing.assert_allclose(ESTIMATORS["rloo"](rollout), [-2, -2, 2, -1, -1, 1])
    np.testing.assert_allclose(ESTIMATORS["group_mean"](rollout), [-1, -1, 1, -0.5, -0.5, 0.5])
    root = np.sqrt(2)
    np.testing.assert_allclose(
        ESTIMATORS["grpo"](rollout),
        [-1 / (root + 1e-4)] * 2 + [1 / (root + 1e-4)] + [-0.5 / (root / 2 + 1e-4)] * 2 + [0.5 / (root / 2 + 1e-4)],
    )
    white = ESTIMATORS["reinforce++"](rollout)
    assert white.mean() == pytest.approx(0) and white.var() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(ESTIMATORS["gae"](rollout), np.arange(6.0))


def test_clipping_and_averages_by_hand(grouped):
    agent = make(RLOO, grouped(), clip_range_high=0.5, dual_clip=3.0)
    agent.learn(30)
    samples = agent.rollout_buffer.samples(np.arange(6))
    log_prob = agent.policy.evaluate_actions(samples.observations, samples.actions)[1].detach()
    ratios = torch.tensor([0.5, 0.9, 1.3, 1.7, 4.0]).repeat(len(log_prob))[: len(log_prob)]
    advantages = torch.tensor([1.0, -1.0, 2.0]).repeat(len(log_prob))[: len(log_prob)]
    forced = samples._replace(old_log_prob=log_prob - ratios.log(), advantages=advantages)
    gains = []
    for r, a in zip(ratios.tolist(), advantages.tolist(), strict=True):
        gain = min(r * a, min(max(r, 0.8), 1.5) * a)
        gains.append(max(gain, 3.0 * a) if a < 0 else gain)
    lengths = np.diff(agent.rollout_buffer._offsets)[:6]
    per_text = np.split(np.array(gains), np.cumsum(lengths)[:-1])
    expected = {
        "token": np.mean(gains), "sequence": np.mean([text.mean() for text in per_text]),
        "budget": np.mean([text.sum() / 9 for text in per_text]),
    }  # fmt: skip
    for name, value in expected.items():
        agent.loss_aggregation = name
        assert agent._loss(forced)[1]["policy_gradient_loss"] == pytest.approx(-value, abs=1e-5), name
    assert agent._loss(forced)[1]["clip_fraction"] == pytest.approx(float(((ratios > 1.5) | (ratios < 0.8)).float().mean()))


def test_equal_groups_are_left_out(grouped):
    env = grouped()
    env.core.reward_model = lambda completions: [1.0] * len(completions)
    agent = make(RLOO, env, skip_equal_groups=True, beta=0.0)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(30)
    assert len(agent.rollout_buffer.trained) == 0
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "rlo"}, "estimator='rlo'"),
        ({"kl_in": "reward", "kl_estimator": "k3"}, "points away"),
        ({"kl_in": "reward", "kl_estimator": "k2"}, "points away"),
        ({"kl_in": "loss", "kl_estimator": "k1"}, "does nothing"),
        ({"loss_aggregation": "mean"}, "loss_aggregation='mean'"),
        ({"dual_clip": 0.5}, "dual_clip=0.5"),
        ({"n_episodes": 18}, "n_episodes=18"),
        ({"reference_mixup": 2}, "from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense(grouped, settings, message):
    with pytest.raises(ValueError, match=message):
        make(RLOO, grouped(), **settings)


def test_groups_are_needed(make_env):
    with pytest.raises(ValueError, match="group_size=1"):
        make(RLOO, make_env())


@pytest.mark.parametrize("algorithm", slow_but([RLOO, Reinforce], CLASSES))
def test_save_load_and_go_on_as_if_nothing_had_happened(grouped, algorithm, tmp_path):
    agent = make(algorithm, grouped())
    agent.learn(100)
    agent.save(tmp_path / "agent")
    agent.learn(150, reset_num_timesteps=False)
    again = algorithm.load(tmp_path / "agent", env=grouped())
    assert again.estimator == agent.estimator and again.average_return != 0
    again.learn(150, reset_num_timesteps=False)
    for (name, one), two in zip(agent.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.reports("An environment that deals no groups is refused wherever it is given, where RLOO divided by zero")
def test_groups_are_needed_in_environments_that_come_later(grouped, make_env, tmp_path):
    agent = make(RLOO, grouped())
    with pytest.raises(ValueError, match="the task deals group_size=1"):
        agent.set_env(make_env())
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="the task deals group_size=1"):
        RLOO.load(tmp_path / "agent", env=make_env())
    loaded = RLOO.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="the task deals group_size=1"):
        loaded.set_env(make_env())
    loaded.set_env(grouped())
    loaded.learn(1)


@pytest.mark.reports("Whitening a rollout of one text is refused, where every advantage was 0")
@pytest.mark.parametrize("settings", [{"estimator": "reinforce++"}, {"estimator": "reinforce", "whiten_advantages": True}], ids=str)
def test_one_text_is_not_whitened(make_env, settings):
    with pytest.raises(ValueError, match="n_episodes=1: whitened advantages compare the texts of a rollout"):
        make(TextPolicyGradient, make_env(), n_episodes=1, **settings)


@pytest.mark.parametrize("algorithm", [RLOO, Reinforce, ReinforcePlusPlus])
@pytest.mark.slow
def test_the_optimum_is_reached(algorithm):
    table = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 4, "length": 7}
    agent = algorithm(
        "TransformerPolicy", TASKS["Long"].id, n_episodes=64, batch_size=64, learning_rate=lambda left: 0.1 * left, beta=0.3, seed=0,
        policy_kwargs={"model": table},
    )  # fmt: skip
    agent.learn(40_000)
    assert optimality_gap(agent.policy.backbone, agent.rollout_buffer.reference, "Long", 0.3).closed > 0.85
