"""Memory and time of one update with a large vocabulary: `python -m agents.benchmark.performance.updates.large_vocabulary`.

`plain` keeps the logits of all tokens; `chunks` sends tokens through the head in chunks and computes their logits again in the
backward pass, as for every head that is more than one matrix; `blocks` makes them a block of the vocabulary at a time.  Each is
measured in a process of its own, since the largest resident size of a process never falls.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
import tyro
from rich.console import Console

from ....models import log_probs
from ....models.backbones import backbone_of
from ....models.loading import load_lm
from ....models.log_probs import action_log_probs
from ....models.sampler import Sampler
from ....models.sequences import TextRecord, pack
from ....reports.tables import terminal_table
from ....utils.fresh_processes import fresh_pool
from ..hardware import peak_mib
from ..speed_workload import Speed, model_config


@dataclass(frozen=True)
class Memory:
    """What to measure.

    Attributes:
        vocabulary: Tokens.
        width: Hidden size.
        layers: Transformer blocks.
        texts: Texts in the minibatch.
        new_tokens: Response tokens of each.
        repeats: Updates that are timed, after one of warm-up.
    """

    vocabulary: int = 131_072
    width: int = 256
    layers: int = 2
    texts: int = 32
    new_tokens: int = 64
    repeats: int = 3


def main(config: Memory) -> None:
    """Print all paths, and the ratios of the last to the first."""
    rows = {}
    for path in ("plain", "chunks", "blocks"):
        with fresh_pool(1) as pool:
            rows[path] = pool.submit(_measure, config, path).result()
    cells = [[path, f"{row['mib']:,.0f}", f"{row['seconds']:.2f}"] for path, row in rows.items()]
    cells.append(["blocks / plain", *(_ratio(rows["blocks"][key], rows["plain"][key]) for key in ("mib", "seconds"))])
    title = f"One update, {config.texts * config.new_tokens} response tokens, vocabulary {config.vocabulary}"
    Console().print(terminal_table(("", "peak beyond the model, MiB", "seconds"), cells, title))


def _ratio(ours: float, plain: float) -> str:
    return f"{ours / plain:.2f}" if plain else "-"  # small updates fit into what loading the model left free


def _measure(config: Memory, path: str) -> dict[str, float]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    speed = Speed(vocabulary=config.vocabulary, width=config.width, layers=config.layers, new_tokens=240)
    lm = load_lm(model_config(speed) | {"tie_word_embeddings": True})
    backbone = backbone_of(lm)
    if path != "blocks":
        backbone.__class__ = type("Called", (type(backbone),), {"head": None})
    if path == "plain":
        log_probs.LOGITS_AT_ONCE = 1 << 62
    optimizer = torch.optim.Adam(lm.parameters(), fused=True)
    texts = [
        TextRecord(rng.integers(config.vocabulary, size=16), rng.integers(config.vocabulary, size=config.new_tokens), 0)
        for _ in range(config.texts)
    ]
    batch = pack(texts, "cpu")
    actions = torch.from_numpy(np.concatenate([text.actions for text in texts]))
    for parameter in lm.parameters():  # gradients and Adam's moments belong to the model
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    before = peak_mib()
    seconds = []
    for _ in range(1 + config.repeats):
        began = perf_counter()
        of_actions, entropies = action_log_probs(backbone, backbone.hidden(batch), batch, actions, Sampler(), config.vocabulary)
        optimizer.zero_grad(set_to_none=False)
        (-of_actions.mean() - 0.01 * entropies.mean()).backward()
        optimizer.step()
        seconds.append(perf_counter() - began)
    return {"mib": peak_mib() - before, "seconds": statistics.median(seconds[1:])}


if __name__ == "__main__":
    main(tyro.cli(Memory))
