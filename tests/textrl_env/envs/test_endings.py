"""How texts end, what that costs, dialogues and dense rewards: numbers worked out by hand."""

import numpy as np
import pytest

from textrl_env import IntegerTokenizer, Prompt, TextCore, TextTask


class Sevens:
    """Scores the number of sevens; keeps what it was given."""

    def __init__(self):
        self.seen = []

    def score(self, episodes):
        self.seen += episodes
        return [float(e.response.count("7")) for e in episodes]


def play(tokens, reward=None, **settings):
    """Write tokens until the text ends; return the result of each step."""
    task = TextTask(IntegerTokenizer(10), [Prompt("1 2")], settings.pop("max_new_tokens", 6), **settings)
    core = TextCore(task, 1, Sevens() if reward is None else reward)
    core.restart([0])
    results = []
    for token in tokens:
        results.append(core.step(np.array([token])))
        if results[-1].terminated[0]:
            break
    return core, results


def test_a_stop_token_by_id_and_by_spelling():
    for token in (4, "4"):
        _, results = play([7, 4, 7], stop_tokens=[token])
        assert len(results) == 2
        episode = results[-1].episodes[0]
        assert (episode.finish_reason, episode.response, episode.response_ids.tolist()) == ("stop", " 7 4", [7, 4])


@pytest.mark.parametrize(
    ("stops", "steps", "response"),
    [(["1 4"], 3, " 3 "), (["4", "3 1"], 2, " "), ([" 1 4 7"], 4, " 3"), (["9"], 6, " 3 1 4 7 7 7")],
)
def test_a_stop_string_ends_the_text_across_token_borders_and_is_cut_off(stops, steps, response):
    _, results = play([3, 1, 4, 7, 7, 7], stop_strings=stops)
    episode = results[-1].episodes[0]
    assert (len(results), episode.response) == (steps, response)
    assert episode.response_ids.tolist() == [3, 1, 4, 7, 7, 7][:steps]
    assert episode.finish_reason == ("length" if stops == ["9"] else "stop")


def test_a_task_ends_texts_itself():
    seen = []

    def ends(episodes):
        seen.extend((e.response, e.finish_reason) for e in episodes)
        return [e.response.endswith("4") for e in episodes]

    _, results = play([3, 4, 5], ends=ends)
    assert results[-1].episodes[0].finish_reason == "task"
    assert seen == [(" 3", ""), (" 3 4", "")]


@pytest.mark.parametrize(
    ("settings", "tokens", "reward"),
    [
        ({"missing_eos_penalty": 0.5}, [7, 7, 7, 7], 3.5),  # 4 sevens at the limit of 4
        ({"missing_eos_penalty": 0.5}, [7, 7, 7, 0], 3.0),
        ({"missing_eos_penalty": 0.5, "missing_eos": "replace"}, [7, 7, 7, 7], -0.5),
        ({"soft_max_tokens": 2, "soft_penalty": 3.0}, [7, 7], None),
        ({"soft_max_tokens": 2, "soft_penalty": 3.0}, [7, 0], 1.0),
        ({"soft_max_tokens": 2, "soft_penalty": 3.0}, [7, 7, 0], 2 - 1.5),  # half of the way from 2 to 4
        ({"soft_max_tokens": 2, "soft_penalty": 3.0, "missing_eos_penalty": 0.25}, [7, 7, 7, 7], 4 - 3 - 0.25),
    ],
)
def test_penalties(settings, tokens, reward):
    _, results = play(tokens, max_new_tokens=4, **settings)
    if reward is None:
        assert results[-1].rewards[0] == 0 and not results[-1].terminated[0]
        return
    assert results[-1].rewards[0] == reward
    assert results[-1].scores[0] == tokens.count(7)
    assert results[-1].infos[0]["score"] == tokens.count(7)


def test_an_illegal_action_ends_the_text_without_asking_the_reward_model():
    reward = Sevens()
    _, results = play([7, 0], reward=reward, min_new_tokens=2, illegal_score=-3.0, missing_eos_penalty=9.0)
    assert results[-1].episodes[0].finish_reason == "illegal"
    assert results[-1].rewards[0] == results[-1].scores[0] == -3
    assert reward.seen == []


def test_masks_follow_the_minimum_length_and_stop_tokens():
    task = TextTask(IntegerTokenizer(5), [Prompt("1")], 4, min_new_tokens=1, stop_tokens=[3])
    core = TextCore(task, 2)
    core.restart([0, 1])
    assert core.action_masks().tolist() == [[False, True, True, False, True]] * 2
    core.step(np.array([1, 2]))
    assert core.action_masks().all()


def test_a_dialogue():
    """Turns end with 0; the environment repeats the number of the turn twice, then a third turn is the last."""
    said = []

    def reply(episodes):
        said.extend(e.response for e in episodes)
        return [f"{len(said)} {len(said)}" for _ in episodes]

    core, results = play([7, 0, 8, 9, 0, 7, 0], max_new_tokens=20, reply=reply, max_turns=3)
    assert [bool(r.terminated[0]) for r in results] == [False] * 6 + [True]
    episode = results[-1].episodes[0]
    assert said == [" 7", " 7 1 1 8 9"]
    assert episode.response_ids.tolist() == [7, 0, 1, 1, 8, 9, 0, 2, 2, 7, 0]
    assert episode.action_mask.astype(int).tolist() == [1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert (episode.finish_reason, results[-1].scores[0]) == ("turns", 2)
    assert core.observe()["response"][0, :11].tolist() == episode.response_ids.tolist()


@pytest.mark.parametrize(
    ("reply", "limit", "reason"),
    [([None], 9, "task"), (["4 4"], 4, "length"), ([[4, 4]], 4, "length"), ([""], 2, "length")],
)
def test_a_dialogue_ends(reply, limit, reason):
    _, results = play([5, 0, 6], max_new_tokens=limit, reply=lambda episodes: reply)
    assert (len(results), results[-1].episodes[0].finish_reason) == (2, reason)
    assert results[-1].episodes[0].response_ids.tolist() == [5, 0]


@pytest.mark.parametrize("stops", [{}, {"stop_strings": ["5"]}])
def test_a_task_is_asked_about_replies_too(stops):
    """Turns of one token and replies of one: four ids after the second reply, which a stop string before it does not cut off."""
    seen, turn = [], 5 if stops else 0

    def ends(episodes):
        seen.extend(e.response_ids.tolist() for e in episodes)
        return [len(e.response_ids) >= 4 for e in episodes]

    _, results = play([turn] * 6, Dense(), max_new_tokens=12, reply=lambda e: ["2"], ends=ends, **stops)
    episode = results[-1].episodes[0]
    assert (len(results), episode.finish_reason) == (2, "task")
    assert seen == [[turn, 2], [turn, 2, turn, 2]] and episode.response_ids.tolist() == seen[-1]
    assert (episode.response, episode.turns) == ((" 5 2 5 2", (" 5", " 5")) if stops else (" 2 2", ("", "")))
    assert [r.rewards[0] for r in results] == [10 + 0.25 * 2, 0]  # a turn of 1 token and a step at 2; the text's score alone


@pytest.mark.parametrize(
    ("replies", "limits", "reason"), [(["2"], {"max_turns": 1}, "turns"), (["2"], {"max_new_tokens": 2}, "length"), ([None], {}, "task")]
)
def test_a_task_is_not_asked_about_texts_that_ended(replies, limits, reason):
    asked = []
    _, results = play([7, 0], reply=lambda e: replies, ends=lambda e: asked.append(len(e[0].response_ids)) or [False], **limits)
    assert (asked, results[-1].episodes[0].finish_reason) == ([1], reason)


def test_stop_strings_count_from_the_beginning_of_a_turn():
    _, results = play([5, 0, 1, 5, 3, 0], max_new_tokens=9, reply=lambda e: ["5"], stop_strings=["5 3"], max_turns=2)
    # " 5" + reply " 5" + " 1 5 3": the fives before the turn do not count
    assert results[-1].episodes[0].response == " 5 5 1 "
    assert results[-1].episodes[0].finish_reason == "turns"


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (lambda e: [], ValueError, "0 replies for 1 texts"),
        (lambda e: [[11]], ValueError, "outside the vocabulary"),
        (lambda e: [1.5], TypeError, "a text, token ids or None"),
    ],
)
def test_bad_replies(reply, error, message):
    with pytest.raises(error, match=message):
        play([5, 0], reply=reply)


class Dense(Sevens):
    def score_steps(self, episodes):
        return [0.25 * len(e.response_ids) for e in episodes]

    def score_turns(self, episodes):
        return [10.0 * len(e.response_ids) for e in episodes]


def test_dense_rewards():
    _, results = play([7, 0, 8, 0], reward=Dense(), max_new_tokens=9, reply=lambda e: ["3"], max_turns=2)
    # steps: 1 token; turn of 2 tokens and, with the reply, 3 tokens; 4 tokens; the final score is one seven
    assert [r.rewards[0] for r in results] == [0.25, 20 + 0.75, 1.0, 1.0]
    assert results[-1].scores[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_tokens": ["4 5"]}, "use stop_strings"),
        ({"stop_tokens": [10]}, r"\[0, 10\)"),
        ({"stop_strings": "x"}, "pass a list"),
        ({"stop_strings": [""]}, "none of them empty"),
        ({"min_new_tokens": 7}, "min_new_tokens=7"),
        ({"max_turns": 2}, "needs reply"),
        ({"soft_max_tokens": 6}, "soft_max_tokens=6"),
        ({"missing_eos": "drop"}, "missing_eos='drop': choose 'subtract', 'replace'"),
        ({"over_long": "middle"}, "over_long='middle'"),
        ({"max_prompt_tokens": 1}, "over_long cut it"),
        ({"ends": lambda e: []}, "0 values for 1 texts"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        play([5], **settings)


def test_long_prompts_are_cut_as_told():
    for side, expected in (("left", [2]), ("right", [1])):
        task = TextTask(IntegerTokenizer(10), [Prompt("1 2")], 3, max_prompt_tokens=1, over_long=side)
        core = TextCore(task, 1)
        core.restart([0])
        assert core.observe()["prompt"][0].tolist() == expected


def test_a_tokenizer_must_have_an_end_of_text_token():
    tokenizer = IntegerTokenizer(10)
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id=None"):
        TextTask(tokenizer, [Prompt("1")], 3)


def test_an_unknown_setting_gets_a_hint():
    from textrl_env import make_task

    with pytest.raises(TypeError, match="argument 'stop_string' \\(did you mean 'stop_strings'\\?\\)"):
        make_task("review", stop_string=["a"])
