"""A task from a file of the user's own prompts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..chat import chat_template
from ..prompts.reader import PromptView, RowPrompts, deal_texts, is_chat, read_prompts
from ..prompts.row_sources import FORMATS, rows_of
from ..task import TextTask
from ..tokenizer import FileTokenizer, Tokenizer
from ..utils.row_files import LineRows, Rows
from ..utils.tables import RenamedRows
from .corpora.split_files import split_files

_AT_ONCE = 200_000  # prompts that are read and tokenized when the task is made; of more, each as it is drawn
_SUFFIXES = tuple(f".{kind}{end}" for end in ("", ".gz") for kind in FORMATS)


def prompts_task(
    path: str | Path,
    tokenizer: Any,
    split: str = "train",
    *,
    name: str = "prompts",
    test_path: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    references: str | Sequence[str] = (),
    chat: bool = False,
    eos_token: str | Sequence[str] | None = None,
    add_bos: bool | None = None,
    max_new_tokens: int = 64,
    **options: Any,
) -> TextTask:
    """Return a task whose episodes start from the prompts of a file.

    No prompt that is evaluated on is trained on.  A folder has a file for each split, named after it.  A file is dealt: 80% of its prompts
    train, 10% validation and 10% test, by a hash of the prompt, the same in every run; of few prompts, one at least is the test.  Beside
    a `test_path` all of the file trains, but for prompts that are in both: a warning says how many are left out.

    Args:
        path: What `read_prompts` takes: a file, or `hf:ID`, whose splits are the hub's; or a folder.
        tokenizer: The policy's, as `FileTokenizer` takes it: a model's folder, `.gguf` file or hub id; or a `Tokenizer`.
        split: `"train"`, `"validation"` or `"test"`.
        name: `"prompts"`, as in the plain data that `make_task` takes.
        test_path: Prompts to evaluate on; there is no validation split then.
        columns: The file's own name of a column, where it has another: `{"prompt": "question"}`.  A prompt is a text, or messages, which
            go through the chat template of the tokenizer.  Columns that are neither prompt nor references become metadata.
        references: Columns with texts that the reward compares responses with.
        chat: A prompt that is a text is what a user says, and goes through the chat template as one message.
        eos_token: The token that ends a text, or several, see `FileTokenizer`; not for a `Tokenizer`, which knows its own.
        add_bos: Whether prompts begin with the beginning-of-text token, see `FileTokenizer`; likewise.
        max_new_tokens: Longest response.
        **options: Fields of `TextTask`, such as `stop_strings`, `reward`, `over_long`, or `max_prompt_tokens`, by default the length of the
            longest prompt (of more than 200,000 prompts it has to be named).

    Raises:
        FileNotFoundError: There is no such file, or no file of this split.
        ValueError: The file is empty or malformed, the split has no prompt, a prompt is too long, or the tokenizer has no chat template.
    """
    if isinstance(tokenizer, Tokenizer) and (eos_token is not None or add_bos is not None):
        raise ValueError(f"eos_token={eos_token!r}, add_bos={add_bos}: the {type(tokenizer).__name__} says both itself; leave them out")
    own = tokenizer if isinstance(tokenizer, Tokenizer) else FileTokenizer(tokenizer, eos_token, add_bos)
    parts = _of_split(_Source(str(path), columns, own, references, chat), test_path, split)
    together = parts[0] if len(parts) == 1 else tuple(chain.from_iterable(parts))
    return TextTask(own, tuple(together) if len(together) <= _AT_ONCE else together, max_new_tokens, **options)


@dataclass(frozen=True)
class _Source:
    """Where prompts come from, and how they are read."""

    path: str
    columns: Mapping[str, str] | None
    tokenizer: Tokenizer
    references: str | Sequence[str]
    chat: bool

    def is_dealt(self) -> bool:
        """Return whether the source has no splits of its own."""
        if self.path.startswith("hf:"):
            return self.path.count(":") > 1
        return not Path(self.path).is_dir() or split_files(self.path, "train", _SUFFIXES)[1]

    def tables(self, split: str) -> list[RowPrompts]:
        """Return the prompts of a split where the source has splits of its own; else all."""
        if self.path.startswith("hf:"):
            return [self._read(rows_of(self.path if self.is_dealt() else f"{self.path}:{split}", None, None))]
        files = split_files(self.path, split, _SUFFIXES)[0] if Path(self.path).is_dir() else [Path(self.path)]
        return [self._read(rows_of(file, None, None)) for file in files]

    def _read(self, rows: Rows) -> RowPrompts:
        if self.columns:
            if type(rows) is LineRows:
                raise ValueError(
                    f"columns={dict(self.columns)}: {rows.name} is plain text, a prompt a line, without columns: leave them out"
                )
            rows = RenamedRows(rows, self.columns)
        first = next(rows.map(lambda row: row, [0])) if len(rows) else None
        template = None
        if self.chat or (isinstance(first, Mapping) and is_chat(first.get("prompt"))):
            if not isinstance(self.tokenizer, FileTokenizer):
                raise ValueError(
                    f"a {type(self.tokenizer).__name__} has no chat template: pass the folder of the model's tokenizer, or plain prompts"
                )
            template = chat_template(self.tokenizer.files)
        return read_prompts(rows, references=self.references, template=template, chat=self.chat)


def _of_split(source: _Source, test_path: str | Path | None, split: str) -> list[PromptView]:
    """Return the prompts of a split, those of each table that holds some."""
    if test_path is not None:
        if split == "validation":
            raise ValueError(
                f"split='validation': {source.path} trains, and test_path={test_path} is the test: leave it out, or ask for those"
            )
        test = replace(source, path=str(test_path)).tables("test")
        return _without(source, _keys(test)) if split == "train" else _chosen(test)
    if not source.is_dealt():
        return _without(source, _evaluated_on(source)) if split == "train" else _chosen(source.tables(split))
    tables = source.tables(split)
    dealt = deal_texts(_keys(tables))
    chosen = _chosen(tables, lambda key: dealt[key] == split)
    if not any(map(len, chosen)):
        raise ValueError(
            f"{source.path}: none of its {len(dealt)} different prompts is in the {split} split, for a hash deals them (80% train, 10% "
            "validation, 10% test): add prompts, or name a file of others to evaluate on (test_path)"
        )
    return chosen


def _without(source: _Source, taken: set[str]) -> list[PromptView]:
    """Return the prompts to train on, those that are evaluated on left out."""
    tables = source.tables("train")
    kept, number = _chosen(tables, lambda key: key not in taken), sum(map(len, tables))
    left_out = number - sum(map(len, kept))
    if left_out == number:
        raise ValueError(f"all {number} prompts of {source.path} are among those to evaluate on: there is none to train on")
    if left_out:
        message = f"{left_out} of {number} prompts of {source.path} are among those to evaluate on, and are not trained on"
        warnings.warn(message, UserWarning, stacklevel=5)
    return kept


def _evaluated_on(source: _Source) -> set[str]:
    """Return the prompts of a source's own validation and test splits, of those that there are."""
    found: set[str] = set()
    for split in ("validation", "test"):
        with suppress(FileNotFoundError, ValueError):  # ValueError: what `datasets` says of a split that there is not
            found |= _keys(source.tables(split))
    return found


def _chosen(tables: Sequence[RowPrompts], belongs: Callable[[str], bool] = lambda key: True) -> list[PromptView]:
    return [PromptView(table, np.array([i for i, key in enumerate(table.rows.map(_key)) if belongs(key)], np.int64)) for table in tables]


def _keys(tables: Sequence[RowPrompts]) -> set[str]:
    return {key for table in tables for key in table.rows.map(_key)}


def _key(row: Any) -> str:
    """Return the prompt of a row as it is in the file, for a template may write the date into it; a lone message of a user as its text."""
    value = row.get("prompt") if isinstance(row, Mapping) else row
    if is_chat(value) and len(value) == 1 and value[0]["role"] == "user":
        value = value[0]["content"]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
