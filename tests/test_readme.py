"""The Python of the README and of the documentation runs as it stands, their tables hold, and their links lead somewhere."""

import json
import re
from functools import partialmethod
from pathlib import Path

import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import rewards
from agents.algorithms.sft import SFT
from textrl_env import Episode

from .rewards.models.checkpoints import save_constants
from .rewards.remote.servers import FaultyServer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
PAGES = {path: text for path, text in PAGES.items() if not {"generated", "_build"} & set(path.relative_to(ROOT).parts)}
REWARDS_PAGE = PAGES[ROOT / "docs" / "rewards.md"]
REWARDS = re.findall(r"^\| `(rewards\.make\(.*?\))` \| .*? \| `(.*?)` \| (.*?) \| (.*?) \|$", REWARDS_PAGE, re.MULTILINE)
NOT_HERE = {"real-data.md"}  # its snippets need corpora that are not here
SNIPPETS = {
    f"{path.stem}-{number}": snippet
    for path, text in PAGES.items()
    if path.name not in NOT_HERE
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder for base policies that learned for 15 steps."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def briefly(cache, tmp_path, monkeypatch):
    """Let trainings be short, in a folder of their own."""
    pretrain = SFT.learn
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTRL_CACHE", str(cache))
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: pretrain(self, texts, min(steps, 15), *args, **kwargs))
    for kind in (OnPolicyAlgorithm, MaskablePPO):
        learn = partialmethod(lambda self, learn, total_timesteps, **more: learn(self, min(total_timesteps, 500), **more), kind.learn)
        monkeypatch.setattr(kind, "learn", learn)


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS.keys())
def test_snippet(snippet, briefly):
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})


def test_there_are_snippets_and_no_unfilled_tables():
    assert len(SNIPPETS) >= 25
    marks = re.compile(r"<!-- (benchmark:\w+|/benchmark) -->")  # what docs/draw_benchmark.py writes anew
    assert not [path for path, text in PAGES.items() if "<!--" in marks.sub("", text) and path.name != "gpu.md"]


def test_the_readme_is_short():
    assert README.count("\n") <= 200 and len(README.split()) <= 1400


def test_links_between_pages_lead_to_files():
    """Links to generated pages are Sphinx's to check; all others are to be right on any page that shows Markdown too."""
    lost, seen = [], 0
    for path, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[\w-]*)?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            if "://" in target or "generated/" in target or not re.search(r"\.\w+$", target):
                continue
            seen += 1
            if not (path.parent / target).exists():
                lost.append((path.name, target))
    assert seen > 300 and not lost


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
    told = {re.match(r'rewards.make\("(\w+)"', row[0])[1] for row in REWARDS} | set(re.findall(r"`(\w+)`", REWARDS_PAGE))
    assert told >= set(rewards.list())
