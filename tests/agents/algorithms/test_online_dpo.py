"""Online DPO: pairs of the policy's own texts, who is preferred, and its loss against formulas worked out apart."""

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from agents import DPO, OnlineDPO
from agents.algorithms.common.training_warnings import TrainingWarning
from agents.algorithms.dpo import Pair
from agents.evaluation.exact_optimum import distributions
from rewards import register
from textrl_env import IntegerTokenizer, Prompt, RewardError, TextGenerationVecEnv, TextTask, reward_model
from textrl_env.tasks.exact import TokenTree

from ..conftest import LLAMA, VOCAB, sevens

PROMPTS = [Prompt("1 2 3", references=("7",)), Prompt("4", metadata={"level": 2}), Prompt("5 6 7 8 9 10")]


def make_env(reward=sevens, prompts=PROMPTS, group_size=2, rows=16, **settings):
    task = TextTask(IntegerTokenizer(VOCAB, 0), prompts, max_new_tokens=9, group_size=group_size, **settings)
    env = TextGenerationVecEnv(rows, task=task, reward=reward)
    env.seed(3)
    return env


def make(env=None, **settings):
    arguments = {"n_episodes": 16, "batch_size": 8, "learning_rate": 1e-2, "seed": 0, "beta": 0.3, "policy_kwargs": {"model": LLAMA}}
    return OnlineDPO("TransformerPolicy", make_env() if env is None else env, **{**arguments, **settings})


def rolled_out(agent):
    """Write a rollout, and move the policy away from who wrote it."""
    _, callback = agent._setup_learn(10_000)
    agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
    agent._prefer()
    with torch.no_grad():
        for parameter in agent.policy.lm.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return agent.rollout_buffer


def expected_loss(agent, labels):
    """DPO's own trainer on the same pairs; it draws from the whole vocabulary, as the policy does."""
    buffer = agent.rollout_buffer
    trainer = DPO(agent.policy.lm, IntegerTokenizer(VOCAB, 0), beta=0.3, reference=LLAMA)
    trainer.reference.lm.load_state_dict(agent.reference.state_dict())
    pairs = [Pair(buffer.record(int(a)), buffer.record(int(b)), label) for (a, b), label in zip(buffer.trained, labels, strict=True)]
    loss = trainer.loss_of(pairs)
    return loss, torch.autograd.grad(loss, list(agent.policy.lm.parameters()))


@pytest.mark.parametrize("at_once", [0, 1, 4])
def test_the_loss_is_dpos_on_the_texts_that_it_wrote(at_once):
    agent = make(policy_kwargs={"model": LLAMA, "micro_batch_size": at_once})
    buffer = rolled_out(agent)
    assert 3 < len(buffer.trained) < 8  # ties are left out
    for chosen, rejected in buffer.trained:
        one, two = buffer.segments[chosen], buffer.segments[rejected]
        assert one.prompt_id == two.prompt_id and buffer.scores[chosen] > buffer.scores[rejected]
    loss, gradients = expected_loss(agent, [1.0] * len(buffer.trained))
    agent.policy.set_training_mode(True)
    agent.policy.optimizer.zero_grad()
    (parts,) = buffer.parts(64, at_once and max(1, at_once // 2))
    assert sum(len(part.samples.observations.input_ids) for part in parts) == buffer.trained.size
    notes = [agent.engine.add_gradients(agent._loss, part.samples, part.whole, last=part.last) for part in parts]
    assert sum(note["loss"] for note in notes) == pytest.approx(loss.item(), abs=1e-6)
    for parameter, gradient in zip(agent.policy.lm.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


class Longer:
    """Compares: the longer of two texts is better with probability 0.8; and keeps what it was asked."""

    asked: ClassVar[list] = []

    def score(self, episodes):
        raise AssertionError("it compares")

    def compare(self, firsts, seconds):
        Longer.asked += list(zip(firsts, seconds, strict=True))
        lengths = [(len(one.response.split()), len(two.response.split())) for one, two in zip(firsts, seconds, strict=True)]
        return [0.5 + 0.3 * np.sign(one - two) for one, two in lengths]


class Wrong(Longer):
    def compare(self, firsts, seconds):
        return [2.0] * len(firsts)


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    monkeypatch.setattr(reward_model, "_TABLE", dict(reward_model._TABLE))  # other tests list what is registered
    register("longer", Longer)
    register("wrong_judge", Wrong)


def test_a_judge_compares_instead_of_the_reward():
    Longer.asked = []
    agent = make(judge={"name": "longer"})
    buffer = rolled_out(agent)
    assert len(Longer.asked) == 8
    assert {(one.references, one.metadata.get("level")) for one, _ in Longer.asked} <= {(("7",), None), ((), 2), ((), None)}
    assert all(one.prompt == two.prompt for one, two in Longer.asked)
    lengths = np.diff(buffer._offsets) - np.array([buffer.record(i).actions[-1] == 0 for i in range(16)])  # without the end of text
    assert len(buffer.trained) and (lengths[buffer.trained[:, 0]] > lengths[buffer.trained[:, 1]]).all()
    assert sorted(len(one.response.split()) for pair in Longer.asked for one in pair) == sorted(lengths.tolist())
    loss, _ = expected_loss(agent, [0.8] * len(buffer.trained))
    assert agent._loss(buffer.samples(buffer.trained.ravel()))[1]["loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_its_expected_gradient_vanishes_at_the_optimum_if_a_judge_follows_bradley_and_terry():
    """Over all pairs of texts, as often as the policy itself writes them: the optimum does not depend on who writes."""
    beta, rng = 0.5, np.random.default_rng(0)
    rewards = rng.normal(size=(3, 3))
    tree = TokenTree(3, 2, lambda texts: rewards[texts[:, 0], texts[:, 1]])
    texts = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]

    def score(text):
        return rewards[text[0], text[1] if len(text) > 1 else 0]

    def scores(prompts, completions):
        return [0.0] * len(completions)

    task = TextTask(IntegerTokenizer(3, 0), [Prompt("1")], max_new_tokens=2, group_size=2)
    table = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 3, "length": 3}
    env = TextGenerationVecEnv(512, task=task, reward=scores)
    agent = make(env, n_episodes=512, batch_size=512, beta=beta, policy_kwargs={"model": table})
    rows = agent.policy.lm.rows.weight
    reference = distributions(agent.rollout_buffer.reference, 1, tree.prefixes, 3)
    _, star = tree.optimum(reference, beta)

    def gradient(levels):
        """Of DPO's loss under pairs that the policy writes, by the buffer's own samples of each text."""
        _, callback = agent._setup_learn(10_000)
        agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
        buffer, where = agent.rollout_buffer, {}
        for index in range(512):
            where.setdefault(tuple(buffer.record(index).actions.tolist()), index)
        assert set(where) == set(texts)
        total = torch.zeros_like(rows)
        for one, two in itertools.combinations(texts, 2):
            label = 1 / (1 + math.exp(score(two) - score(one)))
            weight = math.exp(sum(levels[i][0 if i == 0 else text[0] - 1, text[i]] for text in (one, two) for i in range(len(text))))
            advantages = np.zeros(buffer._offsets[-1], np.float32)
            for text, better in ((one, label), (two, 1 - label)):
                advantages[buffer._offsets[where[text]] : buffer._offsets[where[text] + 1]] = better
            buffer.set_advantages(advantages)
            loss, _ = agent._loss(buffer.samples(np.array([where[one], where[two]])))
            total += 2 * weight * torch.autograd.grad(loss, rows)[0]
        return total.abs().max()

    assert gradient(reference) > 0.01
    with torch.no_grad():
        rows[2] = torch.from_numpy(star[0][0]).float()
        for token in (1, 2):
            rows[2 + (token + 1) * 4] = torch.from_numpy(star[1][token - 1]).float()
    assert gradient(star) < 1e-6


def test_it_learns_and_logs_under_the_usual_names():
    agent = make(n_episodes=32, batch_size=32, n_epochs=2)
    seen = []
    for _ in range(12):
        agent.learn(1, reset_num_timesteps=False)
        seen.append(agent.last_rollout.stats.score)
    assert np.mean(seen[-3:]) > np.mean(seen[:3]) + 0.5
    logged = agent.logger.name_to_value
    names = ("objective/loss", "objective/score", "kl/per_sequence", "policy/accuracy", "policy/approx_kl", "policy/grad_norm")
    assert all(np.isfinite(logged[name]) for name in (*names, "tokens/share_trained", "time/updates", "policy/learning_rate"))
    assert 0.5 <= logged["policy/accuracy"] <= 1 and 0 < logged["tokens/share_trained"] <= 1 and agent._n_updates == 24


def test_killed_and_resumed_equals_never_killed(tmp_path):
    straight = make()
    straight.learn(400)
    half = make()
    half.learn(150)
    half.save(tmp_path / "model.zip")
    resumed = OnlineDPO.load(tmp_path / "model.zip", env=make_env())
    resumed.learn(400 - resumed.num_timesteps, reset_num_timesteps=False)
    assert (straight.num_timesteps, straight.num_rollouts) == (resumed.num_timesteps, resumed.num_rollouts)
    assert all(torch.equal(one, two) for one, two in zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True))


def test_a_checkpoint_keeps_its_judge(tmp_path):
    agent = make(judge={"name": "longer"})
    agent.save(tmp_path / "model.zip")
    Longer.asked = []
    loaded = OnlineDPO.load(tmp_path / "model.zip", env=make_env())
    loaded.learn(1)
    assert loaded.judge == {"name": "longer"} and len(Longer.asked) == 8


def test_a_reward_without_preferences_says_so():
    agent = make(make_env(reward=lambda prompts, completions: [1.0] * len(completions)))
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    with pytest.warns(UserWarning) as warned:  # the reward is told to be constant, too
        agent.learn(1)
    assert any(w.category is TrainingWarning and "no pair of rollout 1 has a preference" in str(w.message) for w in warned)
    assert all(torch.equal(one, two) for one, two in zip(before, agent.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_episodes": 15}, "n_episodes=15, batch_size=8: online DPO compares two texts"),
        ({"batch_size": 7}, "batch_size=7: online DPO"),
        ({"beta": 0.0}, "beta=0.0: must be positive"),
        ({"gamma": 0.9}, "gamma: pairs are compared by what the environment pays in all"),
        ({"rollout_buffer_kwargs": {"norm_reward": True}}, "norm_reward: pairs are compared by what the environment pays in all"),
        ({"judge": {"name": "vader"}}, "has no method compare"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
    with pytest.raises(ValueError, match="group_size=4 of the task"):
        make(make_env(group_size=4))


def test_a_judge_that_gives_no_probabilities_stops_the_run():
    with pytest.raises(RewardError, match="one probability each is needed"):
        make(judge={"name": "wrong_judge"}).learn(1)
