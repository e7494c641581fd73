"""The reference's log-probabilities as rewards, against full forward passes and on a task that can be solved exactly."""

import itertools

import numpy as np
import pytest
import torch

from agents import reference_kl
from agents.lm import frozen, load_lm
from agents.reference_kl import ReferenceKL, ReferenceKLVecEnv, ReferenceKLVector
from agents.sampler import Sampler
from textrl_env import TextGenerationEnv, TextGenerationVecEnv, TextGenerationVectorEnv

from .conftest import EOS, LLAMA, VOCAB, sevens

BETA = 0.3


@pytest.fixture
def reference():
    return frozen(load_lm(LLAMA))


def ids_of(obs, row):
    return [int(t) for key in ("prompt", "response") for t in obs[key][row] if t >= 0]


def log_prob(reference, ids, token, temperature=1.0):
    logits = reference(input_ids=torch.tensor([ids])).logits[0, -1] / temperature
    return float(logits.log_softmax(-1)[token])


def test_steps_of_both_vector_shells_against_full_forward_passes(reference, task):
    """Rows end at different times: end-of-text is likely, and the limit is 9."""
    vector = ReferenceKLVector(TextGenerationVectorEnv(3, task, sevens), reference, BETA, Sampler(temperature=0.7))
    sb3 = ReferenceKLVecEnv(TextGenerationVecEnv(3, task, sevens), reference, BETA, Sampler(temperature=0.7))
    obs, _ = vector.reset(seed=1)
    sb3.seed(1)
    sb3.reset()
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(30):
        actions = np.where(rng.random(3) < 0.2, EOS, rng.integers(VOCAB, size=3))
        own = -rng.random(3)
        expected = [BETA * (log_prob(reference, ids_of(obs, r), actions[r], 0.7) - own[r]) for r in range(3)]
        vector.log_probs = sb3.log_probs = own
        obs, rewards, ended, _, infos = vector.step(actions)
        _, sb3_rewards, _, sb3_infos = sb3.step(actions)
        np.testing.assert_allclose(infos["kl_reward"], expected, atol=1e-5)
        np.testing.assert_allclose([info["kl_reward"] for info in sb3_infos], expected, atol=1e-5)
        np.testing.assert_allclose(rewards, sb3_rewards, atol=1e-5)
        for row in np.flatnonzero(ended):
            ends += 1
            assert rewards[row] == pytest.approx(infos["final_info"]["score"][row] + expected[row], abs=1e-5)
        assert vector.log_probs is None
    assert ends > 5


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
    plain, wrapped = TextGenerationEnv(task, sevens), ReferenceKL(TextGenerationEnv(task, sevens), reference, 0.0)
    for env in (plain, wrapped):
        env.reset(seed=0)
    for token in (7, 7, EOS):
        assert plain.step(token)[1] == wrapped.step(token)[1]


def test_bad_input(reference, task):
    env = TextGenerationVectorEnv(2, task, sevens)
    for values, message in (([-1.0], "shape"), ([np.nan, -1.0], "finite"), ([0.5, -1.0], "at most 0")):
        wrapped = ReferenceKLVector(env, reference, BETA)
        wrapped.reset(seed=0)
        wrapped.log_probs = values
        with pytest.raises(ValueError, match=message):
            wrapped.step(np.array([1, 2]))
    with pytest.raises(ValueError, match="beta=-1"):
        ReferenceKLVector(env, reference, -1)
    with pytest.raises(ValueError, match="has 8 tokens, the environment 24"):
        ReferenceKLVector(env, {**LLAMA, "vocab_size": 8}, BETA)
    with pytest.raises(ValueError, match="static rules only"):
        ReferenceKLVector(env, reference, BETA, Sampler(top_k=3))


class Enumerable:
    """All texts of 3 out of 3 tokens: 13 states, 27 texts, tabular policies."""

    def __init__(self, beta, seed):
        rng = np.random.default_rng(seed)
        self.beta = beta
        self.texts = list(itertools.product(range(3), repeat=3))
        states = [t for n in range(3) for t in itertools.product(range(3), repeat=n)]
        number = {state: i for i, state in enumerate(states)}
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


def test_a_loss_side_entropy_bonus_is_another_objective():
    task = Enumerable(beta=0.5, seed=1)
    optimum = 0.5 * torch.logsumexp(task.of_texts(task.reference) + task.reward / 0.5, 0).item()
    shaped, bonus = task.climb(task.objective), task.climb(task.loss_side)
    assert shaped == pytest.approx(optimum, abs=1e-4)
    assert bonus < optimum - 0.01
    for figure in (optimum, shaped, bonus):
        assert f"{figure:.3f}" in reference_kl.__doc__
