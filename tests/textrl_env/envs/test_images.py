"""Prompts with a picture: the observation shows it, in all three environments, for as long as its text is written."""

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from textrl_env import GeneratedPrompts, IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask
from textrl_env.envs import transcript
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

SHAPE = (6, 5, 3)


def picture(number):
    return np.random.default_rng(number).integers(256, size=SHAPE, dtype=np.uint8)


def task_of(prompts=None, **settings):
    prompts = [Prompt(str(n), image=picture(n)) for n in range(1, 5)] if prompts is None else prompts
    return TextTask(IntegerTokenizer(8, 0), prompts, 3, reward="length", **settings)


def shown(infos):
    return np.stack([picture(int(text)) for text in infos])


def test_both_checkers_pass(recwarn):
    env = TextGenerationEnv(task_of())
    check_env(env, skip_render_check=True)
    sb3_check_env(TextGenerationEnv(task_of()), skip_render_check=True)
    assert env.observation_space["image"] == gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
    assert "image" not in TextGenerationEnv("review").observation_space.spaces
    assert not [w for w in recwarn if "image" not in str(w.message)]


def test_each_row_shows_the_picture_of_its_prompt():
    vector, sb3 = TextGenerationVectorEnv(3, task_of()), TextGenerationVecEnv(3, task_of())
    obs, infos = vector.reset(seed=1)
    sb3.seed(1)
    theirs = sb3.reset()
    prompts = list(infos["prompt"])
    rng = np.random.default_rng(0)
    for _ in range(12):
        np.testing.assert_array_equal(obs["image"], shown(prompts))
        np.testing.assert_array_equal(obs["image"], theirs["image"])
        assert obs["image"].dtype == np.uint8
        assert vector.observation_space.contains(obs)
        actions = rng.integers(8, size=3)
        before = obs["image"].copy()
        obs, _, ended, _, infos = vector.step(actions)
        theirs, _, _, their_infos = sb3.step(actions)
        for row in np.flatnonzero(ended):
            prompts[row] = infos["prompt"][row]
            np.testing.assert_array_equal(infos["final_obs"][row]["image"], before[row])  # the last observation is of the text that ended
            np.testing.assert_array_equal(their_infos[row]["terminal_observation"]["image"], before[row])


def test_idle_rows_are_black_and_observations_are_copies():
    env = TextGenerationVecEnv(3, task_of())
    env.begin_rollout(2)
    obs = env.reset()
    assert not obs["image"][2].any()
    assert obs["image"][:2].any()
    obs["image"][:] = 7
    assert not (env.core.observe()["image"] == 7).all()


def test_reward_models_see_the_picture():
    seen = []

    class Watching:
        def score(self, episodes):
            seen.extend((e.prompt, e.image) for e in episodes)
            return [0.0] * len(episodes)

    env = TextGenerationEnv(task_of(), Watching())
    env.reset(seed=0)
    env.step(0)
    np.testing.assert_array_equal(seen[0][1], picture(int(seen[0][0])))


def test_prompts_that_are_read_one_by_one_may_have_pictures():
    prompts = GeneratedPrompts(lambda rng: Prompt("1", image=np.full(SHAPE, rng.integers(256), np.uint8)), 20)
    env = TextGenerationEnv(task_of(prompts, max_prompt_tokens=1))
    obs, info = env.reset(seed=3)
    np.testing.assert_array_equal(obs["image"], prompts[info["prompt_id"]].image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((6, 5, 3)), r"is shape \(6, 5, 3\), float64: pass an array of shape \(H, W, 3\), uint8"),
        (np.zeros((6, 5), np.uint8), r"is shape \(6, 5\), uint8: pass"),
        ("cat.png", "is str: pass an array"),
        (np.zeros((3, 9, 3), np.uint8), "give it at least 4 x 4 pixels"),
        (np.zeros((5, 6, 3), np.uint8), r"has a picture of shape \(5, 6, 3\), the first prompt \(6, 5, 3\)"),
        (None, r"has a picture of shape None, the first prompt \(6, 5, 3\)"),
    ],
)
def test_what_is_no_picture_of_the_task_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        task_of([Prompt("1", image=picture(1)), Prompt("2", image=image)])


def test_pickling_keeps_the_picture():
    env = pickle.loads(pickle.dumps(TextGenerationEnv(task_of())))
    obs, info = env.reset(seed=0)
    np.testing.assert_array_equal(obs["image"], picture(int(info["prompt"])))


def test_a_drawn_text_has_the_picture_beside_it():
    env = TextGenerationEnv(task_of(), render_mode="rgb_array")
    env.reset(seed=0)
    drawn, seen = env.render(), env.core.image[0]
    side = transcript.SIDE // 6  # of the square that a pixel becomes
    middle = side // 2 + side * np.arange(6)
    left = transcript.WIDTH - transcript.MARGIN - 5 * side
    np.testing.assert_array_equal(drawn[transcript.MARGIN + middle][:, left + middle[:5]], seen)
    assert (drawn[: transcript.MARGIN + transcript.SIDE, left - transcript.MARGIN : left] == 255).all()  # text ends before it
