"""What the agents of the benchmark learn from, and what they choose by."""

import pytest

from agents.benchmark.agents import LearningSetup, _best_of_n, _pairs
from agents.benchmark.spec import parse
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import LLAMA, VOCAB, sevens


@pytest.fixture
def setup():
    prompts = [Prompt("1 2 3"), Prompt("4")]
    task = TextTask(
        IntegerTokenizer(VOCAB, 0), prompts, max_new_tokens=9, reward=sevens, missing_eos_penalty=50.0, prompt_order="sequential"
    )
    return LearningSetup(task, LLAMA, 400, 0, 0.05, 5.0, parse("recall").name)


def paid(record):
    return record.actions.tolist().count(7) - 50.0 * (record.actions[-1] != 0)


@pytest.mark.reports("The benchmark's pairs and its best of n are chosen by what the environment pays, penalties included")
def test_chosen_by_what_is_paid(setup):
    pairs = _pairs(setup)
    assert len(pairs) > 5 and all(paid(pair.chosen) > paid(pair.rejected) for pair in pairs)
    texts = _best_of_n(setup, n=40).write(setup.task, 8, 0)
    assert [paid(record) for record in texts.records] == texts.returns.tolist()
    assert set(texts.finish_reasons) == {"eos"} and texts.scores.tolist() == texts.returns.tolist()
    assert [len(record.actions) for record in texts.records] == texts.lengths.tolist()
