"""Flags that several commands read the same way: the task and the reward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textrl_env import TextTask, make_task

from ..training.text_corpus import corpus_task, read_lines
from ..utils.run_folder import fingerprint


def task_of(task: str, corpus: Sequence[Path], folder: Path, split: str = "train") -> TextTask:
    """Return the task of a run: the named one, or that of the text files, whose tokenizer is kept in `folder`; corpora have no splits."""
    if not corpus:
        return make_task(task, split=split)
    sentences = [line for path in corpus for line in read_lines(path)]
    return corpus_task(sentences, sentences, folder / f"tokenizer-{fingerprint(sentences)}")


def reward_of(text: str) -> Any:
    """Return what `--reward` names, as plain data."""
    if text.startswith("{"):
        return json.loads(text)
    if Path(text).is_dir():
        return {"name": "preference", "path": text}
    return text
