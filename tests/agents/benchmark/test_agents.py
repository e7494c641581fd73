"""What the agents of the benchmark learn from, and what they choose by."""

from dataclasses import replace

import pytest
import torch

from agents.benchmark.agents import LearningSetup, _best_of_n, check, compared_pairs, train_agent
from agents.benchmark.spec import parse
from agents.evaluation.policy_texts import make_policy
from agents.models.loading import load_lm, save_lm
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
    pairs = compared_pairs(setup)
    assert len(pairs) > 5 and all(paid(pair.chosen) - paid(pair.rejected) == gap > 0 for pair, gap in pairs)
    texts = _best_of_n(setup, n=40).write(setup.task, 8, 0)
    assert [paid(record) for record in texts.records] == texts.returns.tolist()
    assert set(texts.finish_reasons) == {"eos"} and texts.scores.tolist() == texts.returns.tolist()
    assert [len(record.actions) for record in texts.records] == texts.lengths.tolist()


@pytest.mark.parametrize("agent", ["robust-dpo:label_smoothing=0.2", "simpo:gamma=0.5", "kto", "online-dpo:n_episodes=16:batch_size=8"])
def test_who_learns_from_pairs_is_an_agent(setup, agent, tmp_path):
    check(parse(agent))
    save_lm(load_lm(LLAMA), tmp_path)  # weights that are drawn once
    setup = replace(setup, base=str(tmp_path), tokens=200)
    policy = train_agent(parse(f"{agent}:learning_rate=1e-2"), setup, lambda *_: None).policy
    start = make_policy(setup.task, setup.base).lm.state_dict()
    assert not all(torch.equal(weights, start[name]) for name, weights in policy.lm.state_dict().items())
    with pytest.raises(ValueError, match="width"):
        check(parse(f"{agent}:width=3"))
