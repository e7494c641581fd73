"""What the agents of the benchmark learn from, and what they choose by."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.benchmark.agents import LearningSetup, Spent, _best_of_n, _CountedVecEnv, _kl, check, compared_pairs, train_agent
from agents.benchmark.spec import parse
from agents.evaluation.policy_texts import make_policy
from agents.models.loading import load_lm, save_lm
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer, Prompt, TextTask

from ..conftest import LLAMA, VOCAB, sevens


@pytest.fixture
def setup():
    prompts = [Prompt("1 2 3"), Prompt("4")]
    task = TextTask(
        IntegerTokenizer(VOCAB, 0), prompts, max_new_tokens=9, reward=sevens, missing_eos_penalty=50.0, prompt_order="sequential"
    )
    return LearningSetup(task, LLAMA, 400, 0, 0.05, 5.0)


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


@pytest.mark.reports("The benchmark's best-of-n is paid for half of its KL where prompts are repeated")
def test_the_kl_of_best_of_n_is_of_all_texts_to_a_prompt():
    truth = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)  # n = 2, scores 0 and 1 with probability 1/2
    returns = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]).T  # (n, texts)
    assert truth == pytest.approx(0.1308, abs=1e-4) and _kl(["a"] * 4, returns, 2) == pytest.approx(truth)
    assert _kl(list("abcd"), returns, 2) == pytest.approx(truth / 2)
    assert _kl(list("baab"), returns, 2) == pytest.approx(truth)  # each prompt has two texts of 0 and two of 1


FROM_PAIRS = ["robust-dpo:label_smoothing=0.2", "simpo:gamma=0.5", "kto", "online-dpo:n_episodes=16:batch_size=8"]


@pytest.mark.parametrize("agent", slow_but(FROM_PAIRS[1:], FROM_PAIRS))
def test_who_learns_from_pairs_is_an_agent(setup, agent, tmp_path):
    check(parse(agent))
    save_lm(load_lm(LLAMA), tmp_path)  # weights that are drawn once
    setup = replace(setup, base=str(tmp_path), tokens=200)
    policy = train_agent(parse(f"{agent}:learning_rate=1e-2"), setup, lambda *_: None).policy
    start = make_policy(setup.task, setup.base).lm.state_dict()
    assert not all(torch.equal(weights, start[name]) for name, weights in policy.lm.state_dict().items())
    with pytest.raises(ValueError, match="width"):
        check(parse(f"{agent}:width=3"))


def spent_by(agent, setup, calls=None):
    found = train_agent(parse(agent), setup, lambda tokens, infos, kl: calls is not None and calls.append(infos))
    return setup.spent, found


def test_what_an_agent_spends_is_counted(setup, tmp_path):
    """Texts that the reward scored and their tokens, counted a second time by the reward itself."""
    seen = []

    class Counting:
        def score(self, episodes):
            seen.extend(len(episode.response_ids) for episode in episodes)
            return sevens(None, [episode.response for episode in episodes])

    save_lm(load_lm(LLAMA), tmp_path)
    own = replace(setup, base=str(tmp_path), task=replace(setup.task, reward=Counting()))
    rollouts = []
    spent, _ = spent_by("rloo:n_episodes=8:n_epochs=3", replace(own, spent=Spent()), rollouts)
    assert spent.reward_calls == sum(map(len, rollouts)) == len(seen)
    assert spent.tokens_written == sum(seen) and spent.tokens_trained == 3 * sum(seen) and spent.test_seconds == 0
    seen.clear()
    spent, _ = spent_by("sft:epochs=2", replace(own, spent=Spent()))
    assert (spent.reward_calls, spent.tokens_written) == (len(seen), sum(seen)) and 0 < spent.tokens_trained < 2 * sum(seen)
    seen.clear()
    spent, trained = spent_by("best-of-n:n=4", replace(own, spent=Spent()))
    assert (spent.reward_calls, spent.tokens_written) == (0, 0)
    trained.write(own.task, 6, 0)  # it pays for its test texts: four for each
    assert spent.reward_calls == len(seen) == 24 and spent.tokens_written == sum(seen) and spent.test_seconds > 0


def test_an_agent_of_ones_own_is_counted_through_its_environment(setup):
    spent = Spent()
    env = _CountedVecEnv(2, task=setup.task)
    env.spent = spent
    env.reset()
    for _ in range(9):  # no text ends before its limit of 9 tokens
        env.step(np.full(2, 7))
    assert (spent.reward_calls, spent.tokens_written) == (2, 18)
