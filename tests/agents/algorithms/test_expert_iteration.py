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


def watched(agent, monkeypatch):
    """Return lists that get all texts written, and those imitated."""
    written, imitated, learn = [], [], agent.trainer.learn

    def write(*arguments, **settings):
        written.append(write_texts(*arguments, **settings))
        return written[-1]

    def imitate(texts, steps):
        imitated.extend(texts)
        return learn(texts, steps)

    monkeypatch.setattr("agents.algorithms.expert_iteration.write_texts", write)
    agent.trainer.learn = imitate
    return written, imitated


def test_it_imitates_the_best_of_n(monkeypatch):
    agent = ExpertIteration(TASK, LLAMA, sevens, n=4, n_prompts=6, steps=1)
    (written, imitated) = watched(agent, monkeypatch)
    agent.learn(1)
    (texts,) = written
    assert len(imitated) == 6 and len(texts.responses) == 24 and len(agent.trainer.losses) == 1
    for number, record in enumerate(imitated):
        own = slice(4 * number, 4 * number + 4)
        response = TASK.tokenizer.decode_batch([record.actions])[0]
        prompt = " ".join(map(str, record.context))
        assert texts.prompts[own] == [prompt] * 4 and response in texts.responses[own]
        assert sevens([""], [response]) == [max(sevens([""] * 4, texts.responses[own]))]


@pytest.mark.reports(
    "Expert iteration imitates the end of text only where the policy wrote it, and a reward for long texts makes them longer"
)
def test_texts_cut_at_the_limit_get_no_end(monkeypatch):
    agent = ExpertIteration(TASK, LLAMA, long, n=2, n_prompts=32, steps=6, learning_rate=1e-2)
    _, imitated = watched(agent, monkeypatch)
    agent.learn(6)
    assert all(len(record.actions) <= 9 and 0 not in record.actions[:-1] for record in imitated)
    assert {bool(record.actions[-1] == 0) for record in imitated[:32]} == {True, False}  # both kinds are among the best
    assert agent.scores[0] < 8 and agent.scores[-1] > 8.4


def long(prompts, completions):
    return [float(len(completion.split())) for completion in completions]


@pytest.mark.reports("Expert iteration imitates the policy's turns of a dialogue, and only reads the replies")
def test_replies_are_not_imitated(monkeypatch):
    task = replace(TASK, stop_tokens=(7,), reply=lambda episodes: [" 9 9"] * len(episodes), max_turns=2, max_new_tokens=12)
    agent = ExpertIteration(task, LLAMA, sevens, n=4, n_prompts=8, steps=1)
    _, imitated = watched(agent, monkeypatch)
    agent.learn(1)
    replied = [record for record in imitated if record.replies]
    assert replied and all([ids.tolist() for _, ids in record.replies] == [[9, 9]] for record in replied)
    agent.trainer.batch_size = 1
    for record in replied[:3]:
        ((at, _),) = record.replies
        ids = [*record.context, *record.actions[:at], 9, 9, *record.actions[at:]]
        with torch.no_grad():
            table = agent.policy.lm(torch.tensor([ids])).logits[0, :, :VOCAB].log_softmax(-1)
        own = [i for i in range(len(record.context), len(ids)) if not 0 <= i - len(record.context) - at < 2]
        expected = -np.mean([float(table[i - 1, ids[i]]) for i in own])
        assert agent.trainer.evaluate([record]) == pytest.approx(expected, abs=1e-5)


class Stepwise:
    """Pays for every 3 at once, and for 7 at the end."""

    def score(self, episodes):
        return sevens([""] * len(episodes), [e.response for e in episodes])

    def score_steps(self, episodes):
        return [2.0 * (e.response_ids[-1] == 3) for e in episodes]


@pytest.mark.reports("Expert iteration imitates what the environment pays most for in all: penalties and rewards of steps count")
@pytest.mark.parametrize("rules", [{"missing_eos_penalty": 50.0}, {"soft_max_tokens": 2, "soft_penalty": 70.0}, {"reward": Stepwise()}])
def test_the_best_is_what_pays_most(monkeypatch, rules):
    task = replace(TASK, **{"reward": sevens, **rules})
    agent = ExpertIteration(task, LLAMA, n=8, n_prompts=12, steps=1)
    written, imitated = watched(agent, monkeypatch)
    agent.learn(1)
    (texts,) = written

    def paid(record):
        ids = record.actions.tolist()
        value = ids.count(7)
        if "reward" in rules:
            return value + 2.0 * ids[:-1].count(3)
        if "soft_penalty" in rules:
            return value - 10.0 * max(0, len(ids) - 2)
        return value - 50.0 * (ids[-1] != 0)

    expected = [paid(record) for record in texts.records]
    np.testing.assert_allclose(texts.returns, expected)
    assert [paid(record) for record in imitated] == np.reshape(expected, (12, 8)).max(1).tolist()
    raw = texts.scores.reshape(12, 8).argmax(1) + 8 * np.arange(12)
    assert [expected[i] for i in raw] != [paid(record) for record in imitated]  # the scores alone would choose others


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
