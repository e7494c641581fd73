"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

import rewards
from agents.sft import SFT
from textrl_env import Episode

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
REWARDS = re.findall(r"^\| `(rewards\.make\(.*?\))` \| .*? \| `(.*?)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[re.sub(r"\W+", " ", s)[:40].strip() for s in SNIPPETS])
def test_snippet(snippet, tmp_path, monkeypatch):
    learn = SFT.learn
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: learn(self, texts, 15, *args, **kwargs))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})


def test_there_are_snippets_and_no_unfilled_tables():
    assert len(SNIPPETS) >= 6
    assert "<!--" not in README


@pytest.mark.parametrize(("reward", "response", "reference", "score"), REWARDS, ids=[row[0] for row in REWARDS])
def test_table_of_rewards(reward, response, reference, score):
    references = (reference.strip("`"),) if reference else ()
    model = eval(reward, {"rewards": rewards})
    assert model.score([Episode.from_text("p", " " + response, references=references)])[0] == pytest.approx(float(score), abs=5e-4)


def test_the_table_lists_every_reward():
    told = {re.match(r'rewards.make\("(\w+)"', row[0])[1] for row in REWARDS} | set(re.findall(r"`(\w+)`", README))
    assert told >= set(rewards.list())
