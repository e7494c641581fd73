"""The reference's log-probabilities as rewards, against full forward passes and on a task that can be solved exactly."""

import itertools
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor

from agents.models.loading import frozen, load_lm
from agents.models.sampler import Sampler
from agents.rollouts import reference_kl_wrappers as reference_kl
from agents.rollouts.reference_kl_wrappers import ReferenceKL, ReferenceKLVecEnv, ReferenceKLVector
from textrl_env import TextGenerationEnv, TextGenerationVecEnv, TextGenerationVectorEnv

from ..conftest import EOS, GPT2, LLAMA, VOCAB, sevens

BETA = 0.3


@pytest.fixture
def reference():
    return frozen(load_lm(LLAMA))


def ids_of(obs, row):
    return [int(t) for key in ("prompt", "response") for t in obs[key][row] if t >= 0]


def log_prob(reference, ids, token, temperature=1.0, barred=()):
    logits = reference(input_ids=torch.tensor([ids])).logits[0, -1] / temperature
    logits[list(barred)] = -torch.inf
    return float(logits.log_softmax(-1)[token])


@pytest.fixture(params=["one turn", "dialogue"])
def any_task(request, task):
    """A text that is written in one go, or to which the environment adds two tokens after each turn."""
    if request.param == "one turn":
        return task
    return replace(task, reply=lambda episodes: ["5 6" for _ in episodes], max_turns=2)


def test_steps_of_the_three_shells_against_full_forward_passes(reference, any_task):
    """Rows end at different times: end-of-text is likely, and the limit is 9."""
    sampler = Sampler(temperature=0.7, min_new_tokens=2, eos_token_id=EOS)
    vector = ReferenceKLVector(TextGenerationVectorEnv(3, any_task, sevens), reference, BETA, sampler)
    sb3 = ReferenceKLVecEnv(TextGenerationVecEnv(3, any_task, sevens), reference, BETA, sampler)
    scalar = ReferenceKL(TextGenerationEnv(any_task, sevens), reference, BETA, sampler)  # the same texts as row 0
    obs, _ = vector.reset(seed=1)
    sb3.seed(1)
    sb3.reset()
    scalar.reset(seed=1)
    rng = np.random.default_rng(0)
    ends = []
    for step in range(40):
        begun = (obs["response"] >= 0).sum(1) >= 2
        actions = np.where(begun & (rng.random(3) < 0.3), EOS, rng.integers(1, VOCAB, size=3))
        own = -rng.random(3)
        expected = []
        for row in range(3):
            barred = () if begun[row] else (EOS,)
            expected.append(BETA * (log_prob(reference, ids_of(obs, row), actions[row], 0.7, barred) - own[row]))
        vector.log_probs = sb3.log_probs = own
        scalar.log_probs = own[0]
        obs, rewards, ended, _, infos = vector.step(actions)
        _, sb3_rewards, _, sb3_infos = sb3.step(actions)
        _, reward, over, _, info = scalar.step(actions[0])
        np.testing.assert_allclose(infos["kl_reward"], expected, atol=1e-5)
        np.testing.assert_allclose([i["kl_reward"] for i in sb3_infos], expected, atol=1e-5)
        assert info["kl_reward"] == pytest.approx(expected[0], abs=1e-5)
        np.testing.assert_allclose(rewards, sb3_rewards, atol=1e-5)
        assert reward == pytest.approx(rewards[0], abs=1e-5)
        for row in np.flatnonzero(ended):
            ends.append((step, int(row)))
            score = infos["final_info"]["score"][row]
            assert score == sb3_infos[row]["score"]
            assert rewards[row] == pytest.approx(score + expected[row], abs=1e-5)
        assert over == ended[0]
        if over:
            assert info["score"] == infos["final_info"]["score"][0]
            scalar.reset()
        assert vector.log_probs is None and sb3.log_probs is None and scalar.log_probs is None
    assert {row for _, row in ends} == {0, 1, 2} and len({step for step, _ in ends}) > 5


def test_a_text_sums_to_score_minus_beta_times_the_log_ratio(reference, task):
    env = ReferenceKL(TextGenerationEnv(task, sevens), reference, BETA)
    obs, _ = env.reset(seed=0)
    total = own = theirs = 0.0
    for token in (7, 3, 7, EOS):
        ids = ids_of({key: value[None] for key, value in obs.items()}, 0)
        theirs += log_prob(reference, ids, token)
        own -= 0.5
        env.log_probs = -0.5
        obs, reward, ended, _, info = env.step(token)
        total += reward
    assert ended and info["score"] == 2
    assert total == pytest.approx(2 - BETA * (own - theirs), abs=1e-5)


def test_beta_zero_changes_nothing(reference, task):
    plain, wrapped = TextGenerationVectorEnv(2, task, sevens), ReferenceKLVector(TextGenerationVectorEnv(2, task, sevens), reference, 0.0)
    for env in (plain, wrapped):
        env.reset(seed=0)
    for token in (7, 7, EOS):
        expected, (obs, rewards, *_, infos) = plain.step(np.full(2, token)), wrapped.step(np.full(2, token))
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(obs["response"], expected[0]["response"])
        np.testing.assert_array_equal(infos["kl_reward"], 0)
    np.testing.assert_array_equal(rewards, 2)


def test_the_action_of_a_step_that_resets_is_not_scored(reference, task):
    """Row 0 ends at once and starts anew in the next step, where what it is told to write counts for nothing."""
    env = ReferenceKLVector(TextGenerationVectorEnv(2, task, sevens, autoreset_mode="NextStep"), reference, BETA)
    env.reset(seed=0)
    for actions, live in (([EOS, 3], [True, True]), ([99, 3], [False, True]), ([3, 3], [True, True])):
        _, rewards, *_, infos = env.step(np.array(actions))
        assert (infos["kl_reward"] != 0).tolist() == (rewards != 0).tolist() == live


def test_idle_rows_get_nothing(reference, task):
    env = ReferenceKLVecEnv(TextGenerationVecEnv(3, task, sevens), reference, BETA)
    env.env_method("begin_rollout", 2)
    env.seed(0)
    env.reset()
    for actions, live in (([EOS, 3, 3], [True, True, False]), ([99, 3, -5], [False, True, False])):
        env.log_probs = np.array([-1.0, -1.0, -1.0])
        _, rewards, _, infos = env.step(np.array(actions))
        assert [info["kl_reward"] != 0 for info in infos] == live
        assert (rewards != 0).tolist() == live


def test_log_probs_reach_the_wrapper_through_others(reference, task):
    """An assignment to SB3's VecMonitor would stay on it; `set_attr` goes through, as `set_wrapper_attr` does in gymnasium."""
    inner = ReferenceKLVecEnv(TextGenerationVecEnv(2, task, sevens), reference, BETA)
    outer = VecMonitor(inner)
    outer.reset()
    outer.set_attr("log_probs", np.array([-1.0, -2.0]))
    np.testing.assert_array_equal(inner.log_probs, [-1, -2])
    outer.set_attr("reward_model", "length")
    assert type(inner.venv.reward_model).__name__ == "LengthReward"
    with pytest.raises(ValueError, match=r"indices=\[0\]"):
        outer.set_attr("log_probs", np.array([-1.0]), indices=[0])
    scalar = ReferenceKL(TextGenerationEnv(task, sevens), reference, BETA)
    gym.wrappers.RecordEpisodeStatistics(scalar).set_wrapper_attr("log_probs", -1.0)
    assert scalar.log_probs == -1


def test_log_probs_do_not_outlive_their_step(reference, task):
    env = ReferenceKL(TextGenerationEnv(task, sevens), reference, BETA)
    env.reset(seed=0)
    expected = env.step(3)[1]
    env.log_probs = -1.0
    env.reset(seed=0)  # the text was given up: the number belongs to no step
    assert env.step(3)[1] == pytest.approx(expected, abs=1e-6)
    env.reset(seed=0)
    env.log_probs = np.nan
    with pytest.raises(ValueError, match="log_probs hold nan"):
        env.step(3)
    assert env.step(3)[1] == pytest.approx(expected, abs=1e-6)


def test_a_module_that_trains_is_copied(task):
    """Training it further, or its dropout, must not move the reference."""
    module = load_lm({**GPT2, "resid_pdrop": 0.5})
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5  # load_lm switched it off
    module.train()
    env = ReferenceKLVector(TextGenerationVectorEnv(2, task, sevens), module, BETA)

    def first():
        env.reset(seed=0)
        env.kl._cache.drop()
        return env.step(np.array([3, 4]))[4]["kl_reward"]

    before = first()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    np.testing.assert_array_equal(first(), before)
    assert module.training and all(p.requires_grad for p in module.parameters())


def test_a_reference_with_spare_tokens_is_renormalised(task):
    """Vocabularies are often padded; the agent cannot write those tokens."""
    wide = frozen(load_lm({**LLAMA, "vocab_size": VOCAB + 8}))
    env = ReferenceKL(TextGenerationEnv(task, sevens), wide, 1.0)
    obs, _ = env.reset(seed=0)
    expected = log_prob(wide, [int(t) for t in obs["prompt"] if t >= 0], 7, barred=range(VOCAB, VOCAB + 8))
    assert env.step(7)[1] == pytest.approx(expected, abs=1e-5)


def test_made_again_from_its_spec():
    env = ReferenceKL(gym.make("textrl/Review-v0"), {**LLAMA, "vocab_size": 4096}, BETA, Sampler(temperature=0.5))
    again = gym.make(env.spec)
    assert isinstance(again, ReferenceKL)
    assert (again.kl.beta, again.kl.sampler.temperature) == (BETA, 0.5)


def test_bad_input(reference, task):
    env = TextGenerationVectorEnv(2, task, sevens)
    wrapped = ReferenceKLVector(env, reference, BETA)
    with pytest.raises(RuntimeError, match="reset"):
        wrapped.step(np.array([1, 2]))
    wrapped.reset(seed=0)
    for values, message in (([-1.0], "shape"), ([np.nan, -1.0], "hold nan"), ([-np.inf, -1.0], "hold -inf"), ([0.5, -1.0], "hold 0.5")):
        wrapped.log_probs = values
        with pytest.raises(ValueError, match=message):
            wrapped.step(np.array([1, 2]))
    with pytest.raises(ValueError, match=f"token id 99 is outside the vocabulary \\[0, {VOCAB}\\)"):
        wrapped.step(np.array([1, 99]))
    with pytest.raises(ValueError, match="one token id for each of 2 rows"):
        wrapped.step(np.array([1]))
    with pytest.raises(TypeError, match="float64"):
        wrapped.step(np.array([1.0, 2.0]))


def test_references_and_environments_that_do_not_fit(reference, task):
    env = TextGenerationVectorEnv(2, task, sevens)
    for beta in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"beta={beta}"):
            ReferenceKLVector(env, reference, beta)
    with pytest.raises(ValueError, match="has 8 tokens, the environment 24"):
        ReferenceKLVector(env, {**LLAMA, "vocab_size": 8}, BETA)
    with pytest.raises(ValueError, match="reads 8 tokens, prompt and response take 15"):
        ReferenceKLVector(env, {**GPT2, "n_positions": 8}, BETA)
    with pytest.raises(ValueError, match="static rules only"):
        ReferenceKLVector(env, reference, BETA, Sampler(top_k=3))
    with pytest.raises(TypeError, match="Linear lacks vocab_size"):
        ReferenceKLVector(env, torch.nn.Linear(2, 2), BETA)
    with pytest.raises(TypeError, match="a text environment has"):
        ReferenceKL(gym.make("CartPole-v1"), reference, BETA)


class Enumerable:
    """All texts of 3 out of 3 tokens: 13 states, 27 texts, tabular policies."""

    def __init__(self, beta, seed):
        rng = np.random.default_rng(seed)
        self.beta = beta
        self.texts = list(itertools.product(range(3), repeat=3))
        self.states = [t for n in range(3) for t in itertools.product(range(3), repeat=n)]
        number = {state: i for i, state in enumerate(self.states)}
        self.steps = torch.tensor([[number[text[:n]] for n in range(3)] for text in self.texts])  # (27, 3) states on the way
        self.tokens = torch.tensor(self.texts)  # (27, 3)
        self.reward = torch.tensor(rng.normal(size=27) * 1.5)
        self.reference = torch.tensor(rng.normal(size=(13, 3))).log_softmax(-1)  # (13, 3)

    def of_texts(self, log_policy):
        """Log-probability of each text under a table (13, 3) of log-probabilities."""
        return log_policy[self.steps, self.tokens].sum(-1)  # (27,)

    def objective(self, log_policy):
        log_p = self.of_texts(log_policy)
        return (log_p.exp() * (self.reward - self.beta * (log_p - self.of_texts(self.reference)))).sum()

    def loss_side(self, log_policy):
        """E[R + beta log ref] plus beta times the entropy of visited states, how often they are visited held fixed."""
        log_p = self.of_texts(log_policy)
        shaped = (log_p.exp() * (self.reward + self.beta * self.of_texts(self.reference))).sum()
        visits = torch.zeros(13, dtype=torch.float64)
        visits.index_add_(0, self.steps.flatten(), log_p.exp().detach()[:, None].expand(-1, 3).flatten())
        entropy = -(log_policy.exp() * log_policy).sum(-1)  # (13,)
        return shaped + self.beta * (visits * entropy).sum()

    def climb(self, objective):
        """Exact gradient ascent from the reference; returns J of where it ends."""
        logits = self.reference.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.03)
        for _ in range(2500):
            optimizer.zero_grad()
            (-objective(logits.log_softmax(-1))).backward()
            optimizer.step()
        return self.objective(logits.detach().log_softmax(-1)).item()

    def optimum(self):
        return self.beta * torch.logsumexp(self.of_texts(self.reference) + self.reward / self.beta, 0).item()

    def backward_induction(self, soft):
        """J of softmax(Q / beta) in every state, with the entropy ahead in the value of a state, or not."""
        values = {text: self.reward[i] for i, text in enumerate(self.texts)}
        log_policy = torch.zeros_like(self.reference)
        for i in reversed(range(13)):
            q = torch.stack([self.beta * self.reference[i, a] + values[(*self.states[i], a)] for a in range(3)])
            log_policy[i] = (q / self.beta).log_softmax(-1)
            values[self.states[i]] = self.beta * (q / self.beta).logsumexp(-1) if soft else log_policy[i].exp() @ q
        return self.objective(log_policy).item()


def test_a_loss_side_entropy_bonus_is_another_objective():
    task = Enumerable(beta=0.5, seed=1)
    optimum, shaped, bonus = task.optimum(), task.climb(task.objective), task.climb(task.loss_side)
    assert shaped == pytest.approx(optimum, abs=1e-4)
    assert shaped == pytest.approx(task.backward_induction(soft=True), abs=1e-4)
    assert bonus == pytest.approx(task.backward_induction(soft=False), abs=1e-4)
    assert bonus < optimum - 0.04


def test_the_table_in_the_documentation():
    tasks = [Enumerable(beta=0.5, seed=seed) for seed in range(4)]
    rows = {
        "optimum, ": [t.optimum() for t in tasks],
        "in the reward  ": [t.backward_induction(soft=True) for t in tasks],
        "in the loss  ": [t.backward_induction(soft=False) for t in tasks],
    }
    for label, values in rows.items():
        (line,) = [line for line in reference_kl.__doc__.splitlines() if label in line]
        assert line.split()[-4:] == [f"{value:.3f}" for value in values]
