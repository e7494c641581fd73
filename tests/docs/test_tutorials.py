"""The tutorials run, shortened."""

import runpy
import sys

import pytest
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.algorithms.sft import SFT
from docs.generator.tutorials import programs

LONG = {"comparing_agents", "preferences_to_policy", "study_with_people"}  # processes of its own; 2,000 texts; 400 pages of a browser


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in LONG else ()) for path in programs()]
)
def test_tutorial(path, tmp_path_factory, tmp_path, monkeypatch, capsys):
    pretrain, learn = SFT.learn, OnPolicyAlgorithm.learn
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path_factory.getbasetemp() / "tutorials"))
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: pretrain(self, texts, 15, *args, **kwargs))
    monkeypatch.setattr(OnPolicyAlgorithm, "learn", lambda self, total_timesteps, **more: learn(self, min(total_timesteps, 500), **more))
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_each_tutorial_shows_what_it_printed():
    assert len(programs()) >= 7
    assert not [path.name for path in programs() if not path.with_suffix(".txt").exists()]
