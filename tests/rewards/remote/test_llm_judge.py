"""A language model as judge, against a server on localhost that speaks the chat protocol and judges by a known rule."""

import json
import re

import pytest

import rewards
from rewards import JudgeReward, RewardError
from textrl_env import Episode, Prompt

from .servers import FaultyServer


def chat(judge, tokens=10):
    """Answer chat requests with what `judge(question)` says."""

    def answer(body):
        (message,) = body["messages"]
        said = judge(message["content"])
        usage = {"total_tokens": tokens} if tokens else {}
        return {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}], "usage": usage}

    return answer


def shown(question, name="Response"):
    return re.search(rf"\[{name}\]\n(.*?)\n\[End", question, re.DOTALL)[1]


def counts_good(question):
    return f"It says good. [[{1 + shown(question).count('good')}]]"


def more_good(question):
    a, b = (shown(question, f"Response {x}").count("good") for x in "AB")
    return f"Clear. [[{'A' if a > b else 'B' if b > a else 'C'}]]"


def texts(*responses, references=()):
    return [Episode.from_text("so", r, references=references) for r in responses]


def judge_at(server, **kwargs):
    return JudgeReward(server.url.removesuffix("/score") + "/v1", "wise", **kwargs)


def test_ratings():
    with FaultyServer(chat(counts_good)) as server:
        judge = rewards.make("judge", url=server.url.removesuffix("/score") + "/v1/", model="wise")
        assert judge.score(texts("good", "bad", "good good", "bad")) == [2.0, 1.0, 3.0, 1.0]
        assert len(server.bodies) == 3  # equal questions are asked once
        assert server.bodies[0]["model"] == "wise" and server.bodies[0]["temperature"] == 0
        assert judge.spent_tokens == 30


def test_comparisons_with_the_reference():
    with FaultyServer(chat(more_good)) as server:
        judge = judge_at(server, mode="pairwise")
        assert judge.score(texts("good good", "bad", "good", references=("good",))) == [1.0, 0.0, 0.5]
        with pytest.raises(RewardError, match=r"'sogood'.*reference"):
            judge.score(texts("good"))


def test_two_responses_are_compared_with_each_other():
    with FaultyServer(chat(more_good)) as server:
        judge = judge_at(server, mode="pairwise")
        assert judge.compare(texts("good good", "bad", "good"), texts("good", "good", "good")) == [1.0, 0.0, 0.5]
        assert judge.compare([], []) == []
        with pytest.raises(ValueError, match="rates one response at a time"):
            judge_at(server).compare(texts("a"), texts("b"))
    with FaultyServer(chat(lambda question: "[[A]]")) as server:
        assert judge_at(server, mode="pairwise").compare(texts("a"), texts("b")) == [0.5]


def test_a_judge_who_prefers_a_position_gives_everybody_one_half():
    with FaultyServer(chat(lambda question: "[[A]]")) as server:
        assert judge_at(server, mode="pairwise").score(texts("a", "b", references=("good",))) == [0.5, 0.5]


def test_a_baseline_from_a_file(tmp_path):
    path = tmp_path / "base.jsonl"
    path.write_text(json.dumps({"prompt": "so", "response": "good"}) + "\n", encoding="utf-8")
    with FaultyServer(chat(more_good)) as server:
        assert judge_at(server, mode="pairwise", baseline=path).score(texts("good good", "bad")) == [1.0, 0.0]
        with pytest.raises(RewardError, match="'other'"):
            judge_at(server, mode="pairwise", baseline=path).score([Episode.from_text("other", "x")])
        path.write_text('{"prompt": "so"}\n', encoding="utf-8")
        with pytest.raises(ValueError, match="line 1"):
            judge_at(server, mode="pairwise", baseline=path)


def test_votes_are_averaged():
    ratings = iter([2, 4, 9])
    with FaultyServer(chat(lambda question: f"[[{next(ratings)}]]")) as server:
        assert judge_at(server, votes=3, temperature=0.7, concurrency=1).score(texts("a")) == [5.0]
    with pytest.raises(ValueError, match="raise temperature"):
        judge_at(server, votes=3)


@pytest.mark.parametrize("unclear", ["no verdict", "[[3]] or rather [[4]]", "[[11]]", "[[good]]", ""])
def test_only_a_clear_verdict_counts(unclear):
    answers = iter([unclear, unclear, "[[3]] and again [[3]]"])
    with FaultyServer(chat(lambda question: next(answers))) as server:
        assert judge_at(server).score(texts("a")) == [3.0]
    with FaultyServer(chat(lambda question: unclear)) as server:
        with pytest.raises(RewardError, match="no verdict"):
            judge_at(server).score(texts("a"))
        assert len(server.bodies) == 3


def test_a_token_budget_is_kept_and_what_was_judged_too():
    with FaultyServer(chat(counts_good, tokens=10)) as server:
        judge = judge_at(server, token_budget=25, concurrency=1)
        with pytest.raises(RewardError, match="spent 30 tokens of token_budget=25"):
            judge.score(texts("a", "b", "c", "d"))
        assert len(server.bodies) == 3
        assert judge.score(texts("a", "b", "c")) == [1.0, 1.0, 1.0] and len(server.bodies) == 3
    with FaultyServer(chat(counts_good, tokens=0)) as server, pytest.raises(RewardError, match=r"usage\.total_tokens"):
        judge_at(server, token_budget=25).score(texts("a"))


def test_questions_may_be_begun():
    with FaultyServer(chat(counts_good, tokens=10)) as server:
        judge = judge_at(server, votes=2, temperature=0.5)
        judge.begin_scoring(texts("good", "bad"))
        assert judge.score(texts("good", "bad")) == [2.0, 1.0] and len(server.bodies) == 4 and judge.spent_tokens == 40


def test_a_cache_makes_a_second_run_free(tmp_path):
    with FaultyServer(chat(counts_good)) as server:
        judge_at(server, cache=tmp_path / "verdicts.db").score(texts("good", "bad"))
        assert judge_at(server, cache=tmp_path / "verdicts.db").score(texts("good", "bad")) == [2.0, 1.0]
        assert len(server.bodies) == 2
        judge_at(server, cache=tmp_path / "verdicts.db", high=5).score(texts("good"))  # another question
        assert len(server.bodies) == 3


def test_texts_with_braces_reach_the_judge_as_they_are():
    with FaultyServer(chat(counts_good)) as server:
        judge_at(server).score(texts('{"a": {0}} {prompt}'))
        assert shown(server.bodies[0]["messages"][0]["content"]) == '{"a": {0}} {prompt}'


def test_own_template_and_pattern():
    with FaultyServer(chat(lambda question: f"score: {len(question)}")) as server:
        judge = judge_at(server, template="{response}|{reference}", pattern=r"score: (\d+)", low=0, high=99)
        assert judge.score(texts("abc", references=("de",))) == [6.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"mode": "other"}, "pointwise"), ({"low": 3, "high": 3}, "below"), ({"template": "no field"}, "response"),
     ({"template": "{response} {x}"}, "x"), ({"pattern": "["}, "pattern"), ({"votes": 0}, "votes"), ({"baseline": {}}, "pairwise"),
     ({"mode": "pairwise", "template": "{a}"}, "b"), ({"pattern": "(a)(b)"}, "group")],
)  # fmt: skip
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        JudgeReward("http://127.0.0.1:1/v1", "wise", **wrong)


def test_what_is_no_chat_endpoint():
    with FaultyServer(lambda body: {"scores": []}) as server, pytest.raises(RewardError, match="no chat completion"):
        judge_at(server).score(texts("a"))


@pytest.mark.reports("A judge that shows a reference or a baseline is refused before the first text, if a prompt has none")
def test_prompts_that_a_judge_cannot_compare_are_refused():
    with_reference, without = Prompt("a", ("b",)), Prompt("c")
    for settings in ({"mode": "pairwise"}, {"template": "{prompt} {reference} {response} {low} {high}"}):
        judge = JudgeReward("http://localhost:1/v1", "wise", **settings)
        judge.see_prompts([with_reference])
        with pytest.raises(ValueError, match="judge compares with references, and 1 of 2 prompts have none, first 'c'"):
            judge.see_prompts([with_reference, without])
    judge = JudgeReward("http://localhost:1/v1", "wise", mode="pairwise", baseline={"a": "b"})
    with pytest.raises(ValueError, match="the baseline has no response to the prompt 'c'"):
        judge.see_prompts([with_reference, without])
    JudgeReward("http://localhost:1/v1", "wise").see_prompts([without])  # a rating needs none
