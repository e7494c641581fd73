"""The same search for every agent, and a benchmark with what it found."""

import json
import shutil

import pytest

from agents import SFT
from agents.benchmark.bench import jobs_of, read_winners, with_winners
from agents.benchmark.flags import Bench
from agents.benchmark.protocol import PROTOCOL_VERSION
from agents.benchmark.spec import parse
from agents.benchmark.suites import SUITES, family
from agents.cli.main import main

FLAGS = ["--agents", "a2c,sft", "--tasks", "exact-smooth", "--trials", "2", "--total-tokens", "300"]


def test_every_agent_has_as_many_trials_and_the_winners_run_beside_the_defaults(tmp_path):
    file = tmp_path / "tuned.json"
    flags = ["bench", "tune", *FLAGS, "--out", str(tmp_path / "searches"), "--save", str(file)]
    assert main(flags) == 0
    found = json.loads(file.read_text())
    assert found["protocol"] == PROTOCOL_VERSION and sorted(found["winners"]) == ["a2c", "sft"]
    for agent in ("a2c", "sft"):
        one = found["winners"][agent]["exact-smooth"]
        assert one["provenance"]["trials"] == 2 and len(one["tried"]) == 3  # a head, and a line for each trial
        values = [float(line.split(",")[2]) for line in one["tried"][1:]]
        assert one["provenance"]["value"] == max(values) and set(one["settings"]) <= {row[0] for row in one["space"]}
    assert main(flags) == 0  # nothing is left to try
    again = json.loads(file.read_text())["winners"]
    assert {a: row["exact-smooth"]["tried"] for a, row in again.items()} == {
        a: row["exact-smooth"]["tried"] for a, row in found["winners"].items()
    }
    shutil.rmtree(tmp_path / "searches")
    assert main(flags) == 0 and not (tmp_path / "searches").exists()  # the file says what each search was
    assert json.loads(file.read_text())["winners"] == again
    assert main([*flags, "--agents", "a2c", "--trials", "3"]) == 0  # another search
    assert len(json.loads(file.read_text())["winners"]["a2c"]["exact-smooth"]["tried"]) == 4

    jobs = jobs_of(Bench(agents=("a2c,random",), tasks=("exact-smooth,exact-wide",), seeds=1, tuned=file, out=tmp_path / "bench"))
    assert [(job.task, job.agent) for job in jobs] == [
        ("exact-smooth", "a2c"), ("exact-smooth", "a2c:tuned=true"), ("exact-smooth", "random"),
        ("exact-wide", "a2c"), ("exact-wide", "random"),
    ]  # fmt: skip
    assert jobs[1].agent_spec.settings == read_winners(file)["a2c"]["exact-smooth"]["settings"] and not jobs[0].agent_spec.settings
    assert not jobs[1].preparation.found  # what is prepared is the same for all


@pytest.mark.parametrize(("content", "message"), [("[1]", "holds no winners"), ('{"protocol": 0, "winners": {}}', "protocol 0")])
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    file = tmp_path / "tuned.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_winners(file)


def test_who_cannot_be_searched_for_is_named(capsys):
    assert main(["bench", "tune", "--agents", "best-of-n"]) == 2 and "best-of-n: no search space" in capsys.readouterr().err
    assert main(["bench", "tune", "--agents", "ppo:beta=0.1"]) == 2 and "give names alone" in " ".join(capsys.readouterr().err.split())


def test_families_are_ladders_and_single_tasks():
    assert (family("recall-64"), family("textrl/Recall-16-v0"), family("recall")) == ("recall",) * 3
    assert (family("exact-smooth"), family("review")) == ("exact-smooth", "review")
    assert all(family(task) == task for task in SUITES["diagnostic"])  # as files of winners have them


def test_a_task_with_other_settings_is_another_family():
    """What was found with one file of prompts is not what was found with another."""
    assert family("prompts:path=A:n=1") == family("prompts:n=1:path=A") == "prompts:n=1:path=A"
    assert family("prompts:path=b") != family("prompts:path=B")  # files may differ by case alone
    assert family("textrl/Recall-64-v0:reward=length") == family("recall:reward=length") != family("recall")
    winners = {"ppo": {family("prompts:path=a"): {"settings": {"beta": 0.3}}, "recall": {"settings": {"beta": 0.2}}}}
    runs = {task: with_winners([parse("ppo")], parse(task), winners)[1:] for task in ("prompts:path=a", "prompts:path=b", "recall-64")}
    assert runs == {
        "prompts:path=a": [("ppo:tuned=true", {"beta": 0.3})], "prompts:path=b": [], "recall-64": [("ppo:tuned=true", {"beta": 0.2})]
    }  # fmt: skip


@pytest.mark.reports("textrl bench tune --suite reasoning stops at its second dataset")
@pytest.mark.slow
def test_every_task_with_settings_has_a_search_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    learn = SFT.learn
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: learn(self, texts, min(steps, 2), *args, **kwargs))
    tasks = [f"reasoning:dataset={name}:size=16:max_new_tokens=4" for name in ("count_bits:max_n=200", "gcd")]
    flags = ["--agents", "sft", "--tasks", ",".join(tasks), "--trials", "1", "--total-tokens", "8", "--out", str(tmp_path / "searches")]
    assert main(["bench", "tune", *flags, "--save", str(tmp_path / "tuned.json")]) == 0
    assert set(json.loads((tmp_path / "tuned.json").read_text())["winners"]["sft"]) == set(map(family, tasks))
    assert len(list((tmp_path / "searches").glob("sft--reasoning*/best.yaml"))) == 2
