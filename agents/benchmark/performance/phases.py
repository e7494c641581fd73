"""Where the time of an iteration goes, on any model: `python -m agents.benchmark.performance.phases --model FOLDER --lora '{"r": 8}'`.

Prompts are random tokens of the model's own tokenizer and all texts are of one length, so that runs compare.  Seconds are CPU time of the
process, medians over iterations after one of warm-up; with one thread they do not depend on what else the machine does.  One more
iteration runs under torch's profiler: which operations take its time, those of less than 1% left out.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console

from textrl_env import FileTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.model_files import model_folder

from ...algorithms.grpo import GRPO
from ...algorithms.ppo import TextPPO
from ...algorithms.rloo import RLOO
from ...models.mixed_precision import Precision
from ...reports.tables import terminal_table
from .hardware import peak_mib, resident_mib

PHASES = ("writing", "reference", "forward", "backward", "optimizer", "iteration")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear_pointwise", "mkl_linear")
_ALGORITHMS: dict[str, Any] = {"rloo": RLOO, "grpo": GRPO, "ppo": TextPPO}


@dataclass(frozen=True)
class Phases:
    """What to time.

    Attributes:
        model: A folder, hub id or `.gguf` file with a tokenizer.
        algo: Which algorithm.
        lora: Arguments of `peft.LoraConfig` as JSON; None: all weights learn.
        critic: Of PPO, see `agents.policies.PolicySettings`.
        prompt: Prompt tokens.
        new_tokens: Response tokens.
        episodes: Texts per iteration.
        group_size: Texts for each prompt; PPO deals each once.
        batch: Texts per minibatch.
        micro_batch_size: Texts that go through the model at once in an update; 0: the whole minibatch.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
        precision: See `agents.policies.PolicySettings`.
        epochs: Passes over the texts.
        repeats: Iterations, after one of warm-up.
        threads: Of torch.
        device: Where the models are; on a GPU, seconds are those of the process that feeds it.
    """

    model: str
    algo: Literal["rloo", "grpo", "ppo"] = "rloo"
    lora: str | None = None
    critic: str = "shared"
    prompt: int = 16
    new_tokens: int = 32
    episodes: int = 32
    group_size: int = 8
    batch: int = 32
    micro_batch_size: int = 0
    gradient_checkpointing: bool = False
    precision: Precision = "float32"
    epochs: int = 1
    repeats: int = 3
    threads: int = 1
    device: str = "cpu"


def main(config: Phases) -> dict[str, float]:
    """Time the phases, print a table, and return the medians in seconds, the peak memory in MiB and the share of matrix products.

    Raises:
        ValueError: A number is out of range.
    """
    if config.repeats < 1:
        raise ValueError(f"repeats={config.repeats}: at least 1 iteration must be timed")
    torch.set_num_threads(config.threads)
    idle = resident_mib()
    agent = make(config)
    seconds = timed(agent)
    rows = [_iterate(agent, seconds) for _ in range(1 + config.repeats)][1:]
    figures = {phase: statistics.median(row[phase] for row in rows) for phase in PHASES}
    figures["memory_mib"] = peak_mib() - idle
    cells = [*(f"{figures[phase]:.2f}" for phase in PHASES), f"{figures['memory_mib']:,.0f}"]
    console = Console(width=132)
    console.print(terminal_table((*PHASES, "memory MiB"), [cells], "CPU seconds of an iteration"))
    shares = operations(agent)
    rows_of_shares = [[name, f"{share:.1%}"] for name, share in shares.items() if share >= 0.01]
    console.print(terminal_table(("operation", "share"), rows_of_shares, "Of another iteration's time in operations"))
    figures["matrix_products"] = shares["matrix products"]
    return figures


def operations(agent: Any) -> dict[str, float]:
    """Return which share of an iteration's time in torch's operations on the CPU each takes, largest first; matrix products are one row."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        agent.learn(1, reset_num_timesteps=False)
    seconds = Counter({"matrix products": 0.0})
    for row in profile.key_averages():
        name = row.key.rpartition("::")[2].strip("_")
        seconds["matrix products" if name in _PRODUCTS else row.key] += row.self_cpu_time_total
    return {name: spent / seconds.total() for name, spent in seconds.most_common()}


def make(config: Phases) -> Any:
    """Return an algorithm that writes and learns as configured."""
    folder = str(model_folder(config.model))
    tokenizer = FileTokenizer(folder)
    texts = tokenizer.decode_batch(np.random.default_rng(0).integers(tokenizer.vocab_size, size=(256, 8 * config.prompt)).tolist())
    groups = 1 if config.algo == "ppo" else config.group_size
    prompts = [Prompt(text) for text in texts]
    cut: Any = {"max_prompt_tokens": config.prompt, "over_long": "right"}
    task = TextTask(tokenizer, prompts, config.new_tokens, group_size=groups, **cut)
    policy = {"model": folder, "min_new_tokens": config.new_tokens}
    policy |= {name: getattr(config, name) for name in ("micro_batch_size", "gradient_checkpointing", "precision")}
    policy |= {} if config.lora is None else {"lora": json.loads(config.lora)}
    policy |= {"critic": config.critic} if config.algo == "ppo" else {}
    return _ALGORITHMS[config.algo](
        "TransformerPolicy", TextGenerationVecEnv(config.episodes, task=task, reward=_parity), n_episodes=config.episodes,
        batch_size=config.batch, n_epochs=config.epochs, policy_kwargs=policy, seed=0, device=config.device,
    )  # fmt: skip


def _parity(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c) % 2) for c in completions]


def timed(agent: Any) -> dict[str, float]:
    """Have an algorithm add up the seconds of its reference passes, forward passes of the update, steps, and updates; return the sums."""
    seconds: dict[str, float] = {}

    def add(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            began = process_time()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + process_time() - began

        return clocked

    agent.train = add("update", agent.train)
    agent.rollout_buffer.kl_shaping.reference_log_probs = add("reference", agent.rollout_buffer.kl_shaping.reference_log_probs)
    agent.policy.evaluate_actions = add("forward", agent.policy.evaluate_actions)
    agent.policy.optimizer.step = add("optimizer", agent.policy.optimizer.step)
    return seconds


def _iterate(agent: Any, seconds: dict[str, float]) -> dict[str, float]:
    seconds.clear()
    began = process_time()
    agent.learn(1, reset_num_timesteps=False)  # a whole rollout, however few tokens are asked for
    total, update, reference = process_time() - began, seconds.pop("update"), seconds["reference"]
    backward = update - seconds["forward"] - seconds["optimizer"]  # and what little lies between
    return {**seconds, "backward": backward, "writing": total - update - reference, "iteration": total}


if __name__ == "__main__":
    main(tyro.cli(Phases))
