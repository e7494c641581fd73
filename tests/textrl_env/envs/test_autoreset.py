"""The three autoreset modes: each does what gymnasium's `SyncVectorEnv` does over the scalar environment; gymnasium's vector wrappers."""

import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

from tests.slow_cases import slow_but, slow_where
from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask, make_task

ROWS = 5
NEXT_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED


class Dense:
    """Scores every unfinished text by its last token, and finished texts by the sum of their ids, in two terms."""

    def score(self, episodes):
        sums = [float(e.response_ids.sum()) for e in episodes]
        self.last_terms = {"sum": sums, "one": [1.0] * len(sums)}
        return sums

    def score_steps(self, episodes):
        return [float(e.response_ids[-1]) for e in episodes]


def answer(episodes):
    return [None if "7" in e.response else f"{e.prompt.split()[0]} 2" for e in episodes]


def toy(**settings):
    prompts = [Prompt(f"{i} {i + 1} " + "3 " * (i % 3)) for i in range(1, 9)]
    return TextTask(IntegerTokenizer(12, eos_token_id=0), prompts, **{"max_new_tokens": 6, "reward": Dense(), **settings})


TASKS = {
    "dense": toy,
    "dialogue": lambda: toy(reply=answer, max_turns=3, max_new_tokens=14),
    "one token": lambda: toy(max_new_tokens=1),  # all rows end in the same step
    **{name: lambda name=name: make_task(name) for name in ("review", "exact-smooth", "dialogue-1", "bracketsmasked-2", "lock-4")},
}


def sync(task, mode):
    return SyncVectorEnv([lambda: TextGenerationEnv(task)] * ROWS, autoreset_mode=mode)


def same_infos(found, expected):
    """Observations lie in arrays of objects, which numpy does not compare by their content."""
    found, expected = dict(found), dict(expected)
    np.testing.assert_equal(*(list(infos.pop("final_obs", [])) for infos in (found, expected)))
    np.testing.assert_equal(found, expected)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("name", slow_but(("dense", "dialogue", "one token", "bracketsmasked-2"), TASKS))
def test_each_mode_is_that_of_gymnasium(name, mode):
    task = TASKS[name]()
    expected = sync(task, mode)
    found = TextGenerationVectorEnv(ROWS, task, autoreset_mode=mode)
    assert found.metadata["autoreset_mode"] is mode

    def alike(one, two):
        np.testing.assert_equal(one[:-1], two[:-1])
        same_infos(one[-1], two[-1])
        return one

    alike(found.reset(seed=42), expected.reset(seed=42))
    rng, ends, began = np.random.default_rng(0), 0, np.zeros(ROWS, bool)
    for _ in range(120):
        actions = np.where(rng.random(ROWS) < 0.2, task.eos_token_ids[0], rng.integers(0, task.tokenizer.vocab_size, ROWS))
        obs, rewards, terminated, *_ = alike(found.step(actions), expected.step(actions))
        np.testing.assert_array_equal(found.action_masks(), expected.call("action_masks"))
        if mode is NEXT_STEP:
            assert not rewards[began].any() and not terminated[began].any()
            assert (obs["response"][began] == -1).all()
            began = terminated.copy()
        ends += int(terminated.sum())
        if mode is DISABLED and terminated.any():
            assert (obs["response"][terminated] >= 0).any(1).all()  # the end is seen
            mask = terminated.copy()
            alike(found.reset(options={"reset_mask": mask.copy()}), expected.reset(options={"reset_mask": mask}))
    assert ends > 30


@pytest.mark.parametrize(("size", "first"), [(1, [0, 1, 2, 3, 4]), (2, [0, 0, 1, 1, 2])])
def test_rows_share_an_order_that_scalar_environments_each_begin(size, first):
    task = toy(prompt_order="sequential", group_size=size)
    assert TextGenerationVectorEnv(ROWS, task).reset(seed=0)[1]["prompt_id"].tolist() == first
    assert sync(task, DISABLED).reset(seed=0)[1]["prompt_id"].tolist() == [0] * ROWS


def test_rows_share_groups_of_prompts_drawn_at_random():
    drawn = TextGenerationVectorEnv(ROWS, toy(group_size=ROWS)).reset(seed=0)[1]["prompt_id"].tolist()
    assert drawn == drawn[:1] * ROWS != sync(toy(group_size=ROWS), DISABLED).reset(seed=0)[1]["prompt_id"].tolist()


def test_the_action_of_a_step_that_resets_is_ignored():
    """Two tokens and an end, row 1 a token later; what row 0 is told to write while it starts anew is no token at all."""
    env = TextGenerationVectorEnv(2, toy(reward=lambda prompts, completions: [1.0] * len(completions)), autoreset_mode=NEXT_STEP)
    env.reset(seed=0)
    env.step(np.array([5, 5]))
    obs, rewards, terminated, _, infos = env.step(np.array([0, 5]))
    assert (rewards.tolist(), terminated.tolist()) == ([1, 0], [True, False])
    assert obs["response"][0].tolist() == [5, 0, -1, -1, -1, -1] and infos["response"][0] == " 5"
    obs, rewards, terminated, _, infos = env.step(np.array([-99, 5]))
    assert (rewards.tolist(), terminated.tolist()) == ([0, 0], [False, False])
    assert obs["response"].tolist() == [[-1] * 6, [5, 5, 5, -1, -1, -1]]
    assert infos["_prompt"].tolist() == [True, False] and "response" not in infos
    obs, *_ = env.step(np.array([4, 5]))
    assert obs["response"][0].tolist() == [4, -1, -1, -1, -1, -1]


def test_a_text_that_ended_is_not_stepped_where_resets_are_disabled():
    env = TextGenerationVectorEnv(3, toy(), autoreset_mode=DISABLED)
    env.reset(seed=0)
    _, _, terminated, _, _ = env.step(np.array([5, 0, 5]))
    before = env.core.response.copy()
    with pytest.raises(RuntimeError, match=r"texts of rows \[1\] ended: call reset\(options=\{'reset_mask': terminated\}\)"):
        env.step(np.array([5, 5, 5]))
    np.testing.assert_array_equal(env.core.response, before)  # nothing was lost
    obs, infos = env.reset(options={"reset_mask": terminated})
    assert infos["_prompt"].tolist() == terminated.tolist()
    assert obs["response"][:, 0].tolist() == [5, -1, 5]
    env.step(np.array([5, 5, 5]))
    env.step(np.array([0, 0, 0]))
    env.reset()  # of all rows
    env.step(np.array([5, 5, 5]))


@pytest.mark.parametrize("mode", [NEXT_STEP, DISABLED])
def test_no_text_is_written_before_reset(mode):
    with pytest.raises(RuntimeError, match="call reset"):
        TextGenerationVectorEnv(2, toy(), autoreset_mode=mode).step(np.array([5, 5]))


def test_modes_by_make_vec():
    """Gymnasium itself refuses `vector_kwargs` for environments that are vectors; the mode is an argument like any other."""
    assert gymnasium.make_vec("textrl/Lock-4-v0", 2).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    for mode in AutoresetMode:
        for given in (mode, mode.value):
            env = gymnasium.make_vec("textrl/Lock-4-v0", 2, autoreset_mode=given)
            assert env.metadata["autoreset_mode"] is mode
        json.dumps(env.spec.kwargs)  # the value, not the enum, makes it plain data
        assert gymnasium.make_vec(env.spec).metadata["autoreset_mode"] is mode
        assert pickle.loads(pickle.dumps(env)).metadata["autoreset_mode"] is mode
        sync = gymnasium.make_vec("textrl/Lock-4-v0", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
        assert sync.metadata["autoreset_mode"] is mode
    assert TextGenerationVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match=r"autoreset_mode='never': pass one of AutoresetMode.NEXT_STEP, "):
        gymnasium.make_vec("textrl/Lock-4-v0", 2, autoreset_mode="never")


def test_copies_in_the_middle_of_a_reset_go_on_alike():
    env = TextGenerationVectorEnv(2, toy(), autoreset_mode=NEXT_STEP)
    env.reset(seed=0)
    env.step(np.array([0, 5]))
    other = pickle.loads(pickle.dumps(env))
    for actions in ([3, 3], [3, 3]):
        np.testing.assert_equal(env.step(np.array(actions))[:4], other.step(np.array(actions))[:4])


def play(env, steps=40, seed=0):
    """Random tokens, a fifth of them ends; returns observations, rewards, ends and infos, and resets where the mode leaves that to us."""
    rng, seen = np.random.default_rng(seed), []
    obs, _ = env.reset(seed=seed)
    seen.append((obs,))
    for _ in range(steps):
        actions = np.where(rng.random(env.num_envs) < 0.2, 0, rng.integers(0, 12, env.num_envs))
        obs, rewards, terminated, _, infos = env.step(actions)
        seen.append((obs, rewards, terminated, infos.get("episode", {}).get("r"), infos.get("episode", {}).get("l")))
        if env.metadata["autoreset_mode"] is DISABLED and terminated.any():
            seen.append((env.reset(options={"reset_mask": terminated})[0],))
    return seen


def shifted(obs):
    return obs["response"] + 1


WRAPPERS = {
    "TransformObservation": lambda env: wrappers.TransformObservation(
        env, shifted, spaces.Box(0, 12, (ROWS, 6), np.int64), spaces.Box(0, 12, (6,), np.int64)
    ),
    "VectorizeTransformObservation": lambda env: wrappers.VectorizeTransformObservation(
        env, gymnasium.wrappers.TransformObservation, func=shifted, observation_space=spaces.Box(0, 12, (6,), np.int64)
    ),
    "FilterObservation": lambda env: wrappers.FilterObservation(env, ["response"]),
    "FlattenObservation": wrappers.FlattenObservation,
    "DtypeObservation": lambda env: wrappers.DtypeObservation(wrappers.FlattenObservation(env), np.float32),
    "RescaleObservation": lambda env: wrappers.RescaleObservation(
        wrappers.DtypeObservation(wrappers.FlattenObservation(env), np.float32), np.float32(-1), np.float32(1)
    ),
    "NormalizeObservation": lambda env: wrappers.NormalizeObservation(wrappers.FlattenObservation(env)),
    "NormalizeReward": wrappers.NormalizeReward,
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda rewards: 2 * rewards),
    "ClipReward": lambda env: wrappers.ClipReward(env, 0, 5),
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
}
REFUSED = {name: {AutoresetMode.SAME_STEP} for name in WRAPPERS if name.endswith("Observation")}
REFUSED["NormalizeObservation"] = {AutoresetMode.SAME_STEP, DISABLED}


# not RecordEpisodeStatistics without resets: SyncVectorEnv takes the mask out of the options, and the wrapper then forgets all rows
PAIRS = [(name, mode) for name in WRAPPERS for mode in AutoresetMode if (name, mode) != ("RecordEpisodeStatistics", DISABLED)]
# each transforms what a step returned, as FlattenObservation and TransformReward, which are quick in every mode, do
LATER = {
    **{name: (NEXT_STEP,) for name in ("TransformObservation", "FilterObservation", "DtypeObservation", "RescaleObservation")},
    "ClipReward": (NEXT_STEP, DISABLED),
}


@pytest.mark.parametrize(("name", "mode"), slow_where(lambda name, mode: mode in LATER.get(name, ()), PAIRS))
def test_vector_wrappers_of_gymnasium(name, mode):
    """Each over our shell does what it does over gymnasium's own vector; what gymnasium refuses in a mode, it refuses for both."""
    envs = TextGenerationVectorEnv(ROWS, toy(), autoreset_mode=mode), sync(toy(), mode)
    if mode in REFUSED.get(name, ()):
        for env in envs:
            with pytest.raises((ValueError, AssertionError)):  # older versions assert
                WRAPPERS[name](env)
        return
    found, expected = (play(WRAPPERS[name](env)) for env in envs)
    np.testing.assert_equal(found, expected)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_episode_statistics_are_right_in_each_mode(mode):
    """Against the environment's own sum of rewards and the text: return and length of every text, counted from its first token."""
    env = wrappers.RecordEpisodeStatistics(TextGenerationVectorEnv(ROWS, toy(), autoreset_mode=mode))
    env.reset(seed=0)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(100):
        obs, _, terminated, _, infos = env.step(np.where(rng.random(ROWS) < 0.2, 0, rng.integers(1, 12, ROWS)))
        for row in np.flatnonzero(terminated):
            same_step = mode is AutoresetMode.SAME_STEP
            final = infos["final_info"] if same_step else infos
            response = infos["final_obs"][row]["response"] if same_step else obs["response"][row]
            assert infos["episode"]["r"][row] == final["return"][row]
            assert infos["episode"]["l"][row] == (response >= 0).sum()
            ends += 1
        if mode is DISABLED and terminated.any():
            env.reset(options={"reset_mask": terminated})
    assert ends == env.episode_count > 100
