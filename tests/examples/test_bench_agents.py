"""Agents of other libraries take part in a benchmark, and learn a toy whose best score is known."""

import sys

import numpy as np
import pytest
import torch

from agents.benchmark.agents import LearningSetup, check, train_agent
from agents.benchmark.spec import parse
from textrl_env import IntegerTokenizer, Prompt, TextTask

from .test_own_agent import EXAMPLES

NAMES = ("SB3PPO", "ContribQRDQN", "TorchRLReinforce")


@pytest.fixture(autouse=True)
def in_examples(monkeypatch):
    pytest.importorskip("torchrl", reason="torchrl is not installed: pip install 'textrl-env[test]'")
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for name in ("bench_agents", "sb3_agents", "torchrl_agent"):
        sys.modules.pop(name, None)


def sevens(prompts, completions):
    return [text.split().count("7") / 6 for text in completions]


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_within_the_budget(name):
    task = TextTask(IntegerTokenizer(8), [Prompt("1 2"), Prompt("3")], max_new_tokens=6, reward=sevens)
    spec = parse(f"bench_agents:{name}")
    check(spec)
    setup = LearningSetup(task, "no base policy", 12_000, 0, 0.05, 6.0)
    texts = train_agent(spec, setup, lambda *_: None).write(task, 200, 1)
    assert texts.scores.mean() > 0.8  # the best is 1; at random it is 1 / 8 and less
    assert np.isnan(texts.kl_per_sequence)  # nobody knows their distribution
    assert 11_000 < setup.spent.tokens_written <= 12_000 and setup.spent.tokens_trained is None
