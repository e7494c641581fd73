"""`textrl generate`: texts from the policy of a finished run."""

from __future__ import annotations

import sys

from textrl_env import Prompt, TextTask, read_prompts
from textrl_env.utils.files import write_jsonl

from ..generation.text_generation import generate, stream
from ..training.trained_run import open_run
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
    task = run.task
    prompts = [*config.prompts, *([] if config.file is None else (p.text for p in read_prompts(rows_of_file(config.file, config.columns))))]
    if not prompts:
        raise ValueError("nothing to go on with: pass prompts, or --file")
    limit = run.task.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    policy, tokenizer = run.policy, run.task.tokenizer
    shown = [_with_picture(task, prompt) for prompt in prompts]
    if len(prompts) == 1 and config.out is None:
        print(prompts[0], end="", flush=True)
        for piece in stream(policy, tokenizer, shown[0], limit, config.deterministic, config.seed):
            print(piece, end="", flush=True)
        print()
        return
    responses = generate(policy, tokenizer, shown, limit, config.deterministic, seed=config.seed, progress_bar=sys.stderr.isatty())
    if config.out is not None:
        write_jsonl(config.out, ({"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)))
        return
    for prompt, response in zip(prompts, responses, strict=True):
        print(f"{prompt}{response}")


def _with_picture(task: TextTask, text: str) -> str | Prompt:
    """Return what a text stands for: itself, or the prompt of this text with its picture, where prompts have one."""
    if task.image_shape is None:
        return text
    known = next((prompt for prompt in task.prompts if prompt.text == text), None)
    if known is None and (task.recipe is None or task.recipe.image is None):
        raise ValueError(
            f"the prompts of this task have pictures, and the test split has no {text!r}: pass one of it, such as {task.prompts[0].text!r}"
        )
    return known or task.recipe.prompt(text)  # type: ignore[union-attr]
