"""How texts end, what their record holds, and what is refused."""

import numpy as np
import pytest

from textrl_env import IntegerTokenizer, Prompt, RewardError, TextCore, TextGenerationEnv, TextTask, make_task


class Keep:
    def __init__(self):
        self.episodes = []

    def score(self, episodes):
        self.episodes += episodes
        return [0.5] * len(episodes)


def make(reward=None, **changes):
    settings = {"prompts": [Prompt("1 2", ("5",), {"label": "x"}), Prompt("3")], "max_new_tokens": 3, **changes}
    return TextTask(IntegerTokenizer(10, 0), settings.pop("prompts"), **settings)


def test_the_record_of_a_text_that_ends_itself():
    reward = Keep()
    core = TextCore(make(prompt_order="sequential"), 2, reward)
    core.restart([0, 1])
    assert core.observe()["prompt"].tolist() == [[1, 2], [3, -1]]
    core.step(np.array([7, 8]))
    result = core.step(np.array([0, 8]))
    assert result.terminated.tolist() == [True, False]
    assert result.rewards.tolist() == [0.5, 0.0]
    episode = result.episodes[0]
    assert (episode.prompt, episode.response, episode.finish_reason) == ("1 2", " 7", "eos")
    assert episode.prompt_ids.tolist() == [1, 2]
    assert episode.response_ids.tolist() == [7, 0]
    assert episode.action_mask.tolist() == [True, True]
    assert (episode.references, episode.metadata) == (("5",), {"label": "x"})
    assert result.infos[0] == {
        "prompt": "1 2",
        "prompt_id": 0,
        "response": " 7",
        "finish_reason": "eos",
        "score": 0.5,
        "return": 0.5,
    }
    core.restart([0])
    result = core.step(np.array([4, 9]))
    assert result.episodes[1].finish_reason == "length"
    assert result.episodes[1].response == " 8 8 9"
    assert reward.episodes == [episode, result.episodes[1]]


def test_end_of_text_as_the_last_token_counts_as_an_end():
    core = TextCore(make(), 1, Keep())
    core.restart([0])
    for token in (5, 5, 0):
        result = core.step(np.array([token]))
    assert result.episodes[0].finish_reason == "eos"


def test_prompts_in_order_start_over():
    core = TextCore(make(prompt_order="sequential"), 1, Keep())
    seen = []
    for _ in range(5):
        core.restart([0])
        seen.append(core.start_info(0)["prompt"])
    assert seen == ["1 2", "3", "1 2", "3", "1 2"]


@pytest.mark.parametrize(
    ("action", "error", "match"),
    [
        (10, ValueError, r"token id 10 in row 0 is outside the vocabulary \[0, 10\)"),
        (-1, ValueError, "token id -1"),
        (1.5, TypeError, "float64: pass integer"),
        (True, TypeError, "bool"),
        ([1, 2], ValueError, "cannot reshape"),
        ("a", TypeError, "integer"),
    ],
)
def test_bad_actions(action, error, match):
    env = TextGenerationEnv(make())
    env.reset(seed=0)
    with pytest.raises(error, match=match):
        env.step(action)
    assert env.step(5)[0]["response"].tolist() == [5, -1, -1]  # nothing was lost


def test_steps_before_reset_and_after_the_end():
    env = TextGenerationEnv(make())
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(1)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [Prompt("1"), Prompt("  ")]}, "has no tokens"),
        ({"max_prompt_tokens": 1}, "has 2 tokens, max_prompt_tokens=1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompt_order": "backwards"}, "prompt_order='backwards'"),
        ({"prompts": [Prompt("1 99")]}, r"outside \[0, 10\)"),
    ],
)
def test_bad_tasks(changes, match):
    with pytest.raises(ValueError, match=match):
        make(**changes)


def test_names_that_nobody_knows():
    with pytest.raises(ValueError, match=r"no task is called 'chess'; known: .*review"):
        make_task("chess")
    with pytest.raises(ValueError, match="split='dev'"):
        make_task("review", split="dev")
    with pytest.raises(TypeError, match="is a int"):
        make_task(3)
    with pytest.raises(ValueError, match="num_envs=0"):
        TextCore(make(), 0)
    with pytest.raises(ValueError, match="num_episodes=0"):
        TextCore(make(), 1).begin_rollout(0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "1", True])
def test_a_bad_score_stops_the_run_with_the_text(bad):
    env = TextGenerationEnv(make(), reward=lambda prompts, completions: [bad])
    env.reset(seed=0)
    env.step(7)
    with pytest.raises(RewardError, match=" 7"):
        env.step(0)


def test_a_failing_reward_names_the_text_and_the_cause():
    def broken(prompts, completions):
        raise KeyError("weights")

    env = TextGenerationEnv(make(), reward=broken)
    env.reset(seed=0)
    env.step(8)
    with pytest.raises(RewardError, match=r" 8.*weights"):
        env.step(0)


@pytest.mark.parametrize(
    ("reward", "error", "match"),
    [
        ("vadre", ValueError, r"no reward model is called 'vadre' \(did you mean 'vader'\?\); known: .*vader"),
        (3, TypeError, "reward=3 is a int"),
        ({"keywords": ["a"]}, ValueError, "key 'name'"),
        (Keep, TypeError, "pass an instance"),
        (lambda text: [0.0], TypeError, r"f\(prompts, completions"),
    ],
)
def test_bad_rewards(reward, error, match):
    with pytest.raises(error, match=match):
        TextGenerationEnv(make(), reward=reward)
