"""A text task from plain sentences: a tokenizer is trained on them, and their first words are the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textrl_env import BaseRecipe, FileTokenizer, Prompt, TextTask, make_task
from textrl_env.utils.files import read_lines as read_lines
from textrl_env.utils.files import write_text
from textrl_env.utils.train_tokenizer import EOS, train_tokenizer

from ..utils.columns import columns_of
from ..utils.run_folder import fingerprint
from .settings import DEFAULT_TASK, OF_PROMPTS


def task_of(settings: Mapping[str, Any], folder: Path, split: str = "train") -> TextTask:
    """Return the task of a run: a named one, that of a file of prompts, or that of text files, which have no splits.

    Args:
        settings: Of `textrl train`: `corpus`, `prompts` with what belongs to them, or `task`.
        folder: Of the run; keeps the tokenizer that is trained on text files.
        split: Which prompts.
    """
    if settings.get("corpus"):
        sentences = [line for path in settings["corpus"] for line in read_lines(Path(path))]
        return corpus_task(sentences, sentences, folder / f"tokenizer-{fingerprint(sentences)}")
    return make_task(task_data(settings), split=split)


def task_data(settings: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return what `make_task` takes for the settings of `textrl train`: the name of a task, or prompts as plain data."""
    if settings.get("prompts") is None:
        return settings.get("task") or DEFAULT_TASK
    given = {"path": settings["prompts"], **{ours: settings.get(flag) for flag, ours in OF_PROMPTS.items()}}
    given |= {"columns": columns_of(settings.get("columns"))}
    return {"name": "prompts", "tokenizer": str(settings["model"]), **{k: v for k, v in given.items() if v not in (None, (), [])}}


def corpus_task(
    sentences: Sequence[str],
    openings: Sequence[str],
    folder: str | Path,
    *,
    vocab_size: int = 2000,
    opening_words: int = 4,
    max_new_tokens: int = 32,
    steps: int = 600,
) -> TextTask:
    """Make a task whose episodes go on with the first words of sentences.

    Args:
        sentences: What tokenizer and base policy learn from.
        openings: Sentences whose first words are the prompts; ones with fewer than two words more are left out.
        folder: Gets `tokenizer.json`; a tokenizer that is already there is used.
        vocab_size: Tokens of the byte-level BPE, special ones included; fewer if the text has not so many pairs.
        opening_words: Words of a prompt.
        max_new_tokens: Length limit of a response.
        steps: Optimizer steps of the base policy.

    Raises:
        ValueError: No opening is long enough.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        write_text(file, train_tokenizer(sentences, vocab_size).to_str())
    tokenizer = FileTokenizer(file, EOS)
    prompts = [Prompt(" ".join(words[:opening_words])) for words in map(str.split, openings) if len(words) >= opening_words + 2]
    if not prompts:
        raise ValueError(f"none of {len(openings)} sentences has {opening_words + 2} words: lower opening_words={opening_words}")
    task = TextTask(tokenizer, prompts, max_new_tokens)
    room = 1 << (task.prompt_width + max_new_tokens).bit_length()
    model = {
        "model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": max(room, 128), "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "tie_word_embeddings": True, "initializer_range": 0.06,
    }  # fmt: skip

    def corpus() -> list[tuple[str, str]]:
        rows = (sentence.split() for sentence in sentences)
        return [(" ".join(words[:opening_words]), " ".join(words[opening_words:])) for words in rows if len(words) > opening_words]

    return TextTask(tokenizer, prompts, max_new_tokens, recipe=BaseRecipe(corpus=corpus, model=model, steps=steps))
