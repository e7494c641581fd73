"""`textrl reward score`: what a reward says of the texts in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from textrl_env import Episode, Prompt, read_prompts
from textrl_env.prompts.reward_needs import see_prompts
from textrl_env.reward_model import RewardModel, as_reward_model, checked_scores
from textrl_env.utils.files import write_jsonl

from ..reports.plots import save
from ..reports.reward_plots import histogram
from ..utils.device_flag import on_device
from ..utils.progress import bar
from .arguments import reward_of, rows_of_file
from .flags import Score

_BATCH = 256  # texts


@on_device
def run_score(config: Score) -> None:
    """Write scores and histogram, and print a summary."""
    named = config.file.with_suffix("") if config.file.suffix == ".gz" else config.file
    out = config.out or named.with_suffix(".scores.jsonl")
    rows: Sequence[Prompt] = read_prompts(rows_of_file(config.file, config.columns), references=config.references)
    scores: list[float] = []
    reward = as_reward_model(reward_of(config.reward, "REWARD"))
    see_prompts(reward, rows)
    write_jsonl(out, _scored(reward, rows, config.file, scores))
    values = np.array(scores)
    save(histogram(values, f"{config.reward[:60]}, {len(values):,} texts"), out.with_suffix(".png"))
    table = Table(title=f"{config.reward} on {config.file}", show_header=False)
    names = ("lowest", "lower quartile", "median", "upper quartile", "highest")
    quartiles = dict(zip(names, np.quantile(values, np.linspace(0, 1, 5)), strict=True))
    for name, value in {"mean": values.mean(), "standard deviation": values.std(), **quartiles}.items():
        table.add_row(name, f"{value:,.4f}")
    Console().print(table)
    print(f"{out}\n{out.with_suffix('.png')}")


def _scored(reward: RewardModel, rows: Sequence[Prompt], file: Path, scores: list[float]) -> Iterator[dict[str, Any]]:
    """Yield the rows with their scores, which go into `scores` too."""
    with bar("score", len(rows), True) as shown:
        for start in range(0, len(rows), _BATCH):
            batch = [rows[i] for i in range(start, min(start + _BATCH, len(rows)))]
            episodes = [_episode(row, f"{file}, row {start + i + 1}") for i, row in enumerate(batch)]
            new = checked_scores(reward, episodes).tolist()
            scores.extend(new)
            for row, episode, score in zip(batch, episodes, new, strict=True):
                yield {**row.metadata, "prompt": row.text, "response": episode.response, "score": score}
            shown.advance(len(batch))


def _episode(row: Prompt, where: str) -> Episode:
    response = row.metadata.get("response")
    if not isinstance(response, str):
        raise ValueError(f"{where}: the column 'response' is {response!r}: it must be a text")
    return Episode.from_text(row.text, response, references=row.references, metadata=row.metadata)
