"""The estimate of a training's memory against its measured peak: `python -m agents.benchmark.performance.memory --model FOLDER`.

Prompts and responses are random tokens, and all texts are of one length.  Every training is a process of its own and takes six
iterations or steps.  On a CPU its peak is what it held at most above what it held when it had imported everything, on a GPU what torch's
allocator gave out at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console

from rewards.utils.devices import get_device
from textrl_env import FileTokenizer
from textrl_env.utils.model_files import model_folder

from ...algorithms.dpo import DPO, Pair
from ...algorithms.sft import SFT
from ...models.mixed_precision import lacking_for_bfloat16
from ...models.sequences import TextRecord
from ...reports.tables import terminal_table
from ...utils.fresh_processes import fresh_pool
from . import phases
from .hardware import peak_mib, resident_mib

_ITERATIONS = 6  # the heap of a CPU still grows in the second
COLUMNS = ("training", "measured MiB", "estimate MiB", "error")


class Case(NamedTuple):
    """Attributes: an algorithm; and whether it trains adapters, in micro-batches, with gradient checkpointing, in bfloat16."""

    algo: Literal["rloo", "ppo", "sft", "dpo"] = "rloo"
    adapters: bool = False
    micro_batches: bool = False
    checkpointing: bool = False
    bfloat16: bool = False

    def __str__(self) -> str:
        names = {"adapters": "adapters", "micro_batches": "micro-batches", "checkpointing": "checkpointing", "bfloat16": "bf16"}
        told = [name for key, name in names.items() if getattr(self, key)]
        return ", ".join([self.algo.upper(), *([] if self.adapters else ["all weights"]), *told])


CASES = (
    Case(),
    Case(micro_batches=True),
    Case(checkpointing=True),
    Case(adapters=True),
    Case(adapters=True, micro_batches=True),
    Case(adapters=True, checkpointing=True),
    Case(adapters=True, micro_batches=True, checkpointing=True),
    Case(bfloat16=True),
    Case(adapters=True, micro_batches=True, bfloat16=True),
    Case("ppo"),
    Case("ppo", adapters=True, micro_batches=True),
    Case("sft"),
    Case("sft", adapters=True, micro_batches=True),
    Case("dpo"),
    Case("dpo", adapters=True, micro_batches=True),
)


@dataclass(frozen=True)
class Memory:
    """What to measure.

    Attributes:
        model: A folder, hub id or `.gguf` file with a tokenizer.
        only: Indices of `CASES`; all without any.
        prompt: Prompt tokens.
        new_tokens: Response tokens.
        texts: Of an iteration and of a minibatch; half as many pairs.
        micro_batch_size: Texts at once where there are micro-batches; half as many pairs.
        group_size: Texts for each prompt.
        rank: Of adapters.
        threads: Of torch.
        device: Where to train.
    """

    model: str
    only: tuple[int, ...] = ()
    prompt: int = 16
    new_tokens: int = 24
    texts: int = 32
    micro_batch_size: int = 8
    group_size: int = 8
    rank: int = 8
    threads: int = 1
    device: str = str(get_device())


def main(config: Memory) -> list[tuple[str, ...]]:
    """Measure, print the table, and return its rows."""
    rows: list[tuple[str, ...]] = []
    for index in config.only or range(len(CASES)):
        if CASES[index].bfloat16 and lacking_for_bfloat16(torch.device(config.device)):
            continue
        with fresh_pool(1) as pool:
            peak, estimate = pool.submit(measure, config, CASES[index]).result()
        rows.append((str(CASES[index]), f"{peak:,.0f}", f"{estimate:,.0f}", f"{estimate / peak - 1:+.0%}"))
        Console().print(*rows[-1])
    title = f"{config.texts} texts of {config.prompt} prompt and {config.new_tokens} response tokens, {config.device}"
    Console().print(terminal_table(COLUMNS, rows, title))
    return rows


def measure(config: Memory, case: Case) -> tuple[float, float]:
    """Train for six iterations in this process; return the peak of its memory and the estimate, in MiB."""
    torch.set_num_threads(config.threads)
    idle = resident_mib(config.device)
    trained = _supervised(config, case) if case.algo in ("sft", "dpo") else _playing(config, case)
    return peak_mib(config.device) - idle, trained.memory.total / 2**20


def _playing(config: Memory, case: Case) -> Any:
    assert case.algo in ("rloo", "ppo")
    agent = phases.make(
        phases.Phases(
            config.model, case.algo, f'{{"r": {config.rank}}}' if case.adapters else None, prompt=config.prompt,
            new_tokens=config.new_tokens, episodes=config.texts, batch=config.texts, group_size=config.group_size,
            micro_batch_size=config.micro_batch_size if case.micro_batches else 0, gradient_checkpointing=case.checkpointing,
            precision="bfloat16" if case.bfloat16 else "float32", device=config.device,
        )
    )  # fmt: skip
    for _ in range(_ITERATIONS):
        agent.learn(1, reset_num_timesteps=False)
    return agent


def _supervised(config: Memory, case: Case) -> Any:
    folder, pairs = str(model_folder(config.model)), 1 + (case.algo == "dpo")
    settings: dict[str, Any] = {
        "batch_size": config.texts // pairs, "micro_batch_size": config.micro_batch_size // pairs if case.micro_batches else 0,
        "lora": {"r": config.rank} if case.adapters else None, "gradient_checkpointing": case.checkpointing,
        "precision": "bfloat16" if case.bfloat16 else "float32", "device": config.device,
    }  # fmt: skip
    tokenizer = FileTokenizer(folder)
    ids = np.random.default_rng(0).integers(tokenizer.vocab_size - 1, size=(config.texts, config.prompt + config.new_tokens))
    texts = [TextRecord(row[: config.prompt], row[config.prompt :], 0) for row in ids]
    if case.algo == "sft":
        return SFT(folder, tokenizer, **settings).learn(texts, _ITERATIONS)
    rows = zip(texts[::2], texts[1::2], strict=True)
    return DPO(folder, tokenizer, **settings).learn([Pair(one, other._replace(context=one.context)) for one, other in rows], _ITERATIONS)


if __name__ == "__main__":
    main(tyro.cli(Memory))
