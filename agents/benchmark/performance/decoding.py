"""Decoding speed of rows that end at different times: `python -m agents.benchmark.performance.decoding`.

Uneven rows write 8 to 64 tokens each; a row that has ended goes idle, or takes the next text.  Even rows do the same work (as
many texts, prompts and tokens), but all texts are equally long.  The first reading of the prompts counts.  On a GPU each kind is
also timed with CUDA graphs; `--width 768 --layers 12 --vocabulary 50257` is the size of GPT-2 small.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
import tyro
from rich.console import Console

from rewards.utils.devices import get_device

from ...models.backbones import Backbone, backbone_of
from ...models.cached_decoder import CachedDecoder
from ...models.loading import load_lm
from ...models.sampler import draw
from ...models.sequences import PartialTexts
from ...reports.tables import terminal_table
from .hardware import peak_mib
from .speed_workload import Speed, model_config


@dataclass(frozen=True)
class Decode:
    """What to measure.

    Attributes:
        rows: Texts side by side.
        prompt: Tokens of each prompt.
        shortest: Fewest response tokens.
        longest: Most response tokens.
        width: Hidden size.
        layers: Transformer blocks.
        vocabulary: Tokens.
        repeats: Runs of each kind, taken in turns; the median counts.
        device: Where the model is.
        cuda_graphs: Whether each kind is timed with CUDA graphs too.
    """

    rows: int = 64
    prompt: int = 16
    shortest: int = 8
    longest: int = 64
    width: int = 256
    layers: int = 4
    vocabulary: int = 8192
    repeats: int = 5
    device: str = str(get_device())
    cuda_graphs: bool = torch.cuda.is_available()


def main(config: Decode) -> dict[str, float]:
    """Print tokens per second of each kind, and return them."""
    torch.manual_seed(0)
    lm = load_lm(model_config(Speed(vocabulary=config.vocabulary, width=config.width, layers=config.layers, heads=8, new_tokens=1008)))
    backbone = backbone_of(lm.to(config.device).eval())
    rng = np.random.default_rng(0)
    lengths = rng.integers(config.shortest, config.longest + 1, config.rows)
    later = rng.integers(config.shortest, config.longest + 1, 4 * config.rows)
    kinds = {}
    for name, more in (("rows go idle", later[:0]), ("rows take the next text", later)):
        mean = round(float(np.concatenate([lengths, more]).mean()))
        kinds[f"even, {name}"] = (np.full_like(lengths, mean), np.full_like(more, mean))
        kinds[f"uneven, {name}"] = (lengths, more)
    if config.cuda_graphs:
        kinds |= {f"{name}, CUDA graphs": lengths for name, lengths in kinds.items()}
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(1 + config.repeats):
        for kind, (first, later) in kinds.items():
            speeds[kind].append(write(backbone, config, first, later, cuda_graphs=kind.endswith("graphs")))
    medians = {kind: statistics.median(seen[1:]) for kind, seen in speeds.items()}
    rows = [(kind, f"{speed:,.0f}", f"{speed / medians[kind.replace('uneven', 'even')]:.2f}") for kind, speed in medians.items()]
    title = f"{config.rows} rows, {config.shortest} to {config.longest} new tokens, {config.device}"
    Console().print(terminal_table(("", "tokens/s", "of even rows"), rows, title))
    if config.device.startswith("cuda"):
        Console().print(f"peak memory {peak_mib(config.device):,.0f} MiB")
    return medians


@torch.no_grad()
def write(backbone: Backbone, config: Decode, lengths: np.ndarray, later: np.ndarray, cuda_graphs: bool = False) -> float:
    """Write texts of these lengths; rows that end take those of `later` in turn, then go idle.  Return tokens per second."""
    rng = np.random.default_rng(1)
    rows, width = len(lengths), config.prompt + config.longest
    todo, waiting, decoder = lengths.copy(), list(later), CachedDecoder(cuda_graphs)
    ids = np.full((rows, width), -1)
    ids[:, : config.prompt] = rng.integers(config.vocabulary, size=(rows, config.prompt))
    prompts = np.full(rows, config.prompt)
    written, tokens = np.zeros(rows, np.int64), 0
    began = perf_counter()
    while (live := np.flatnonzero(todo)).size:
        texts = PartialTexts(ids.copy(), np.where(todo > 0, prompts + written, 0), np.where(todo > 0, prompts, 0))
        chosen = draw(backbone.logits(decoder.last_hidden(backbone, texts))).cpu().numpy()
        ids[live, prompts[live] + written[live]] = chosen
        written[live] += 1
        tokens += len(live)
        for row in live[written[live] == todo[live]]:
            ids[row], written[row], todo[row] = -1, 0, 0
            if waiting:
                todo[row] = waiting.pop()
                ids[row, : config.prompt] = rng.integers(config.vocabulary, size=config.prompt)
    return tokens / (perf_counter() - began)


if __name__ == "__main__":
    main(tyro.cli(Decode))
