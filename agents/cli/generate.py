"""`textrl generate`: texts from the policy of a finished run."""

from __future__ import annotations

import sys
from pathlib import Path

from textrl_env import Prompt, read_prompts
from textrl_env.utils.files import write_jsonl

from ..generation.text_generation import generate, stream
from ..training.trained_run import TrainedRun, open_run
from ..utils.device_flag import on_device
from .arguments import rows_of_file
from .flags import Generate


@on_device
def run_generate(config: Generate) -> None:
    """Write texts to the terminal or to a file."""
    if config.deterministic and config.seed != Generate.seed:
        raise ValueError(f"--seed {config.seed} seeds what is drawn, and --deterministic draws nothing: leave one of them out")
    if config.columns is not None and config.file is None:
        raise ValueError(f"--columns {config.columns} names the columns of --file, which is not given")
    run = open_run(config.run, config.policy)
    given = [*config.prompts, *([] if config.file is None else _of_file(run, config.file, config.columns))]
    prompts = [one if isinstance(one, str) else one.text for one in given]
    if not prompts:
        raise ValueError("nothing to go on with: pass prompts, or --file")
    limit = run.task.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    policy, tokenizer = run.policy, run.task.tokenizer
    shown = [_as_prompt(run, one) for one in given]
    if len(prompts) == 1 and config.out is None:
        print(prompts[0], end="", flush=True)
        for piece in stream(policy, tokenizer, shown[0], limit, config.deterministic, config.seed, **run.writing):
            print(piece, end="", flush=True)
        print()
        return
    how = {"seed": config.seed, "progress_bar": sys.stderr.isatty(), **run.writing}
    responses = generate(policy, tokenizer, shown, limit, config.deterministic, **how)
    if config.out is not None:
        write_jsonl(config.out, ({"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)))
        return
    for prompt, response in zip(prompts, responses, strict=True):
        print(f"{prompt}{response}")


def _of_file(run: TrainedRun, file: Path, columns: str | None) -> list[str] | list[Prompt]:
    """Return the texts of a file, or its prompts where it holds messages."""
    rows = rows_of_file(file, columns)
    if not run.renders:
        return [prompt.text for prompt in read_prompts(rows)]
    return list(read_prompts(rows, template=run.template, chat=True))


def _as_prompt(run: TrainedRun, given: str | Prompt) -> Prompt:
    """Return what is gone on with: a text as the run's prompts are written, with its picture, where prompts have one."""
    task = run.task
    if isinstance(given, Prompt):
        return given
    if task.image_shape is None:
        return run.prompt(given)
    known = next((prompt for prompt in task.prompts if prompt.text == given), None)
    if known is None and (task.recipe is None or task.recipe.image is None):
        raise ValueError(
            f"the prompts of this task have pictures, and the test split has no {given!r}: pass one of it, such as {task.prompts[0].text!r}"
        )
    return known or task.recipe.prompt(given)  # type: ignore[union-attr]
