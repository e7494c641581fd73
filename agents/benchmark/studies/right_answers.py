"""Right answers, and calls of tools, before and after training: `python -m agents.benchmark.studies.right_answers --task calculator-2`.

The base policy of a task is trained by each algorithm, and judged on its test prompts by the task's own judgement.  Intervals are Student's
over seeds; a seed is that of training and of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from rewards.utils.intervals import mean_interval
from textrl_env.tasks.diagnostic.calculator import calls_in
from textrl_env.utils.files import write_text

from ...evaluation.policy_texts import WrittenTexts, make_policy, write_texts
from ...models.loading import frozen, load_lm
from ...reports.tables import markdown_table, terminal_table
from ...training.base_policies import base_policy
from ..agents import LearningSetup, train_agent
from ..run_job import beta_of, task_of
from ..spec import parse

HEAD = ("policy", "right answers", "texts with a call", "KL (nats)")


@dataclass(frozen=True)
class RightAnswers:
    """What to run.

    Attributes:
        task: As `textrl bench` names tasks: `calculator-2`, `reasoning:dataset=chain_sum`.
        agents: Likewise.
        seeds: Runs of each agent.
        tokens: Tokens that a run writes.
        texts: Test texts of each policy that are judged.
        markdown: A file for the table; none without.
    """

    task: str = "calculator-2"
    agents: tuple[str, ...] = ("ppo", "rloo")
    seeds: int = 3
    tokens: int = 40_000
    texts: int = 256
    markdown: Path | None = None


def measured(config: RightAnswers) -> dict[str, list[tuple[float, float, float]]]:
    """Return, for the base policy and each agent, the figures of each seed: right answers, texts with a call, KL."""
    spec = parse(config.task)
    task, test = task_of(spec), task_of(spec, "test", prompt_order="sequential")
    base = str(base_policy(task))
    reference = frozen(load_lm(base))
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("base", *config.agents)}
    for seed in range(config.seeds):
        texts = write_texts(make_policy(test, base), test, config.texts, reference=reference, seed=10_000 + seed)
        found["base"].append(_figures(texts))
        setup = LearningSetup(task, base, config.tokens, seed, beta_of(task), float(texts.lengths.mean()))
        for agent in config.agents:
            trained = train_agent(parse(agent), setup, _watch)
            found[agent].append(_figures(trained.write(test, config.texts, 20_000 + seed)))
    return found


def _figures(texts: WrittenTexts) -> tuple[float, float, float]:
    calls = [bool(calls_in(response)) for response in texts.responses]
    return float(np.mean(texts.scores)), float(np.mean(calls)), float(texts.kl_per_sequence)


def _watch(*rollout: Any) -> None:
    """Look at nothing: a study judges the end alone."""


def main(config: RightAnswers) -> None:
    """Run the study, and print its table."""
    rows = [(name, *map(_cell, zip(*figures, strict=True))) for name, figures in measured(config).items()]
    Console().print(terminal_table(HEAD, rows, title=config.task))
    if config.markdown is not None:
        write_text(config.markdown, markdown_table(HEAD, rows) + "\n")


def _cell(values: tuple[float, ...]) -> str:
    return str(mean_interval(np.array(values)))


if __name__ == "__main__":
    main(tyro.cli(RightAnswers, description=__doc__))
