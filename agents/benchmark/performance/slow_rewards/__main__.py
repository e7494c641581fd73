"""What an iteration costs with a server that takes a second a text: `python -m agents.benchmark.performance.slow_rewards`.

RLOO in which the same weights write the same texts of unequal lengths, in turns: scored at once by a rule (writing alone), by the server
while others are written, and by the server with the writing waiting for it, as it does under a wrapper of one's own.  Scoring alone is all
texts of the rollout in one call.  The update is no part of these, and told apart.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import tyro
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnvWrapper

from rewards.remote.http_reward import HttpReward
from textrl_env import Episode, IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ....algorithms.rloo import RLOO
from ....reports.tables import terminal_table
from ....rollouts.rollout_samples import RolloutResult
from ....rollouts.text_vec_env import can_write_ahead


@dataclass(frozen=True)
class SlowRewards:
    """What to measure.

    Attributes:
        seconds: What a text costs the server.
        concurrency: Requests under way at once, a row of the table each.
        texts: Of an iteration.
        rows: Of the environment: texts written side by side.
        vocabulary: Tokens, end-of-text included; the lengths of texts are geometric with about this mean, and cut at `new_tokens`.
        new_tokens: Most tokens of a text.
        layers: Transformer blocks.
        width: Hidden size.
        repeats: Rounds; medians count.
        threads: Of torch.
    """

    seconds: float = 1.0
    concurrency: tuple[int, ...] = (4, 16)
    texts: int = 64
    rows: int = 16
    vocabulary: int = 64
    new_tokens: int = 128
    layers: int = 4
    width: int = 256
    repeats: int = 2
    threads: int = 1


class _Wrapper(VecEnvWrapper):
    """Changes nothing; but the writing waits for each score."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def main(config: SlowRewards) -> dict[int, dict[str, float]]:
    """Time all, print a table, and return the median seconds by concurrency.

    Raises:
        RuntimeError: The texts were paid otherwise when they were scored while others were written.
    """
    torch.set_num_threads(config.threads)
    figures = {}
    with _server(config.seconds) as url:
        for concurrency in config.concurrency:
            reward = HttpReward(url, batch_size=1, concurrency=concurrency)
            rounds = [_round(config, reward) for _ in range(config.repeats)]
            medians = {part: statistics.median(seen[part] for seen in rounds) for part in rounds[0]}
            longer = max(medians["writing"], medians["scoring"])
            figures[concurrency] = {**medians, "of the longer": medians["overlapped"] / longer}
    head = ("requests at once", "writing s", "scoring s", "in turn s", "together s", "of the longer", "update s")
    keys = ("writing", "scoring", "waiting", "overlapped")
    rows = [
        (str(n), *(f"{seen[key]:.1f}" for key in keys), f"{seen['of the longer']:.2f}", f"{seen['update']:.1f}")
        for n, seen in figures.items()
    ]
    title = f"Iterations of {config.texts} texts, {config.rows} side by side, at a server that takes {config.seconds:g} s a text"
    Console().print(terminal_table(head, rows, title))
    return figures


def _round(config: SlowRewards, reward: HttpReward) -> dict[str, float]:
    """Return the seconds of a rollout with each way to score, of scoring alone, and of an update."""
    writing, update, _ = _iteration(config, None)
    waiting, _, paid = _iteration(config, reward, wrapped=True)
    overlapped, _, again = _iteration(config, reward)
    if paid.responses != again.responses or (paid.scores != again.scores).any():
        raise RuntimeError("texts that were scored while others were written were paid otherwise")
    # no two are equal, or they would be asked for once
    episodes = [Episode.from_text(prompt, f"{text} {i}") for i, (prompt, text) in enumerate(zip(paid.prompts, paid.responses, strict=True))]
    began = perf_counter()
    reward.score(episodes)
    return {"writing": writing, "scoring": perf_counter() - began, "waiting": waiting, "overlapped": overlapped, "update": update}


def _iteration(config: SlowRewards, reward: HttpReward | None, wrapped: bool = False) -> tuple[float, float, RolloutResult]:
    """Return the seconds of an agent's second rollout and of its update, and what was written; the first is paid by a rule."""
    prompts = [Prompt(" ".join(map(str, range(1, 9))))] * config.texts
    task = TextTask(IntegerTokenizer(config.vocabulary, 0), prompts, max_new_tokens=config.new_tokens, group_size=4, reward="length")
    env = TextGenerationVecEnv(config.rows, task=task)
    model = {
        "model_type": "llama", "vocab_size": config.vocabulary, "hidden_size": config.width, "intermediate_size": 2 * config.width,
        "num_hidden_layers": config.layers, "num_attention_heads": max(1, config.width // 64),
        "max_position_embeddings": 8 + config.new_tokens, "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    agent = RLOO(
        "TransformerPolicy", _Wrapper(env) if wrapped else env, n_episodes=config.texts, beta=0.0, seed=0, device="cpu",
        policy_kwargs={"model": model},
    )  # fmt: skip
    agent.learn(1)
    if reward is not None:
        env.reward_model = reward
        assert agent.env is not None and can_write_ahead(agent.env) != wrapped
    began = perf_counter()
    agent.learn(1, reset_num_timesteps=False)
    rollout = agent.last_rollout
    assert rollout is not None
    return rollout.seconds, perf_counter() - began - rollout.seconds, rollout


@contextmanager
def _server(seconds: float) -> Iterator[str]:
    command = [sys.executable, "-m", f"{__package__}.server", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/score"


if __name__ == "__main__":
    main(tyro.cli(SlowRewards))
