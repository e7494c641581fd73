"""What joining a batch's texts in one row spares: `python -m agents.benchmark.performance.updates.joined_texts`, and with `--uneven`.

Groups of texts with a common prompt, all of one length; or, with `--uneven`, texts without one, whose lengths are log-uniform.  The same
minibatches go through `agents.models.backbones.joined_texts` and side by side, in turns in one process, and seconds are CPU time, so that a
machine which others use favours neither.  An update is forward pass, PPO's loss without its value, backward pass and Adam's step.  Uneven
texts side by side are also sorted, so that minibatches are of like length, and go through the model a length at a time, as those of models
do that cannot join them.  The peak of memory is that of a process of its own.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console

from ....models import sequences
from ....models.backbones import backbone_of
from ....models.loading import load_lm
from ....models.log_probs import action_log_probs
from ....models.sampler import Sampler
from ....models.sequences import SequenceBatch, TextRecord, pack
from ....reports.tables import terminal_table
from ....utils.fresh_processes import fresh_pool
from ..hardware import peak_mib, resident_mib
from ..speed_workload import SIZES, Size, Speed, model_config


@dataclass(frozen=True)
class Texts:
    """What to measure.

    Attributes:
        size: Of the model, see `agents.benchmark.performance.speed_workload`.
        model: A folder, hub id or `.gguf` file instead.
        prompt: Prompt tokens of each text, those of a group in common; of uneven texts 1.
        new_tokens: Response tokens of each text.
        group: Texts for each prompt.
        uneven: Texts whose lengths, the prompt included, are log-uniform.
        shortest: Fewest tokens of an uneven text.
        longest: Most.
        texts: Of an iteration.
        batch: Of a minibatch.
        repeats: Updates of each way, taken in turns after one of warm-up; the median counts.
        threads: Of torch.
    """

    size: Size = "6M"
    model: str | None = None
    prompt: int = 256
    new_tokens: int = 64
    group: int = 8
    uneven: bool = False
    shortest: int = 8
    longest: int = 256
    texts: int = 32
    batch: int = 8
    repeats: int = 5
    threads: int = 1


class Way(NamedTuple):
    """Attributes: whether texts are joined; whether a minibatch is of like length; whether its lengths go through the model in turns."""

    joined: bool = False
    sorted: bool = False
    in_turns: bool = False


class Measured(NamedTuple):
    """Attributes: CPU seconds of the update and of a pass without gradients; the share of its positions that hold no token."""

    update: float
    reading: float
    padding: float


def main(config: Texts) -> dict[str, Measured]:
    """Print a table, and return its rows."""
    ways = {"side by side": Way(), "joined": Way(joined=True)}
    if config.uneven:
        ways |= {"side by side, sorted": Way(sorted=True), "a length at a time": Way(in_turns=True)}
    bench = Bench(config)
    seen: dict[str, list[Measured]] = {name: [] for name in ways}
    for _ in range(1 + config.repeats):
        for name, way in ways.items():
            seen[name].append(bench.measure(way))
    medians = {name: Measured(*map(statistics.median, zip(*rows[1:], strict=True))) for name, rows in seen.items()}
    rows = []
    for name, row in medians.items():
        gains = (f"{row.update / medians['joined'].update:.2f}x", f"{row.reading / medians['joined'].reading:.2f}x")
        with fresh_pool(1) as pool:
            memory = pool.submit(peak, config, ways[name]).result()
        rows.append((name, f"{row.update:.2f}", gains[0], f"{row.reading:.2f}", gains[1], f"{row.padding:.0%}", f"{memory:,.0f}"))
    head = ("", "update s", "joined is", "reading s", "joined is", "padding", "memory MiB")
    kind = f"lengths log-uniform from {config.shortest} to {config.longest}" if config.uneven else f"groups of {config.group}"
    Console(width=132).print(terminal_table(head, rows, f"{config.texts} texts, {kind}, CPU seconds"))
    return medians


def peak(config: Texts, way: Way) -> float:
    """Return the peak memory of three rounds in this process, in MiB above what it held before."""
    idle = resident_mib()
    bench = Bench(config)
    for _ in range(3):
        bench.measure(way)
    return peak_mib() - idle


class Bench:
    """A model, its optimizer, and texts."""

    def __init__(self, config: Texts) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(0)
        longest = config.longest if config.uneven else config.prompt + config.new_tokens
        source: Any = config.model or model_config(Speed(**SIZES[config.size], prompt=1, new_tokens=longest - 1))
        self.config = config
        self.backbone: Any = backbone_of(load_lm(source).train())
        self.optimizer = torch.optim.Adam(self.backbone.lm.parameters(), lr=1e-7, fused=True)  # a pretrained model stays what it is
        self.texts = _texts(config, self.backbone.vocab_size)

    def measure(self, way: Way) -> Measured:
        """Do one update and one pass without gradients."""
        self.backbone.joinable, self.backbone.joinable_up_to = None if way.joined else False, 0
        sequences.SPARES = 0.75 if way.in_turns else 0.0
        self.backbone.positions[:] = 0
        texts = sorted(self.texts, key=_length) if way.sorted else self.texts
        parts = [texts[start : start + self.config.batch] for start in range(0, len(texts), self.config.batch)]
        minibatches = [(pack(part, "cpu"), torch.from_numpy(np.concatenate([text.actions for text in part]))) for part in parts]
        with torch.no_grad():
            self.backbone.hidden(pack(texts, "cpu"))  # tries whether it can, as a training does once
        began = process_time()
        for batch, actions in minibatches:
            log_probs = self._log_probs(batch, actions)
            self.optimizer.zero_grad()
            ((log_probs.detach() - log_probs).exp() * torch.linspace(-1, 1, len(log_probs))).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.backbone.lm.parameters(), 0.5)
            self.optimizer.step()
        update = process_time() - began
        began = process_time()
        with torch.inference_mode():
            for batch, actions in minibatches:
                self._log_probs(batch, actions)
        positions, tokens = self.backbone.positions
        return Measured(update, process_time() - began, 1 - tokens / positions)

    def _log_probs(self, batch: SequenceBatch, actions: torch.Tensor) -> torch.Tensor:
        hidden = self.backbone.hidden(batch)  # (N, D)
        return action_log_probs(self.backbone, hidden, batch, actions, Sampler(), self.backbone.vocab_size)[0]  # (N,)


def _texts(config: Texts, vocabulary: int) -> list[TextRecord]:
    rng = np.random.default_rng(0)

    def draw(number: int) -> np.ndarray:
        return rng.integers(vocabulary, size=number)

    if config.uneven:
        lengths = np.exp(rng.uniform(np.log(config.shortest), np.log(config.longest), config.texts)).round().astype(int)
        return [TextRecord(draw(1), draw(length - 1), 0) for length in lengths]
    prompts = [draw(config.prompt) for _ in range(config.texts // config.group)]
    return [TextRecord(prompt, draw(config.new_tokens), 0) for prompt in prompts for _ in range(config.group)]


def _length(text: TextRecord) -> int:
    return len(text.context) + len(text.actions)


if __name__ == "__main__":
    main(tyro.cli(Texts))
