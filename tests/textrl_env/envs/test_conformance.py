"""Every registered environment, through the checkers and everything else that gymnasium and SB3 do with one."""

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import textrl_env
from tests.slow_cases import slow_but
from textrl_env import LADDERS
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

IDS = [name for name in gymnasium.registry if name.startswith("textrl/")]
SIZES = {f"textrl/{ladder.name}-{size}-v0" for ladder in LADDERS for size in ladder.sizes}  # of what is there at its default size too
EACH = slow_but([name for name in IDS if name not in SIZES], IDS)


def shout(prompts, completions):
    return [float(len(c)) for c in completions]


def play(env, steps=60, seed=5):
    """Seeded random tokens; returns everything that came back."""
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=seed)]
    for _ in range(steps):
        out = env.step(int(rng.integers(env.action_space.n)))
        seen.append(out)
        if out[2]:
            seen.append(env.reset())
    return seen


def same(a, b):
    np.testing.assert_equal(a, b)


def test_there_are_environments():
    assert "textrl/Review-v0" in IDS


@pytest.mark.parametrize("name", EACH)
def test_checkers_have_nothing_to_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # gymnasium's checker asks for spec.make under each render mode, so it gets the made environment unwrapped
        check_env(gymnasium.make(name, reward="length").unwrapped)
        sb3_check_env(gymnasium.make(name, reward="length").unwrapped)


@pytest.mark.parametrize("name", EACH)
def test_ways_to_make_it(name):
    for env in (gymnasium.make(name), gymnasium.make(f"textrl_env:{name}")):
        assert isinstance(env.unwrapped, textrl_env.TextGenerationEnv)
    for mode in ("sync", "vector_entry_point"):
        env = gymnasium.make_vec(name, num_envs=3, vectorization_mode=mode, reward="length")
        obs, _ = env.reset(seed=0)
        assert obs["prompt"].shape[0] == 3
        env.close()
    assert isinstance(env.unwrapped, textrl_env.TextGenerationVectorEnv)
    spec = EnvSpec.from_json(gymnasium.make(name, reward={"name": "keyword", "keywords": ["good"]}).spec.to_json())
    again = gymnasium.make(spec)
    assert "Keyword" in repr(again.unwrapped.reward_model)


@pytest.mark.parametrize("name", EACH)
def test_pictures_of_it(name):
    env = gymnasium.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(env.action_space.sample())
    for image in (before, env.render()):
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.min() < 128 < image.max()
    assert not np.array_equal(before, image)


@pytest.mark.slow
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("name", IDS)
def test_vectors_in_each_mode(name, mode):
    """The property of gymnasium's tests/wrappers/vector: a wrapper around the vector is the vector of wrapped environments.

    Its wrappers of observations refuse SAME_STEP; there a wrapper of rewards is tried.
    """
    wrapper = "ClipReward" if mode is AutoresetMode.SAME_STEP else "FlattenObservation"
    given = {"min_reward": -0.25, "max_reward": 0.75} if wrapper == "ClipReward" else {}
    outside = getattr(wrappers.vector, wrapper)(gymnasium.make_vec(name, 3, autoreset_mode=mode), **given)
    inside = gymnasium.make_vec(
        name,
        3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        wrappers=(lambda env: getattr(wrappers, wrapper)(env, **given),),
    )
    assert outside.observation_space == inside.observation_space and outside.action_space == inside.action_space
    assert data_equivalence(outside.reset(seed=123), inside.reset(seed=123))
    outside.action_space.seed(0)
    for _ in range(50):
        actions = outside.action_space.sample()
        found = outside.step(actions)
        assert data_equivalence(found, inside.step(actions))
        if mode is AutoresetMode.DISABLED and found[2].any():
            assert data_equivalence(*(env.reset(options={"reset_mask": found[2].copy()}) for env in (outside, inside)))


@pytest.mark.parametrize("name", IDS)
def test_no_time_limit(name):
    """A TimeLimit would cut the text before the reward model is asked."""
    assert gymnasium.spec(name).max_episode_steps is None


@pytest.mark.parametrize("name", EACH)
def test_seeds_decide_everything(name):
    one, two = (play(gymnasium.make(name, reward="length")) for _ in range(2))
    same(one, two)
    env = gymnasium.make(name)
    prompts = {env.reset(seed=s)[1]["prompt"] for s in range(10)}
    assert len(prompts) > 1


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(name, twin):
    env = gymnasium.make(name, reward="length").unwrapped
    env.reset(seed=2)
    if env.step(3)[2]:  # a mask may end a text here
        env.reset()
    other = twin(env)
    rng = np.random.default_rng(0)
    for _ in range(80):
        action = int(rng.integers(env.action_space.n))
        out = env.step(action)
        same(out, other.step(action))
        if out[2]:
            same(env.reset(), other.reset())


def test_types_and_fresh_copies():
    env = gymnasium.make("textrl/Review-v0", reward="length").unwrapped
    obs, _ = env.reset(seed=0)
    new, reward, terminated, truncated, _ = env.step(7)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert (obs["response"] == -1).all()  # the old observation has not seen the new token
    new["response"][0] = 99
    assert env.step(8)[0]["response"][0] == 7


def test_rendering(capsys):
    env = gymnasium.make("textrl/Review-v0", reward=shout, render_mode="ansi")
    _, info = env.reset(seed=0)
    tokens = env.unwrapped.task.tokenizer.encode_batch(["was great ."])[0]
    for token in tokens:
        env.step(token)
    assert env.render() == f"\x1b[2m{info['prompt']}\x1b[0m was great ."
    env.step(env.unwrapped.task.tokenizer.eos_token_id)
    assert env.render().endswith(" was great .  [eos, score 12.000]")
    human = gymnasium.make("textrl/Review-v0", render_mode="human")
    human.reset(seed=0)
    assert human.render() is None
    assert info["prompt"] in capsys.readouterr().out


class Constant:
    def score(self, episodes):
        return [7.0] * len(episodes)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [("length", 1 / 24), ({"name": "regex", "pattern": "^ ?$"}, 1.0), (Constant(), 7.0), (shout, 0.0)],
    ids=["name", "dict", "object", "function"],
)
def test_the_reward_of_a_running_environment_can_be_swapped(reward, expected):
    """A text of one token and then its end: LengthReward counts 1 of 24 tokens if that token is kept, 0 of 24 here."""
    eos = 1
    scalar = gymnasium.make("textrl/Review-v0", reward="vader")
    scalar.reset(seed=0)
    scalar.unwrapped.reward_model = reward
    vector = gymnasium.make_vec("textrl/Review-v0", num_envs=2, vectorization_mode="vector_entry_point")
    vector.reset(seed=0)
    vector.unwrapped.reward_model = reward
    sb3 = TextGenerationVecEnv(2, "review")
    sb3.reset()
    sb3.set_attr("reward_model", reward)
    scores = [scalar.step(eos)[1], *vector.step(np.array([eos, eos]))[1], *sb3.step(np.array([eos, eos]))[1]]
    expected = 0.0 if reward == "length" else expected  # no token but the end was written
    np.testing.assert_allclose(scores, expected)
