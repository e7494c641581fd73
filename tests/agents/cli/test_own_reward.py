"""Rewards of one's own, named on the command line."""

import json

import pytest
import yaml

from agents.benchmark.agents import check
from agents.benchmark.run_job import task_of
from agents.benchmark.spec import parse
from agents.cli.arguments import reward_of
from agents.cli.main import main
from agents.utils.contents import with_contents
from textrl_env import Episode
from textrl_env.reward_model import as_reward_model, own_code

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

class Needs(Weighed):
    def __init__(self, word):
        self.word = word

def few(completions):
    return []

def nothing(completions):
    return [float("nan")] * len(completions)

def topical(completions, topic):
    return [float(t in c) for c, t in zip(completions, topic)]

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
        ("mina.py:shouts", "mina.py (did you mean 'mine.py'?)"),
        ("mine.py", "REWARD mine.py: which function of this file? Write REWARD mine.py:FUNCTION"),
        ("ends.py:f", "ends.py cannot be imported: SystemExit: 3 (line 1 of "),
        ("deep.py:f", "JSONDecodeError: Expecting value: line 1 column 1 (char 0) (line 3 of "),
        ("mine.py:Needs", "mine.py:Needs is no reward: Needs.__init__() missing 1 required positional argument: 'word'"),
        ("mine.py:few", "error: RewardFunction(few) returned 0 scores for 1 episodes"),
        ("mine.py:nothing", "error: RewardFunction(nothing) returned nan for 'ab'"),
        ("mine.py:topical", "needs the column 'topic'"),
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
    (file.parent / "ends.py").write_text("raise SystemExit(3)\n")
    (file.parent / "deep.py").write_text("import json\n\njson.loads('x')\n")
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
    file.write_text(CODE.replace("0.5", "2.5"))  # as long as before and in the same second: what is read again is the new code
    assert as_reward_model(reward_of("mine.py:ready")).score([Episode.from_text("", "four")]) == [10.0]


def test_code_is_found_inside_other_rewards():
    own = {"name": "function", "path": "mine.py:f"}
    assert own_code(own) == own_code({"name": "sum", "terms": {"mine": {"reward": own}}}) == own_code([["length", own]]) == ["mine.py:f"]
    assert own_code("vader") == own_code({"name": "sum", "terms": {"length": 1.0}}) == []


def test_a_task_of_a_benchmark_has_it_too(file):
    spec = parse("exact-smooth:reward=mine.py:shouts:max_new_tokens=4")
    task = task_of(spec)
    assert (task.reward, task.max_new_tokens) == ({"name": "function", "path": f"{file}:shouts"}, 4)
    assert as_reward_model(task.reward).score([Episode.from_text("", "a!")]) == [1.0]
    assert task_of(parse("exact-smooth:reward=length")).reward == "length"
    with pytest.raises(ValueError, match="'exact-smooth:reward=lenght': reward lenght: no reward model is called 'lenght'"):
        task_of(parse("exact-smooth:reward=lenght"))
    assert parse("prompts:path=hf:a/b:reward=mine:f").settings == {"path": "hf:a/b", "reward": "mine:f"}
    file.write_text("class Mine:\n    def learn(self, n): pass\n    def predict(self, o): pass\n")
    check(parse("mine.py:Mine"))
    with pytest.raises(ValueError, match="did you mean 'Mine'"):
        check(parse("mine.py:Mime"))


def test_a_run_is_trained_by_it_and_evaluated_where_it_is_named_again(file, tmp_path_factory, monkeypatch, capsys):
    flags = ["--task", "exact-smooth", "--n-episodes", "16", "--batch-size", "16", "--total-tokens", "64", "--eval-texts", "8"]
    code = "def even(completions):\n    return [float(len(text) % 2) for text in completions]\nodd = lambda completions: [0.0] * 16\n"
    file.write_text(code)
    run = str(file.parent / "run")
    assert main(["train", "--reward", "mine.py:even", "--held-out", "mine.py:even", *flags, "--out", run]) == 0
    settings = yaml.safe_load((file.parent / "run" / "config.yaml").read_text())
    assert settings["reward"] == settings["held_out"] == f"{file}:even"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    file.write_text("raise SystemExit('executed')\n")
    capsys.readouterr()
    assert main(["evaluate", run, "--texts", "4"]) == 2
    assert f"is code of somebody's own: pass --reward {file}:even to run it" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", run, "--texts", "4", "--reward", f"{file}:even"]) == 2  # now it is asked for
    assert "cannot be imported: SystemExit: executed (line 1 of " in capsys.readouterr().err
    monkeypatch.chdir(file.parent)
    file.write_text(code)
    assert main(["evaluate", run, "--texts", "4", "--reward", "mine.py:even"]) == 0
    for changed, named in ((code + "# other code\n", "even"), (code, "odd")):
        file.write_text(changed)
        assert main(["train", "--reward", f"mine.py:{named}", "--held-out", "mine.py:even", *flags, "--out", run]) == 2
        assert "holds a run with other inputs (" in " ".join(capsys.readouterr().err.split())


def test_its_faults_are_told_before_anything_is_trained(file, capsys):
    file.write_text("1 / 0\n")
    assert main(["train", "--algo", "sft", "--task", "review", "--reward", "mine.py:f", "--out", "run"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err and not (file.parent / "run").exists()
