"""Gymnasium's own wrappers, registry printing, process-parallel vectors, and the speed benchmark's figures."""

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers

import textrl_env
from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask, benchmark


def sevens(prompts, completions):
    return [float(c.split().count("7")) for c in completions]


def toy(**settings):
    task = TextTask(IntegerTokenizer(10), [Prompt("1 2"), Prompt("3")], max_new_tokens=4)
    return TextGenerationEnv(task, reward=sevens, **settings)


def write(env, tokens):
    env.reset(seed=0)
    return [env.step(token) for token in tokens]


def test_episode_statistics():
    *_, last = write(wrappers.RecordEpisodeStatistics(toy()), [7, 7, 1, 0])
    assert last[4]["episode"]["r"] == 2.0
    assert last[4]["episode"]["l"] == 4
    assert last[4]["response"] == " 7 7 1"


def test_a_time_limit_is_wrong_because_the_reward_model_is_never_asked():
    *_, last = write(wrappers.TimeLimit(toy(), max_episode_steps=2), [7, 7])
    assert last[1:4] == (0.0, False, True)
    assert "score" not in last[4]
    *_, last = write(toy(max_new_tokens=2), [7, 7])  # the limit that belongs to the task
    assert last[1:4] == (2.0, True, False)


def test_transformed_rewards_and_stacked_observations():
    *_, last = write(wrappers.TransformReward(toy(), lambda r: 10 * r), [7, 7, 0])
    assert last[1] == 20
    stacked = wrappers.FrameStackObservation(toy(), 2)
    *_, last = write(stacked, [7, 8])
    assert last[0]["response"].tolist() == [[7, -1, -1, -1], [7, 8, -1, -1]]


def test_vector_wrappers():
    task = toy().task
    envs = wrappers.vector.RecordEpisodeStatistics(TextGenerationVectorEnv(2, task, sevens))
    envs.reset(seed=0)
    envs.step(np.array([7, 7]))
    _, rewards, ended, _, infos = envs.step(np.array([0, 7]))
    assert rewards.tolist() == [1.0, 0.0] and ended.tolist() == [True, False]
    assert infos["episode"]["r"][0] == 1.0
    assert infos["episode"]["l"][0] == 2


def test_process_parallel_vectors():
    envs = gymnasium.make_vec("textrl/Review-v0", num_envs=2, vectorization_mode="async", reward="length")
    batched = gymnasium.make_vec("textrl/Review-v0", num_envs=2, vectorization_mode="vector_entry_point", reward="length")
    try:
        for env in (envs, batched):
            env.reset(seed=4)
        for token in (30, 40, 50):
            one, two = (env.step(np.array([token, token + 1])) for env in (envs, batched))
            np.testing.assert_equal(one[0], two[0])
            np.testing.assert_equal(one[1], two[1])
    finally:
        envs.close()


def test_settings_of_the_task_reach_every_kind_of_make():
    env = gymnasium.make("textrl/Review-v0", max_new_tokens=5, stop_strings=["."])
    assert env.observation_space["response"].shape == (5,)
    assert gymnasium.make(env.spec).unwrapped.task.stop_strings == ["."]
    vector = gymnasium.make_vec("textrl/Review-v0", num_envs=2, max_new_tokens=5)
    assert vector.single_observation_space["response"].shape == (5,)


def test_the_registry_prints(capsys):
    gymnasium.pprint_registry()
    assert "textrl/Review-v0" in capsys.readouterr().out
    assert textrl_env.TextGenerationEnv.metadata["render_modes"] == ["ansi", "human", "rgb_array"]


def test_stepping_before_reset_and_after_the_end():
    env = toy()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(1)
    write(env, [0])
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(1)


def test_the_benchmark_measures(capsys):
    figures = benchmark.main(["--rows", "8", "--tokens", "2000"])
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["vector / SyncVectorEnv"] > 1
    assert "tokens/s" in capsys.readouterr().out


def prompts_dealt(env, steps):
    """The prompts of consecutive texts of one token each, row by row."""
    _, infos = env.reset(seed=1)
    dealt = [infos["prompt_id"].tolist()]
    for _ in range(steps):
        _, _, _, _, infos = env.step(np.zeros(env.num_envs, np.int64))
        dealt.append(infos["prompt_id"].tolist())
    return dealt


def test_orders_of_prompts_through_the_environment():
    task = TextTask(IntegerTokenizer(10), [Prompt(str(i)) for i in range(4)], 3)

    def make(rows, **settings):
        return TextGenerationVectorEnv(rows, task, **settings)

    assert prompts_dealt(make(2, prompt_order="sequential"), 2) == [[0, 1], [2, 3], [0, 1]]
    assert prompts_dealt(make(4, prompt_order="sequential", group_size=2), 2) == [[0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 1, 1]]
    epochs = prompts_dealt(make(4, prompt_order="shuffled"), 20)
    assert all(sorted(row) == [0, 1, 2, 3] for row in epochs) and len({tuple(row) for row in epochs}) > 5
    assert prompts_dealt(make(4, prompt_order="shuffled"), 20) == epochs  # the same seed
    weighted = np.array(prompts_dealt(make(4, prompt_order="weighted", prompt_weights=[0, 1, 3, 0]), 499)).ravel()
    assert set(weighted) == {1, 2} and abs((weighted == 2).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 2000)
    env = make(4, prompt_order="priority")
    env.update_priorities([0, 1, 2, 3], [0.0, 0.0, 0.0, 2.0])
    assert prompts_dealt(env, 3) == [[3] * 4] * 4
