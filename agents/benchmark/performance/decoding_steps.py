"""Time of a decoding step with a pretrained model: `python -m agents.benchmark.performance.decoding_steps --model FOLDER`.

Full weights and adapters, each decoded as a rollout does, the same without copied weights (see `agents.models.decoding_weights`), and by
`generate` of transformers.  All sample the same number of tokens after the same prompts, all of them different, and take turns.  A token is
the CPU time of the whole, the prompts and the making of copies included, over the number of tokens of a text; a step is the median step
after the first.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import process_time

import numpy as np
import torch
import tyro
from rich.console import Console

from rewards.models.lora import add_adapters

from ...models.backbones import Backbone, backbone_of
from ...models.cached_decoder import CachedDecoder
from ...models.decoding_weights import DecodingWeights
from ...models.loading import load_lm
from ...models.sampler import draw
from ...models.sequences import PartialTexts
from ...reports.tables import terminal_table


@dataclass(frozen=True)
class Steps:
    """What to measure.

    Attributes:
        model: A folder or hub id, or a `.gguf` file, of a decoder-only model.
        rows: Texts side by side.
        prompt: Tokens of each prompt.
        new_tokens: Of each response.
        rank: Of the adapters, on all linear layers.
        repeats: Runs of each kind, taken in turns; the median counts.
        threads: Of torch.
    """

    model: str
    rows: int = 16
    prompt: int = 16
    new_tokens: int = 32
    rank: int = 8
    repeats: int = 3
    threads: int = 1


def main(config: Steps) -> dict[str, float]:
    """Print the milliseconds of a token and of a step of each kind; return those of a token."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    full, adapted = (load_lm(config.model).eval() for _ in range(2))
    add_adapters(adapted, {"r": config.rank})
    prompts = torch.from_numpy(np.random.default_rng(0).integers(backbone_of(full).vocab_size, size=(config.rows, config.prompt)))
    kinds = {}
    for name, lm in (("full weights", full), ("adapters", adapted)):
        kinds[name] = partial(write, backbone_of(lm), prompts, config.new_tokens, True)
        kinds[f"{name}, without copies"] = partial(write, backbone_of(lm), prompts, config.new_tokens, False)
        kinds[f"{name}, generate"] = partial(generate, lm, prompts, config.new_tokens)
    tokens: dict[str, list[float]] = {kind: [] for kind in kinds}
    steps: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(1 + config.repeats):  # the first is warm-up
        for kind, run in kinds.items():
            began = process_time()
            steps[kind] += run()
            tokens[kind].append(1e3 * (process_time() - began) / config.new_tokens)
    medians = {kind: statistics.median(seen[1:]) for kind, seen in tokens.items()}
    rows = [
        (
            kind,
            f"{token:.1f}",
            f"{token / medians['full weights']:.2f}",
            f"{1e3 * statistics.median(steps[kind]):.1f}" if steps[kind] else "-",
        )
        for kind, token in medians.items()
    ]
    title = f"{config.rows} rows, {config.prompt} prompt and {config.new_tokens} new tokens, {config.threads} threads"
    Console().print(terminal_table(("", "CPU ms a token", "of full weights", "a step"), rows, title))
    return medians


@torch.no_grad()
def write(backbone: Backbone, prompts: torch.Tensor, new_tokens: int, copies: bool) -> list[float]:
    """Write as a rollout does: draw, and take each token's log-probability; return the CPU seconds of the steps after the first."""
    rows, prompt = prompts.shape
    weights = DecodingWeights(backbone) if copies else None
    decoder, lengths = CachedDecoder(weights=weights), np.full(rows, prompt)
    ids = np.full((rows, prompt + new_tokens), -1)
    ids[:, :prompt] = prompts
    seconds = []
    for step in range(new_tokens):
        began = process_time()
        hidden = decoder.last_hidden(backbone, PartialTexts(ids, lengths + step, lengths))  # (B, D)
        with weights or nullcontext():
            logits = backbone.logits(hidden)  # (B, V)
        tokens = draw(logits)  # (B,)
        logits.log_softmax(-1).gather(-1, tokens[:, None])
        ids[:, prompt + step] = tokens
        seconds.append(process_time() - began)
    return seconds[1:]


def generate(lm: torch.nn.Module, prompts: torch.Tensor, new_tokens: int) -> list[float]:
    """Have transformers write as many tokens; its single steps are not timed."""
    rules = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": True, "pad_token_id": 0, "eos_token_id": None}
    lm.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), top_k=0, top_p=1.0, temperature=1.0, **rules)  # type: ignore[operator]
    return []


if __name__ == "__main__":
    main(tyro.cli(Steps))
