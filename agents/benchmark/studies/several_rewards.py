"""Two rewards of different scales under GRPO and GDPO: `python -m agents.benchmark.studies.several_rewards`.

A text of up to six numbers is paid for two things that do not conflict: 1 if its first number is that of the prompt, which few texts of
the first policy get right, and the sum of all its other numbers, up to 75.  GRPO divides the sum of both by its deviation in the
group, nearly all of which is the second's; GDPO divides each by its own.  The second applies to odd prompts only (None elsewhere).  The
policy is a transformer of two layers with random weights; it is judged on texts of its own after training.  Intervals are Student's over
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console

from agents import GRPO
from rewards.utils.intervals import mean_interval
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.files import write_text

from ...evaluation.policy_texts import write_texts
from ...reports.tables import markdown_table, terminal_table
from ...utils.fresh_processes import fresh_pool
from .study import side_by_side

VOCAB = 16
ARMS: Mapping[str, tuple[str, float]] = {  # estimator, and weight of the second reward
    "GRPO": ("grpo", 1.0),
    "GRPO, weighted by hand": ("grpo", 0.03),
    "GDPO": ("gdpo", 1.0),
}


@dataclass(frozen=True)
class SeveralRewards:
    """What to run.

    Attributes:
        seeds: Runs of each arm.
        tokens: Tokens that a run writes.
        processes: Runs side by side, one thread each.
        markdown: A file for the table; none without.
    """

    seeds: int = 10
    tokens: int = 60_000
    processes: int = 2
    markdown: Path | None = None


def names(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return 1 for each text whose first number is that of the prompt."""
    return [float(text.split()[:1] == [prompt]) for prompt, text in zip(prompts, completions, strict=True)]


def others(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """Return the sum of all numbers but the first; it applies to odd prompts."""
    sums = [float(sum(map(int, text.split()[1:]))) for text in completions]
    return [value if int(prompt) % 2 else None for prompt, value in zip(prompts, sums, strict=True)]


def train(arm: str, seed: int, tokens: int) -> tuple[str, float, float]:
    """Train once, and return the arm, the share of first numbers that are right, and the mean sum on odd prompts."""
    torch.set_num_threads(1)
    estimator, weight = ARMS[arm]
    task = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt(str(i)) for i in range(1, 9)], max_new_tokens=6, group_size=8)
    reward = {"name": "sum", "terms": {"names": names, "others": others}, "weights": {"others": weight}}
    model = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    agent = GRPO(
        "TransformerPolicy", TextGenerationVecEnv(64, task=task, reward=reward), estimator=estimator, n_episodes=64, batch_size=64,
        learning_rate=lambda left: 3e-3 * left, beta=0.0, seed=seed, policy_kwargs={"model": model},
    )  # fmt: skip
    agent.learn(tokens)
    texts = write_texts(agent.policy, replace(task, prompt_order="sequential", group_size=1), 512, seed=10_000 + seed)
    right, sums = names(texts.prompts, texts.responses), others(texts.prompts, texts.responses)
    return arm, float(np.mean(right)), float(np.mean([value for value in sums if value is not None]))


def main(config: SeveralRewards) -> dict[str, np.ndarray]:
    """Run all, print the table, and return what each seed found by arm, shape (seeds, 2)."""
    calls = [partial(train, arm, seed, config.tokens) for seed in range(config.seeds) for arm in ARMS]
    found: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    with fresh_pool(config.processes) as pool:
        for arm, *values in side_by_side(pool, "train", calls):
            found[arm].append(values)
    columns = {arm: np.array(values) for arm, values in found.items()}  # (seeds, 2) each
    rows = [[arm, *("{:.2f} [{:.2f}, {:.2f}]".format(*mean_interval(column)) for column in columns[arm].T)] for arm in ARMS]
    head, title = ("", "first number right", "sum of the others"), f"{config.tokens:,} tokens, {config.seeds} seeds"
    Console(width=100).print(terminal_table(head, rows, title))
    if config.markdown is not None:
        write_text(config.markdown, f"# Several rewards\n\n{__doc__}\n{title}.\n\n{markdown_table(head, rows)}\n")
    return columns


if __name__ == "__main__":
    main(tyro.cli(SeveralRewards))
