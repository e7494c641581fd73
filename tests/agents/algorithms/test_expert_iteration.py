"""Expert iteration climbs a reward that can be climbed, and does what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import ExpertIteration
from agents.evaluation.policy_texts import write_texts
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import LLAMA, VOCAB, sevens

TASK = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4")], max_new_tokens=9)


def test_it_learns_to_write_sevens():
    agent = ExpertIteration(TASK, LLAMA, sevens, n=8, n_prompts=32, steps=6, learning_rate=1e-2)
    agent.learn(12)
    assert agent.scores[0] < 1 and agent.scores[-1] > 4
    again = ExpertIteration(TASK, LLAMA, sevens, n=8, n_prompts=32, steps=6, learning_rate=1e-2).learn(3)
    np.testing.assert_array_equal(again.scores, agent.scores[:3])  # the seed decides everything


def test_it_imitates_the_best_of_n(monkeypatch):
    agent = ExpertIteration(TASK, LLAMA, sevens, n=4, n_prompts=6, steps=1)
    seen = []
    monkeypatch.setattr(type(agent.trainer), "learn", lambda self, pairs, steps: seen.append((pairs, steps)))

    def watched(*arguments, **settings):
        seen.append(write_texts(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr("agents.algorithms.expert_iteration.write_texts", watched)
    agent.learn(1)
    texts, (pairs, steps) = seen
    assert steps == 1 and len(pairs) == 6 and len(texts.responses) == 24
    for number, (prompt, response) in enumerate(pairs):
        own = texts.responses[4 * number : 4 * number + 4]
        assert texts.prompts[4 * number : 4 * number + 4] == [prompt] * 4 and response in own
        assert sevens([""], [response]) == [max(sevens([""] * 4, own))]


def test_it_keeps_to_what_the_task_allows():
    task = replace(TASK, constraint={"allowed_tokens": [7]}, max_new_tokens=3, min_new_tokens=3)
    agent = ExpertIteration(task, LLAMA, sevens, n=2, n_prompts=4, steps=1)
    agent.learn(1)
    assert agent.scores == [3.0]  # 7 7 7 is all that may be written


def test_the_trainer_and_the_policy_share_weights():
    agent = ExpertIteration(TASK, LLAMA, sevens, n=2, n_prompts=4, steps=2)
    before = agent.policy.lm.get_input_embeddings().weight.detach().clone()
    agent.learn(1)
    assert not torch.equal(agent.policy.lm.get_input_embeddings().weight, before)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="n=1"):
        ExpertIteration(TASK, LLAMA, sevens, n=1)
