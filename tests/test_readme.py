"""The README's Python runs as it stands."""

import json
import re
from pathlib import Path

import pytest
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import rewards
from agents.algorithms.sft import SFT
from textrl_env import Episode

from .rewards.models.checkpoints import save_constants
from .rewards.remote.servers import FaultyServer

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
REWARDS = re.findall(r"^\| `(rewards\.make\(.*?\))` \| .*? \| `(.*?)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
DOCS = [(Path(__file__).resolve().parents[1] / "docs" / name).read_text(encoding="utf-8") for name in ("feedback.md", "generation.md")]
SNIPPETS = re.findall(r"```python\n(.*?)```", README + "".join(DOCS), re.DOTALL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder for base policies that learned for 15 steps."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[re.sub(r"\W+", " ", s)[:40].strip() for s in SNIPPETS])
def test_snippet(snippet, cache, tmp_path, monkeypatch):
    pretrain, learn = SFT.learn, OnPolicyAlgorithm.learn
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTRL_CACHE", str(cache))
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: pretrain(self, texts, 15, *args, **kwargs))
    monkeypatch.setattr(OnPolicyAlgorithm, "learn", lambda self, total_timesteps, **more: learn(self, min(total_timesteps, 500), **more))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})


def test_there_are_snippets_and_no_unfilled_tables():
    assert len(SNIPPETS) >= 6
    assert "<!--" not in README


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the models that the table names, and servers: what their scores are can be told by heart."""
    folder = tmp_path_factory.mktemp("world")
    save_constants(folder / "models")
    rows = [{"prompt": "p", "response": text} for text in ("it is not good .", "it is good .")]  # VADER says -0.3412 and 0.4404
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (
        FaultyServer(lambda body: {"scores": [0.4] * len(body["episodes"])}) as reward,
        FaultyServer(lambda body: {"choices": [{"message": {"content": "Fine. [[7]]"}}]}) as judge,
    ):
        yield folder, {"127.0.0.1:8900": f"127.0.0.1:{reward.port}", "127.0.0.1:8901": f"127.0.0.1:{judge.port}"}


@pytest.mark.parametrize(("reward", "response", "reference", "score"), REWARDS, ids=[row[0] for row in REWARDS])
def test_table_of_rewards(reward, response, reference, score, world, monkeypatch):
    folder, addresses = world
    monkeypatch.chdir(folder)
    for told, real in addresses.items():
        reward = reward.replace(told, real)
    references = (reference.strip("`"),) if reference else ()
    model = eval(reward, {"rewards": rewards})
    assert model.score([Episode.from_text("p", " " + response, references=references)])[0] == pytest.approx(float(score), abs=5e-4)


def test_the_table_lists_every_reward():
    told = {re.match(r'rewards.make\("(\w+)"', row[0])[1] for row in REWARDS} | set(re.findall(r"`(\w+)`", README))
    assert told >= set(rewards.list())
