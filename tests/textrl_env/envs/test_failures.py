"""Steps that fail in the user's code: the reward model, the environment's reply, the task's end."""

from collections.abc import Sequence

import numpy as np
import pytest

from textrl_env import (
    IntegerTokenizer,
    Prompt,
    RewardError,
    TextCore,
    TextGenerationEnv,
    TextGenerationVecEnv,
    TextGenerationVectorEnv,
    TextTask,
)

MODES = ("SameStep", "NextStep", "Disabled")


class Fails:
    """Fails where it is told to, once; else all is worth 1, unfinished texts and turns 0."""

    def __init__(self, where, calls=1):
        self.where, self.calls = where, calls

    def called(self, name, values):
        if name == self.where:
            self.calls -= 1
            if self.calls == 0:
                raise TimeoutError("no answer")
        return values

    def score(self, episodes):
        return self.called("score", [1.0] * len(episodes))

    def score_steps(self, episodes):
        return self.called("score_steps", [0.0] * len(episodes))

    def score_turns(self, episodes):
        return self.called("score_turns", [0.0] * len(episodes))

    def reply(self, episodes):
        return self.called("reply", ["3"] * len(episodes))

    def ends(self, episodes):
        return self.called("ends", [False] * len(episodes))


def task(**settings):
    return TextTask(IntegerTokenizer(5), [Prompt("1")], settings.pop("max_new_tokens", 4), **settings)


SHELLS = {mode: lambda *args, mode=mode: TextGenerationVectorEnv(2, *args, autoreset_mode=mode) for mode in MODES}
SHELLS["SB3"] = lambda *args: TextGenerationVecEnv(2, *args)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_step_after_a_failed_score_is_the_same_step(shell):
    env = SHELLS[shell](task(), Fails("score"))
    env.reset()
    with pytest.raises(RewardError, match="no answer"):
        env.step(np.array([0, 2]))
    obs, rewards, ended, *_, infos = env.step(np.array([0, 2]))
    assert (rewards.tolist(), ended.tolist()) == ([1, 0], [True, False])
    assert obs["response"][1].tolist() == [2, -1, -1, -1]
    last = {"SB3": lambda: infos[0]["terminal_observation"], "SameStep": lambda: infos["final_obs"][0]}
    told = last[shell]()["response"] if shell in last else obs["response"][0]
    assert told.tolist() == [0, -1, -1, -1]
    if shell == "Disabled":
        env.reset(options={"reset_mask": ended})
    obs, rewards, *_ = env.step(np.array([3, 4]))
    begun = -1 if shell == "NextStep" else 3  # that mode has just reset row 0
    assert (obs["response"][:, :2].tolist(), rewards.tolist()) == ([[begun, -1], [2, 4]], [0, 0])


def test_rows_that_wait_for_a_reset_get_it_in_the_step_that_is_made_again():
    """Row 0 ends; the step that resets it ends row 1, and fails."""
    env = TextGenerationVectorEnv(2, task(), Fails("score", calls=2), autoreset_mode="NextStep")
    env.reset(seed=0)
    env.step(np.array([0, 2]))
    with pytest.raises(RewardError):
        env.step(np.array([4, 0]))
    obs, rewards, ended, *_ = env.step(np.array([4, 0]))
    assert (obs["response"][:, :3].tolist(), rewards.tolist(), ended.tolist()) == ([[-1] * 3, [2, 0, -1]], [0, 1], [False, True])
    obs, rewards, ended, *_ = env.step(np.array([4, 4]))
    assert (obs["response"][:, :3].tolist(), rewards.tolist(), ended.tolist()) == ([[4, -1, -1], [-1] * 3], [0, 0], [False, False])


def test_a_text_alone_is_scored_again_by_the_reward_model_of_that_time():
    env = TextGenerationEnv(task(reply=lambda episodes: ["3"], max_turns=2), Fails("score"), render_mode="rgb_array")
    env.reset(seed=0)
    env.step(0)
    env.log_probs = np.log(0.25)
    with pytest.raises(RewardError):
        env.step(0)
    env.reward_model, env.log_probs = lambda prompts, completions: [7.0], 0.0
    obs, reward, ended, _, info = env.step(2)
    assert (reward, ended, info["return"], info["response"]) == (7, True, 7, " 3")
    assert obs["response"].tolist() == [0, 3, 0, -1]
    assert env._transcripts.rewards[0].tolist() == [0, 0, 7, 0]
    assert env._transcripts.log_probs[0, 2] == np.log(0.25)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(2)
    env.reset()
    assert env.step(2)[0]["response"].tolist() == [2, -1, -1, -1]


def test_a_reset_gives_up_what_was_not_scored():
    asked = Fails("score")
    core = TextCore(task(), 2, asked)
    core.restart([0, 1])
    with pytest.raises(RewardError):
        core.step(np.array([0, 0]))
    with pytest.raises(RuntimeError, match="not scored"):
        core.write(np.array([2, 2]))
    core.restart([0, 1])
    result = core.step(np.array([2, 2]))
    assert not result.terminated.any() and core.response[:, :2].tolist() == [[2, -1]] * 2


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_a_text_are_named(mode):
    env = TextGenerationVectorEnv(3, task(), Fails("score"), autoreset_mode=mode)
    env.reset(seed=0, options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(RuntimeError, match=r"rows \[1, 2\] have no text: call reset"):
        env.step(np.array([2, 2, 2]))
    assert (env.core.response == -1).all()
    env.reset(options={"reset_mask": np.array([False, True, True])})
    with pytest.raises(RewardError):
        env.step(np.array([0, 0, 2]))
    env.reset(options={"reset_mask": np.array([True, False, False])})  # what row 1 wrote is given up with it
    with pytest.raises(RuntimeError, match=r"rows \[1\] have no text"):
        env.step(np.array([2, 2, 2]))


def test_a_step_whose_scores_could_not_be_begun_is_waited_for():
    class Slow(Fails):
        def begin_scoring(self, episodes):
            return self.called("begin_scoring", [])

    env = TextGenerationVecEnv(2, task(), Slow("begin_scoring"))
    env.reset()
    with pytest.raises(RewardError, match="no answer"):
        env.write_ahead(np.array([0, 2]))
    obs, ended = env.write_ahead(np.array([0, 3]))
    assert (obs["response"][1].tolist(), ended.tolist()) == ([2, 3, -1, -1], [True, False])
    assert [env.step_wait()[1].tolist() for _ in range(2)] == [[1, 0]] * 2


def test_rows_that_a_rollout_leaves_idle_are_no_mistake():
    env = TextGenerationVectorEnv(2, task(), Fails("score", calls=0))
    env.core.begin_rollout(1)
    env.reset(seed=0)
    assert env.step(np.array([0, 0]))[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("where", "calls"),
    [("score_steps", 2), ("score_turns", 2), ("reply", 2), ("ends", 3), ("ends", 4)],  # `ends` is asked about replies too
)
@pytest.mark.parametrize("shell", SHELLS)
def test_no_token_follows_a_step_that_failed_halfway(shell, where, calls):
    fails = Fails(where, calls)
    env = SHELLS[shell](task(reply=fails.reply, ends=fails.ends, max_new_tokens=9), fails)
    env.reset()
    env.step(np.array([0, 2]))
    with pytest.raises((RewardError, TimeoutError), match="no answer"):
        env.step(np.array([0, 2]))
    before = env.core.response.copy()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(np.array([0, 2]))
    np.testing.assert_array_equal(env.core.response, before)
    env.reset()
    obs, rewards, *_ = env.step(np.array([0, 2]))
    assert (obs["response"][:, :3].tolist(), rewards.tolist()) == ([[0, 3, -1], [2, -1, -1]], [0, 0])


@pytest.mark.parametrize("shell", SHELLS)
def test_no_token_follows_a_prompt_that_cannot_be_read(shell):
    class Rows(Sequence):
        unplugged = False

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if self.unplugged:
                raise OSError("unplugged")
            return Prompt("1")

    prompts = Rows()
    env = SHELLS[shell](TextTask(IntegerTokenizer(5), prompts, 4, max_prompt_tokens=1), Fails("score", calls=0))
    env.reset()
    prompts.unplugged = True
    with pytest.raises(OSError, match="unplugged"):
        ended = env.step(np.array([0, 2]))[2]
        env.reset(options={"reset_mask": ended}) if shell == "Disabled" else env.step(np.array([0, 2]))
    prompts.unplugged = False
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.array([0, 2]))
    env.reset()
    assert env.step(np.array([3, 2]))[0]["response"][:, :2].tolist() == [[3, -1], [2, -1]]


def test_an_action_that_is_refused_does_not_end_the_text():
    env = TextGenerationVectorEnv(2, task(), Fails("score", calls=0))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="token id 5"):
        env.step(np.array([2, 5]))
    assert env.step(np.array([2, 2]))[0]["response"][:, :2].tolist() == [[2, -1]] * 2
