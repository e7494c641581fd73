"""Where IPO's loss is least: what docs/algorithms.md says of it."""

import pytest
import torch

from agents import DPO
from rewards.preferences.preference import Preference
from textrl_env import IntegerTokenizer

TABLE = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 4, "length": 3}


@pytest.mark.reports("IPO's optimum is where log-ratios differ by (2p - 1) / (2 beta), p the share of wins: found by minimising its loss")
@pytest.mark.parametrize(("wins", "beta"), [pytest.param(3, 0.5, marks=pytest.mark.slow), (4, 0.5), (3, 0.2)])
def test_the_optimum_of_ipo(wins, beta):
    pairs = [Preference("1", "2", "3")] * wins + [Preference("1", "3", "2")] * (4 - wins)
    agent = DPO(
        TABLE, IntegerTokenizer(4, 0), beta=beta, loss="ipo", max_new_tokens=1, learning_rate=0.05, batch_size=4, weight_decay=0.0, seed=0
    )  # fmt: skip
    agent.learn(pairs, 400)
    rows = agent._records(agent._encode(pairs[:1]))
    with torch.no_grad():
        chosen, rejected = agent._log_probs(agent.backbone, rows) - agent._log_probs(agent.reference, rows)
    p = wins / 4
    assert float(chosen - rejected) == pytest.approx((2 * p - 1) / (2 * beta), abs=1e-3)
