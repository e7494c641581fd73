"""Seeds decide every order of prompts, in all three shells."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

PROMPTS = [Prompt(f"{i} 1") for i in range(1, 9)]
ORDERS = {
    "sequential": {"prompt_order": "sequential"},
    "random": {"prompt_order": "random"},
    "shuffled": {"prompt_order": "shuffled"},
    "weighted": {"prompt_order": "weighted", "prompt_weights": [1, 2, 3, 4, 5, 6, 7, 8]},
    "priority": {"prompt_order": "priority"},
}
SETTINGS = [pytest.param({**order, "group_size": size}, id=f"{name}-groups of {size}") for name, order in ORDERS.items() for size in (1, 3)]


def shell(kind, settings):
    """The environment, and a function of (seed or None) that resets it and returns each row's prompt."""
    task = TextTask(IntegerTokenizer(12), PROMPTS, max_new_tokens=3, **settings)
    if kind == "scalar":
        env = TextGenerationEnv(task, reward="length")
    else:
        env = {"vector": TextGenerationVectorEnv, "sb3": TextGenerationVecEnv}[kind](5, task, "length")

    def reset(seed):
        if kind != "sb3":
            env.reset(seed=seed)
        else:
            if seed is not None:
                env.seed(seed)
            env.reset()
        return env.core.prompt_index.tolist()

    return env, reset


def written(env, reset, seed):
    """All prompts dealt after a seed: by resets in the middle of texts, and by texts that end."""
    dealt, rng = [reset(seed)], np.random.default_rng(0)
    for step in range(40):
        if not env.core.live.all() or step % 7 == 6:
            dealt.append(reset(None))
        actions = rng.integers(0, 12, env.core.num_rows)
        env.step(actions if env.core.num_rows > 1 else int(actions[0]))
        dealt.append(env.core.prompt_index.tolist())
    return dealt


@pytest.mark.reports("The same seed deals the same prompts in every order, with groups or without, in all three environments")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["scalar", "vector", "sb3"])
def test_a_seed_starts_the_order_anew(kind, settings):
    env, reset = shell(kind, settings)
    first = written(env, reset, 7)
    assert written(env, reset, 7) == first
    reset(None)
    assert written(env, reset, 7) == first  # whatever was written in between
    assert written(*shell(kind, settings), 7) == first
    if settings["prompt_order"] == "sequential":
        rows = len(first[0])
        expected = [i // settings["group_size"] % 8 for i in range(2 * rows)]
        assert [reset(7), reset(None)] == [expected[:rows], expected[rows:]]
    else:
        assert len({str(written(env, reset, seed)) for seed in range(4)}) > 1


@pytest.mark.reports("A reset without a seed goes on with the order: it deals each prompt of an epoch once")
@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_reset_without_a_seed_goes_on(order):
    _, reset = shell("scalar", ORDERS[order])
    for seed in (3, None, None):
        dealt = [reset(seed), *(reset(None) for _ in range(7))]
        assert sorted(dealt) == [[i] for i in range(8)]


@pytest.mark.reports("gymnasium's and SB3's check_env pass for every order of prompts, with groups or without")
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_checkers_pass(settings):
    if "prompt_weights" in settings:
        settings = {**settings, "prompt_weights": np.linspace(1, 2, len(gym.make("textrl/Exact-Smooth-v0").unwrapped.task.prompts))}
    env = gym.make("textrl/Exact-Smooth-v0", **settings).unwrapped
    check_env(env)  # with a spec: only then it compares what the resets return
    sb3_check_env(env)


@pytest.mark.reports("Priorities stay when the scalar environment is seeded, and decide what is dealt")
def test_priorities_stay_when_the_environment_is_seeded():
    env, reset = shell("scalar", ORDERS["priority"])
    env.update_priorities(np.arange(8), np.array([0, 0, 0, 5, 0, 0, 0, 0]))
    assert [reset(1), reset(None), reset(1)] == [[3], [3], [3]]


@pytest.mark.reports("set_random_state is followed by the scalar environment too")
def test_the_scalar_environment_goes_on_from_its_random_state():
    for settings in ORDERS.values():
        env, reset = shell("scalar", settings)
        reset(5)
        state = env.random_state()
        later = [reset(None) for _ in range(10)]
        again, reset_again = shell("scalar", settings)
        reset_again(99)
        again.set_random_state(state)
        assert [reset_again(None) for _ in range(10)] == later


@pytest.mark.reports("Options of a reset are used (reset_mask) or refused, where they were dropped")
def test_options_are_used_or_refused():
    scalar, vector, sb3 = (shell(kind, ORDERS["sequential"])[0] for kind in ("scalar", "vector", "sb3"))
    sb3.set_options({"prompt": "1 2"})
    for reset in (scalar.reset, vector.reset, lambda options: sb3.reset()):
        with pytest.raises(ValueError, match="a reset takes none"):
            reset(options={"prompt": "1 2"})
    scalar.reset(options={})
    vector.reset(seed=0)
    vector.step(np.full(5, 3))
    before = vector.core.observe()
    obs, infos = vector.reset(options={"reset_mask": np.array([False, True, False, False, True])})
    assert vector.core.prompt_index.tolist() == [0, 5, 2, 3, 6]
    assert infos["_prompt"].tolist() == [False, True, False, False, True]
    np.testing.assert_array_equal(obs["response"][[0, 2, 3]], before["response"][[0, 2, 3]])
    assert (obs["response"][[1, 4]] == -1).all()
    for mask in (np.zeros(5, bool), np.ones(4, bool), np.ones(5)):
        with pytest.raises(ValueError, match="pass 5 bools, at least one of them True"):
            vector.reset(options={"reset_mask": mask})
