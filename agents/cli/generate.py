"""`textrl generate`: texts from the policy of a finished run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textrl_env import read_prompts
from textrl_env.utils.files import write_jsonl

from ..generation.text_generation import generate, stream
from ..training.trained_run import open_run
from ..utils.limits import Count, Seed
from .arguments import rows_of_file


@dataclass(frozen=True)
class Generate:
    """Write texts with the policy of a run.

    Attributes:
        run: Folder of `textrl train` or `textrl demo`.
        prompts: What to go on with; a single one is streamed.
        policy: Subfolder of the policy, if there are several.
        file: More prompts, as `read_prompts` takes them: .jsonl, .csv, .parquet or .txt.
        columns: The file's own name of the column of prompts, as in `prompt=question`.
        out: JSON Lines file for `prompt` and `response`; by default they are printed.
        max_new_tokens: Longest response; by default the task's.
        deterministic: Take the likeliest token instead of drawing one.
        seed: Of the sampling.
    """

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    policy: str | None = None
    file: Path | None = None
    columns: str | None = None
    out: Path | None = None
    max_new_tokens: Count | None = None
    deterministic: bool = False
    seed: Seed = 0


def run_generate(config: Generate) -> None:
    """Write texts to the terminal or to a file."""
    if config.deterministic and config.seed != Generate.seed:
        raise ValueError(f"--seed {config.seed} seeds what is drawn, and --deterministic draws nothing: leave one of them out")
    if config.columns is not None and config.file is None:
        raise ValueError(f"--columns {config.columns} names the columns of --file, which is not given")
    run = open_run(config.run, config.policy)
    prompts = [*config.prompts, *([] if config.file is None else (p.text for p in read_prompts(rows_of_file(config.file, config.columns))))]
    if not prompts:
        raise ValueError("nothing to go on with: pass prompts, or --file")
    limit = run.task.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    policy, tokenizer = run.policy, run.task.tokenizer
    if len(prompts) == 1 and config.out is None:
        print(prompts[0], end="", flush=True)
        for piece in stream(policy, tokenizer, prompts[0], limit, config.deterministic, config.seed):
            print(piece, end="", flush=True)
        print()
        return
    responses = generate(policy, tokenizer, prompts, limit, config.deterministic, seed=config.seed, progress_bar=sys.stderr.isatty())
    if config.out is not None:
        write_jsonl(config.out, ({"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)))
        return
    for prompt, response in zip(prompts, responses, strict=True):
        print(f"{prompt}{response}")
