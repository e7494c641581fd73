"""What every agent of a benchmark is given, and its version: results of different versions are not compared.

Change a setting here, and the version has to change with it; `tests/agents/benchmark/test_protocol.py` has the hash of each version's.
"""

from __future__ import annotations

from typing import Any

from ..algorithms.registry import ALGORITHMS
from ..utils.run_folder import fingerprint
from .suites import PRESETS, SUITES, budget

# 1: exact tasks were in the headline mean, and what was spent besides written tokens was not counted
# 2: seeds were those of SB3 as they are, so that neighbours trained on nearly the same prompts; the base policy was measured by TEXTS
PROTOCOL_VERSION = 3
QUICK = ("random", "best-of-n", "dpo", "ppo", "rloo", "grpo")
FULL = ("random", "best-of-n", "sft", "dpo", "ppo", "a2c", "rloo", "grpo", "reinforce++")
SEEDS = {"quick": 3, "full": 10}
TEXTS = 256  # by which an agent is judged, on prompts of the test split
BASE_TEXTS = 16  # times as many measure the base policy: its error is in the scores of all runs of a task
BETA_ELSEWHERE = 0.05  # coefficient of KL with rewards that mostly lie between 0 and 1; exact tasks have their own
THRESHOLD = 0.5  # normalised score; how long training takes to reach it is measured
ON_POLICY = {"n_episodes": 64, "learning_rate": 1e-3, "batch_size": 32}  # of agents that write while they learn, untuned
# Of 1e-4, 2e-4 and 5e-4 the least is best on Recall, Lock and Dialogue: DPO drifts far from the base policy otherwise
OFFLINE_RATE, SFT_RATE, OFFLINE_EPOCHS = 1e-4, 1e-3, 3
BEST_OF = 8
# The same for every agent; `tokens` is a share of the task's budget
TUNING: dict[str, Any] = {"sampler": "random", "trials": 8, "seeds": 1, "texts": 256, "split": "validation", "tokens": 0.5}


def settings() -> dict[str, Any]:
    """Return everything that the version stands for, as plain data."""
    return {
        "presets": PRESETS, "agents": {"quick": QUICK, "full": FULL}, "seeds": SEEDS, "texts": TEXTS, "base_texts": BASE_TEXTS,
        "budgets": {suite: {task: budget(task.partition(":")[0]) for task in tasks} for suite, tasks in SUITES.items()},
        "beta": BETA_ELSEWHERE, "threshold": THRESHOLD, "on_policy": ON_POLICY,
        "algorithms": {name: [ALGORITHMS[name].group_size, ALGORITHMS[name].settings] for name in FULL if name in ALGORITHMS},
        "offline": [OFFLINE_RATE, SFT_RATE, OFFLINE_EPOCHS], "best_of": BEST_OF, "tuning": TUNING,
    }  # fmt: skip


def settings_hash() -> str:
    """Return a hash of `settings`."""
    return fingerprint([settings()])
