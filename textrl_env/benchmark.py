"""Speed and memory of the environments alone, without a model: `python -m textrl_env.benchmark`.

Random tokens, reward `length`, a vocabulary of 32,000 and responses of 64 tokens; nothing but the environment is timed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from .envs.env import TextGenerationEnv
from .envs.sb3_vec_env import TextGenerationVecEnv
from .envs.vector_env import TextGenerationVectorEnv
from .prompts.prompt import Prompt
from .reward_model import make_reward
from .reward_warnings import stop_watching
from .task import TextTask
from .tokenizer import IntegerTokenizer

VOCABULARY, NEW_TOKENS, PROMPT = 32_000, 64, 16


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="tokens of the memory check")
    chosen = parser.parse_args(arguments)
    rows, task = chosen.rows, _task()
    actions = np.random.default_rng(0).integers(0, VOCABULARY, (NEW_TOKENS * 4, rows))
    vector = TextGenerationVectorEnv(rows, task=task)
    vector.reset(seed=0)
    figures = {"vector, tokens/s": _tokens_per_second(vector.step, actions, 10)}
    sb3 = TextGenerationVecEnv(rows, task=task)
    sb3.seed(0)
    sb3.reset()
    figures["SB3, tokens/s"] = _tokens_per_second(sb3.step, actions, 10)
    sync = SyncVectorEnv([lambda: TextGenerationEnv(task)] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
    sync.reset(seed=0)
    figures["gymnasium's SyncVectorEnv over ours, tokens/s"] = _tokens_per_second(sync.step, actions, 1)
    figures["vector / SyncVectorEnv"] = figures["vector, tokens/s"] / figures["gymnasium's SyncVectorEnv over ours, tokens/s"]
    figures["scalar step, median microseconds"] = _scalar_step(task, actions[:, 0])
    figures["memory growth, MiB"] = _memory_growth(vector.step, actions, chosen.tokens)
    figures["import textrl_env and make, seconds"] = _import_seconds()
    for name, value in figures.items():
        print(f"{name:48} {value:>14,.2f}")
    return figures


def _task() -> TextTask:
    rng = np.random.default_rng(1)
    prompts = [Prompt(" ".join(map(str, rng.integers(1, VOCABULARY, PROMPT)))) for _ in range(1000)]
    reward = make_reward("length")
    stop_watching(reward)  # random tokens hardly ever end a text: all score 0
    return TextTask(IntegerTokenizer(VOCABULARY), prompts, NEW_TOKENS, reward=reward)


def _tokens_per_second(step: Callable[[np.ndarray], Any], actions: np.ndarray, repeats: int) -> float:
    for row in actions[:NEW_TOKENS]:  # warm-up: one text in every row
        step(row)
    began = perf_counter()
    for _ in range(repeats):
        for row in actions:
            step(row)
    return repeats * actions.size / (perf_counter() - began)


def _scalar_step(task: TextTask, actions: np.ndarray) -> float:
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    seconds = []
    for action in np.tile(actions, 20):
        began = perf_counter()
        _, _, ended, _, _ = env.step(action)
        seconds.append(perf_counter() - began)
        if ended:
            env.reset()
    return 1e6 * statistics.median(seconds)


def _memory_growth(step: Callable[[np.ndarray], Any], actions: np.ndarray, tokens: int) -> float:
    """Return by how much the largest resident size grows over `tokens` tokens."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(tokens // actions.shape[1]):
        step(actions[number % len(actions)])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _import_seconds() -> float:
    """Return the best of five fresh interpreters, their own start left out."""
    code = "import textrl_env, gymnasium; gymnasium.make('textrl/Review-v0', reward='length')"
    best = {}
    for program in ("pass", code):
        times = []
        for _ in range(5):
            began = perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            times.append(perf_counter() - began)
        best[program] = min(times)
    return best[code] - best["pass"]


if __name__ == "__main__":
    main()
