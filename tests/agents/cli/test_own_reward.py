"""Rewards of one's own, named on the command line."""

import json

import pytest

from agents.cli.arguments import reward_of
from agents.cli.main import main
from agents.utils.contents import with_contents
from textrl_env import Episode
from textrl_env.reward_model import as_reward_model, is_own_code

CODE = """
from dataclasses import dataclass

def shouts(prompts, completions):
    return [float(text.count("!")) for text in completions]

def waits(prompts, completions):
    return [float(text.count(".")) for text in completions]

@dataclass
class Weighed:
    weight: float = 3.0
    def score(self, episodes):
        return [self.weight * len(episode.response) for episode in episodes]

ready = Weighed(0.5)
limit = 7
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(("name", "score"), [("shouts", 2.0), ("Weighed", 18.0), ("ready", 3.0)])
def test_a_function_a_class_and_an_object(file, name, score):
    named = reward_of(f"mine.py:{name}")
    assert named == {"name": "function", "path": f"{file}:{name}"}  # from whatever folder it is read again
    assert as_reward_model(named).score([Episode.from_text("well", "good!!")]) == [score]


def test_a_module(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    assert as_reward_model(reward_of("mine:shouts")).score([Episode.from_text("", "a!")]) == [1.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gone.py:shouts", "there is no file"),
        ("mine.py:shout", "defines no 'shout' (did you mean 'shouts'?)"),
        ("mine.py:limit", "mine.py:limit is no reward: reward=7 is a int"),
        ("no_such_package.rewards:f", "no_such_package.rewards:f cannot be imported: there is no module no_such_package"),
        ("broken.py:f", "ZeroDivisionError: division by zero (line 2 of"),
        ("typo.py:f", "SyntaxError: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(file, capsys, text, told):
    (file.parent / "broken.py").write_text("x = 1\n1 / 0\n")
    (file.parent / "typo.py").write_text("def f(:\n")
    (file.parent / "texts.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert main(["reward", "score", text, "texts.jsonl"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_scores_of_a_file(file):
    (file.parent / "texts.jsonl").write_text('{"prompt": "a", "response": "b!"}\n{"prompt": "a", "response": "c"}\n')
    assert main(["reward", "score", "mine.py:shouts", "texts.jsonl"]) == 0
    rows = [json.loads(line) for line in (file.parent / "texts.scores.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0, 0.0]


def test_contents_and_name_of_the_code_count(file):
    before = with_contents({"reward": reward_of("mine.py:shouts")})
    assert before != with_contents({"reward": reward_of("mine.py:waits")})
    assert before == with_contents({"reward": reward_of(f"{file}:shouts")})
    file.write_text(CODE + "\n")
    assert before != with_contents({"reward": reward_of("mine.py:shouts")})
    assert as_reward_model(reward_of("mine.py:ready")).score([Episode.from_text("", "four")]) == [2.0]
    file.write_text(CODE.replace("0.5", "0.25"))  # what is read again is the new code
    assert as_reward_model(reward_of("mine.py:ready")).score([Episode.from_text("", "four")]) == [1.0]


def test_code_is_found_inside_other_rewards():
    own = {"name": "function", "path": "mine.py:f"}
    assert is_own_code(own) and is_own_code({"name": "sum", "terms": {"mine": {"reward": own}}}) and is_own_code([["length", own]])
    assert not is_own_code("vader") and not is_own_code({"name": "sum", "terms": {"length": 1.0}})


def test_a_run_is_trained_by_it_and_evaluated_where_it_is_named_again(file, capsys):
    flags = ["--task", "exact-smooth", "--n-episodes", "16", "--batch-size", "16", "--total-tokens", "64", "--eval-texts", "8"]
    (file.parent / "mine.py").write_text("def even(completions):\n    return [float(len(text) % 2) for text in completions]\n")
    assert main(["train", "--reward", "mine.py:even", *flags, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--texts", "4"]) == 2
    assert "pass --reward" in capsys.readouterr().err
    assert main(["evaluate", "run", "--texts", "4", "--reward", "mine.py:even"]) == 0
    file.write_text(file.read_text() + "# other code\n")
    assert main(["train", "--reward", "mine.py:even", *flags, "--out", "run"]) == 2
    assert "holds a run with other inputs (reward" in " ".join(capsys.readouterr().err.split())
