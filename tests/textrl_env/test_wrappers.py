"""Observations for agents of other libraries."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import VectorizeTransformObservation
from stable_baselines3.common.preprocessing import preprocess_obs

from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextTask
from textrl_env.wrappers import OneHotTokens, TokenIds, WithoutInfo


@pytest.fixture
def env():
    """Two prompt tokens and three of the response; three tokens."""
    return TextGenerationEnv(TextTask(IntegerTokenizer(3), [Prompt("1 2"), Prompt("2")], 3), reward=lambda prompts, completions: [1.0])


def after(env, *tokens):
    obs, _ = env.reset(seed=1)
    for token in tokens:
        obs, *_ = env.step(token)
    return obs


def test_token_ids(env):
    wrapped = TokenIds(env)
    assert wrapped.observation_space == gym.spaces.MultiDiscrete([4] * 5)
    plain = after(env, 2, 1)
    assert after(wrapped, 2, 1).tolist() == [*(plain["prompt"] + 1), 3, 2, 0]
    assert after(wrapped, 2, 1) in wrapped.observation_space


def test_one_hot_tokens_are_what_others_make_of_the_ids(env):
    """Gymnasium's flattening and SB3's preprocessing of MultiDiscrete, and by hand."""
    import torch

    wrapped, ids = OneHotTokens(env), TokenIds(env)
    assert wrapped.observation_space == gym.spaces.Box(0, 1, (20,), np.float32)
    found = after(wrapped, 2, 1)
    assert found.dtype == np.float32 and found in wrapped.observation_space
    assert found.reshape(5, 4)[2:].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(found, gym.spaces.flatten(ids.observation_space, after(ids, 2, 1)))
    np.testing.assert_array_equal(found, preprocess_obs(torch.as_tensor(after(ids, 2, 1))[None], ids.observation_space)[0])


@pytest.mark.parametrize("wrapper", [TokenIds, OneHotTokens, WithoutInfo])
def test_wrapped_environments_pass_the_checker_and_are_made_again(wrapper):
    env = wrapper(gym.make("textrl/Recall-4-v0"))
    again = gym.make(env.spec)
    assert isinstance(again, wrapper)
    np.testing.assert_equal(after(again, 3), after(env, 3))
    with pytest.warns(UserWarning, match="different from the unwrapped"):  # the checker says so of every wrapper
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize("wrapper", [TokenIds, OneHotTokens])
def test_vectors(wrapper):
    """Around the batch what gymnasium's vector has of wrapped environments, step by step."""
    inside = gym.vector.SyncVectorEnv([lambda: wrapper(gym.make("textrl/Recall-4-v0"))] * 3)
    outside = VectorizeTransformObservation(gym.make_vec("textrl/Recall-4-v0", 3, autoreset_mode="NextStep"), wrapper)
    assert outside.observation_space == inside.observation_space
    np.testing.assert_equal(outside.reset(seed=0)[0], inside.reset(seed=0)[0])
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(0, 18, 3)
        np.testing.assert_equal(outside.step(actions)[:4], inside.step(actions)[:4])


def test_nothing_else_is_lost():
    with pytest.raises(TypeError, match=r"observations in Box.*: a text environment has Dict\(prompt, response\)"):
        TokenIds(gym.make("CartPole-v1"))
    env = gym.make("textrl/Recall-4-v0")
    env.observation_space = gym.spaces.Dict({**env.observation_space, "image": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    with pytest.raises(TypeError, match="nothing else may be lost"):
        OneHotTokens(env)


def test_without_info(env):
    wrapped = WithoutInfo(env)
    assert wrapped.reset(seed=0)[1] == {}
    *_, ended, truncated, info = wrapped.step(0)
    assert (ended, truncated, info) == (True, False, {})
