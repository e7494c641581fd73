"""The scalar environment, gymnasium's vector environment and SB3's agree token by token."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecMonitor

from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVectorEnv, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

ROWS = 5


class Counting:
    """Scores the sum of the ids, and remembers how often it was asked."""

    def __init__(self):
        self.batches = []

    def score(self, episodes):
        self.batches.append(len(episodes))
        return [float(e.response_ids.sum()) for e in episodes]


class CountedConstraint:
    """Bans token 7, and counts how often it is asked about each text: a state is the text's number and its tokens."""

    def __init__(self):
        self.asked, self.texts = Counter(), 0

    def bind(self, vocabulary):
        self.legal = np.arange(vocabulary.size) != 7
        return self

    def start(self, prompt):
        self.texts += 1
        return self.texts, ()

    def advance(self, state, token):
        return state[0], (*state[1], token)

    def mask(self, state):
        self.asked[state] += 1
        return self.legal


@pytest.fixture
def task():
    return TextTask(IntegerTokenizer(12, eos_token_id=0), [Prompt(f"{i} {i + 1} " + "3 " * (i % 3)) for i in range(1, 9)], max_new_tokens=6)


def test_three_shells_agree(task):
    scalar = SyncVectorEnv([lambda: TextGenerationEnv(task, Counting())] * ROWS, autoreset_mode=AutoresetMode.SAME_STEP)
    vector = TextGenerationVectorEnv(ROWS, task, Counting())
    sb3 = TextGenerationVecEnv(ROWS, task, Counting())
    expected, infos = scalar.reset(seed=42)
    found, found_infos = vector.reset(seed=42)
    sb3.seed(42)
    np.testing.assert_equal([found, sb3.reset()], [expected, expected])
    np.testing.assert_equal(found_infos, infos)
    assert [info["prompt"] for info in sb3.reset_infos] == list(infos["prompt"])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(300):
        actions = rng.integers(0, 12, ROWS)
        expected, rewards, terminated, truncated, infos = scalar.step(actions)
        out = vector.step(actions)
        np.testing.assert_equal(out[:4], (expected, rewards, terminated, truncated))
        final, expected_final = (list(info.pop("final_obs", [])) for info in (out[4], infos))
        np.testing.assert_equal(final, expected_final)
        np.testing.assert_equal(out[4], infos)
        obs, sb3_rewards, dones, sb3_infos = sb3.step(actions)
        np.testing.assert_equal(obs, expected)
        np.testing.assert_array_equal(sb3_rewards, rewards)
        np.testing.assert_array_equal(dones, terminated)
        for row in np.flatnonzero(dones):
            ends += 1
            np.testing.assert_equal(sb3_infos[row]["terminal_observation"], final[row])
            for key in ("prompt", "prompt_id", "response", "finish_reason", "score"):
                assert sb3_infos[row][key] == infos["final_info"][key][row]
            assert sb3_infos[row]["TimeLimit.truncated"] is False
            assert sb3.reset_infos[row]["prompt_id"] == infos["prompt_id"][row]
    assert ends > 100


@pytest.mark.parametrize("asks", [0, 1, 2])
def test_a_constraint_is_asked_once_a_step(task, asks):
    """However often an agent looks at the masks: B rows, each live at all of 100 steps, are 100 B questions."""

    def scalar(constrained):
        return SyncVectorEnv([lambda: TextGenerationEnv(constrained, Counting())], autoreset_mode=AutoresetMode.SAME_STEP)

    shells = [(1, scalar), (ROWS, lambda task: TextGenerationVectorEnv(ROWS, task)), (ROWS, lambda task: TextGenerationVecEnv(ROWS, task))]
    for rows, shell in shells:
        constraint, rng = CountedConstraint(), np.random.default_rng(0)
        env = shell(replace(task, constraint=constraint))
        env.reset()
        for _ in range(100):
            for _ in range(asks):
                masks = np.stack(env.call("action_masks") if rows == 1 else env.action_masks())
                assert (masks == constraint.legal).all()
            env.step(rng.integers(0, 12, rows))
        assert set(constraint.asked.values()) == {1}
        assert len(constraint.asked) == 100 * rows


def test_a_constraint_is_asked_once_a_step_under_maskable_ppo(task):
    constraint = CountedConstraint()
    env = TextGenerationVecEnv(ROWS, replace(task, constraint=constraint), Counting())
    MaskablePPO("MultiInputPolicy", env, n_steps=8, batch_size=20, n_epochs=1).learn(2 * 8 * ROWS)
    assert set(constraint.asked.values()) == {1}
    assert len(constraint.asked) == 2 * 8 * ROWS


def test_all_texts_that_end_together_are_scored_together(task):
    reward = Counting()
    env = TextGenerationVecEnv(ROWS, task, reward)
    env.reset()
    env.step(np.array([0, 5, 0, 5, 0]))
    env.step(np.full(ROWS, 5))
    env.step(np.array([5, 0, 5, 5, 5]))
    assert reward.batches == [3, 1]


def test_a_rollout_deals_exactly_n_texts(task):
    env = VecMonitor(TextGenerationVecEnv(3, task, Counting()))
    env.unwrapped.begin_rollout(5)
    env.seed(0)
    obs = env.reset()
    ended, live_steps, lengths = 0, 0, []
    actions = np.array([[0, 4, 4], [0, 4, 4], [0, 0, 4], [9, 0, 0], [9, 9, 0]])
    for action in actions:
        live = obs["prompt"][:, 0] >= 0
        live_steps += int(live.sum())
        obs, rewards, dones, infos = env.step(action)
        assert not dones[~live].any()
        assert not rewards[~live].any()
        ended += int(dones.sum())
        lengths += [infos[row]["episode"]["l"] for row in np.flatnonzero(dones)]
        if not (obs["prompt"][:, 0] >= 0).any():
            break
    # row 0 ends at steps 1, 2, 3 (texts 1, 4, 5); row 1 at 3; row 2 at 4
    assert ended == 5
    assert sorted(lengths) == [1, 1, 1, 3, 4]
    assert live_steps == sum(lengths)
    assert (obs["prompt"] == -1).all() and (obs["response"] == -1).all()
    with pytest.raises(RuntimeError, match="no text is being written"):
        env.step(np.zeros(3, int))
    env.unwrapped.end_rollout()
    assert (env.reset()["prompt"][:, 0] >= 0).all()


def test_seeds_are_used_once(task):
    env = TextGenerationVecEnv(ROWS, task, Counting())
    env.seed(3)
    first = [env.reset()["prompt"] for _ in range(6)]
    env.seed(3)
    again = [env.reset()["prompt"] for _ in range(6)]
    np.testing.assert_equal(first, again)
    assert any(not np.array_equal(first[0], later) for later in first[1:])
    assert env._seeds == [None] * ROWS


def test_vector_seeds_can_be_given_one_each(task):
    env = TextGenerationVectorEnv(3, task, Counting())
    one, _ = env.reset(seed=[7, 8, 9])
    two, _ = env.reset(seed=7)
    np.testing.assert_equal(one, two)
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        env.reset(seed=[1, 2])


def test_rows_share_their_attributes(task):
    env = TextGenerationVecEnv(3, task, Counting())
    assert env.get_attr("render_mode") == [None] * 3
    assert len(env.env_method("render", indices=[0, 2])) == 2
    with pytest.raises(ValueError, match="share"):
        env.set_attr("reward_model", "length", indices=[1])
