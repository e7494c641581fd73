"""The table of algorithms is the only list of them: the commands take their names from it."""

import sys
import types
from typing import get_args, get_type_hints

import pytest

from agents import RLOO
from agents.algorithms.registry import ALGORITHMS, Algorithm
from agents.benchmark.agents import LearningSetup, check, train_agent
from agents.benchmark.spec import parse
from agents.cli.train_flags import Train
from agents.training.settings import OFFLINE
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import LLAMA, VOCAB, sevens


class Mine(RLOO):
    """One new file."""


def test_textrl_train_takes_the_names_of_the_table():
    assert get_args(get_type_hints(Train)["algo"]) == (*ALGORITHMS, *OFFLINE)
    assert len(ALGORITHMS) == 18


def test_one_row_is_enough_for_textrl_bench(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no agent is called 'mine'"):
        check(parse("mine"))
    monkeypatch.setitem(sys.modules, "agents.algorithms.mine", types.SimpleNamespace(Mine=Mine))
    monkeypatch.setitem(ALGORITHMS, "mine", Algorithm("mine:Mine", group_size=2, settings={"n_epochs": 2}))
    check(parse("mine"))
    task = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4")], max_new_tokens=4, reward=sevens)
    seen = []
    agent = train_agent(
        parse("mine:n_episodes=8:batch_size=4"), LearningSetup(task, LLAMA, tokens=40, seed=0, beta=0.1, length=4.0),
        lambda tokens, infos, kl: seen.append((tokens, len(infos))),
    )  # fmt: skip
    assert seen and seen[0][1] == 8
    assert agent.policy is not None
