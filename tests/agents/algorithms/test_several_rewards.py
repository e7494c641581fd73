"""GDPO: sums of rewards whose terms are normalised apart, against plain NumPy and the paper's own example."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from agents import GRPO, RLOO, TextPolicyGradient
from agents.algorithms.common.advantage_estimators import ESTIMATORS, Rollout
from agents.algorithms.common.reward_parts import RewardParts
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import LLAMA, VOCAB, sevens


def lengths(prompts, completions):
    """Applies to the prompt 4 only."""
    return [None if prompt != "4" else -10.0 * len(text.split()) for prompt, text in zip(prompts, completions, strict=True)]


SUM = {"name": "sum", "terms": {"sevens": sevens, "length": lengths}, "weights": {"sevens": 2.0, "length": 0.5}}


def make_env(reward=SUM, **task):
    settings = {"max_new_tokens": 9, "group_size": 4, **task}
    env = TextGenerationVecEnv(16, task=TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4")], **settings), reward=reward)
    env.seed(3)
    return env


def make(env, algorithm=GRPO, **settings):
    arguments = {"n_episodes": 16, "batch_size": 8, "learning_rate": 1e-2, "seed": 0, "policy_kwargs": {"model": LLAMA, "temperature": 4.0}}
    return algorithm("TransformerPolicy", env, **{**arguments, "estimator": "gdpo", **settings})


def by_numpy(values, weights, groups):
    """The formulas of Liu et al. 2026, with NaN left out of means, deviations and sums."""
    total = np.zeros(len(groups))
    for weight, row in zip(weights, values, strict=True):
        for group in np.unique(groups):
            own = row[groups == group]
            there = own[~np.isnan(own)]
            if len(there) > 1:
                total[groups == group] += np.nan_to_num(weight * (own - there.mean()) / (there.std(ddof=1) + 1e-4))
    return (total - total.mean()) / np.sqrt(total.var() + 1e-8)


def test_against_numpy():
    rng = np.random.default_rng(0)
    groups, sizes = np.repeat([0, 1, 2], 4), rng.integers(1, 4, 12)
    values, weights = rng.normal(size=(3, 12)) * [[1], [100], [0.01]], np.array([1.0, 0.5, -2.0])
    values[0, 4:8] = np.nan  # a term that does not apply to a prompt
    values[1, [0, 9]] = np.nan
    values[2, 1:4] = np.nan  # one text says nothing
    rollout = Rollout(
        np.zeros(sizes.sum()), np.cumsum([0, *sizes]), groups, np.zeros(0), 0.0, parts=RewardParts(values, weights)
    )  # fmt: skip
    np.testing.assert_allclose(ESTIMATORS["gdpo"](rollout), np.repeat(by_numpy(values, weights, groups), sizes), atol=1e-9)


def test_the_papers_example():
    """Two texts and two rewards: to GRPO (0, 1), (0, 2) and (1, 2) are one, and GDPO tells a text that wins both from one that wins one."""
    first, second = np.array([0.0, 1, 0, 1, 0, 1]), np.array([0.0, 0, 0, 1, 1, 1])  # sums: 0, 1 | 0, 2 | 1, 2
    groups, offsets = np.repeat([0, 1, 2], 2), np.arange(7)
    rollout = Rollout(first + second, offsets, groups, np.zeros(6), 0.0, parts=RewardParts(np.array([first, second]), np.ones(2)))
    root = np.sqrt(0.5)
    np.testing.assert_allclose(ESTIMATORS["grpo"](rollout), [-root, root] * 3, rtol=3e-4)
    expected = root * np.array([-1, 1, -2, 2, -1, 1])  # of mean 0 and variance 1, so that whitening changes nothing
    np.testing.assert_allclose(ESTIMATORS["gdpo"](rollout), expected, rtol=3e-4)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_a_rollout(penalty):
    agent = make(make_env(missing_eos_penalty=penalty), skip_equal_groups=True, max_sampling_rounds=2)
    agent.learn(60)
    buffer = agent.rollout_buffer
    infos, groups = buffer.infos, np.array([s.prompt_id for s in buffer.segments])
    assert [info["prompt_id"] for info in infos] == groups.tolist() and {*groups.tolist()} == {0, 1}
    np.testing.assert_allclose(buffer.scores, [info["return"] for info in infos])
    seven, length = ([np.nan if info["reward_terms"][n] is None else info["reward_terms"][n] for info in infos] for n in SUM["terms"])
    assert np.isnan(length).tolist() == (groups == 0).tolist()
    fine = [-penalty * (info["finish_reason"] == "length") for info in infos]
    assert np.ptp(fine) == penalty
    expected = by_numpy(np.array([seven, length, fine]), [2.0, 0.5, 1.0], groups)
    np.testing.assert_allclose(buffer.advantages, np.repeat(expected, np.diff(buffer._offsets)), atol=1e-5)


def test_groups_that_differ_in_a_term_are_kept():
    """Sums are equal, terms are not: RLOO leaves all groups out, GDPO those that write equally many sevens."""
    tens = lambda completions: [-2.0 * text.split().count("7") for text in completions]  # noqa: E731
    reward = {"name": "sum", "terms": {"a": sevens, "b": tens}, "weights": {"a": 2.0}}
    for algorithm, estimator in ((RLOO, "rloo"), (TextPolicyGradient, "gdpo")):
        agent = make(make_env(reward), algorithm, estimator=estimator, beta=0.0, skip_equal_groups=True, n_episodes=16)
        with pytest.warns(UserWarning, match="rollout"):  # all scores are equal
            agent.learn(30)
        written = [(info["prompt_id"], info["reward_terms"]["a"]) for info in agent.rollout_buffer.infos]
        differ = [i for i, (prompt, _) in enumerate(written) if len({sevens for other, sevens in written if other == prompt}) > 1]
        assert differ and agent.rollout_buffer.trained.tolist() == ([] if estimator == "rloo" else differ)
    equal = {"name": "sum", "terms": {"a": lambda completions: [0.1] * len(completions)}}
    agent = make(make_env(equal), skip_equal_groups=True)
    with pytest.warns(UserWarning, match="rollout"):
        agent.learn(30)
    assert len(agent.rollout_buffer.trained) == 0


def test_what_it_cannot_see_is_refused():
    for settings, message in (
        ({"kl_in": "reward", "kl_estimator": "k1"}, "kl_in='reward'"),
        ({"rollout_buffer_kwargs": {"norm_reward": True}}, "norm_reward"),
        ({"rollout_buffer_kwargs": {"clip_reward": 2.0}}, "clip_reward"),
    ):
        with pytest.raises(ValueError, match=message):
            make(make_env(), **settings)
    with pytest.raises(ValueError, match=r"each term of a sum, and the reward is RewardFunction\(sevens\)"):
        make(make_env(sevens))
    agent = make(make_env())
    with pytest.raises(ValueError, match="each term of a sum"):
        agent.set_env(make_env(sevens))
    with pytest.raises(ValueError, match="a wrapper of the environment changes rewards"):
        make(VecNormalize(make_env(), norm_obs=False)).learn(30)
