"""Time of a decoding step with a pretrained model: `python -m agents.benchmark.performance.decoding_steps --model FOLDER`.

Full weights and adapters, each decoded as a rollout does, the same without copied weights (see `agents.models.decoding_weights`), and by
`generate` of transformers.  All sample the same number of tokens after the same prompts, all of them different, and take turns; a step is
the CPU time of the whole, the prompts and the making of copies included, over the number of tokens of a text.
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
    """Print the milliseconds of a step of each kind, and return them."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    full, adapted = (load_lm(config.model).eval() for _ in range(2))
    add_adapters(adapted, {"r": config.rank})
    prompts = torch.from_numpy(np.random.default_rng(0).integers(full.config.vocab_size, size=(config.rows, config.prompt)))
    kinds = {}
    for name, lm in (("full weights", full), ("adapters", adapted)):
        kinds[name] = partial(write, backbone_of(lm), prompts, config.new_tokens, True)
        kinds[f"{name}, without copies"] = partial(write, backbone_of(lm), prompts, config.new_tokens, False)
        kinds[f"{name}, generate"] = partial(generate, lm, prompts, config.new_tokens)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(1 + config.repeats):  # the first is warm-up
        for kind, run in kinds.items():
            began = process_time()
            run()
            times[kind].append(1e3 * (process_time() - began) / config.new_tokens)
    steps = {kind: statistics.median(seen[1:]) for kind, seen in times.items()}
    rows = [(kind, f"{step:.1f}", f"{step / steps['full weights']:.2f}") for kind, step in steps.items()]
    title = f"{config.rows} rows, {config.prompt} prompt and {config.new_tokens} new tokens, {config.threads} threads"
    Console().print(terminal_table(("", "CPU ms a step", "of full weights"), rows, title))
    return steps


@torch.no_grad()
def write(backbone: Backbone, prompts: torch.Tensor, new_tokens: int, copies: bool) -> None:
    """Write as a rollout does: draw, and take each token's log-probability."""
    rows, prompt = prompts.shape
    weights = DecodingWeights(backbone) if copies else None
    decoder, lengths = CachedDecoder(weights=weights), np.full(rows, prompt)
    ids = np.full((rows, prompt + new_tokens), -1)
    ids[:, :prompt] = prompts
    for step in range(new_tokens):
        hidden = decoder.last_hidden(backbone, PartialTexts(ids, lengths + step, lengths))  # (B, D)
        with weights or nullcontext():
            logits = backbone.logits(hidden)  # (B, V)
        tokens = draw(logits)  # (B,)
        logits.log_softmax(-1).gather(-1, tokens[:, None])
        ids[:, prompt + step] = tokens


def generate(lm: torch.nn.Module, prompts: torch.Tensor, new_tokens: int) -> None:
    """Have transformers write as many tokens."""
    rules = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": True, "pad_token_id": 0, "eos_token_id": None}
    lm.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), top_k=0, top_p=1.0, temperature=1.0, **rules)  # type: ignore[operator]


if __name__ == "__main__":
    main(tyro.cli(Steps))
