"""Where prompts come from: files, lists and Hugging Face datasets, as sequences that are read lazily."""

from __future__ import annotations

import hashlib
import math
import operator
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeGuard, overload

import numpy as np

from ..chat import Spans, render
from ..utils.never_copied import NeverCopied
from ..utils.row_files import RowError, Rows, excerpt, quoted
from .prompt import Prompt
from .row_sources import ListRows, rows_of

Template = Callable[[Sequence[Mapping[str, Any]]], str]

_TAKEN = ("prompts", "completions", "references")  # arguments of a reward function that are not metadata
_THIRDS = MappingProxyType({"train": 0.8, "validation": 0.1, "test": 0.1})


def read_prompts(
    source: Any,
    *,
    prompt: str = "prompt",
    references: str | Sequence[str] = (),
    template: Template | None = None,
    chat: bool = False,
    columns: str | Sequence[str] | None = None,
    format: str | None = None,
) -> RowPrompts:
    """Return the prompts of a source of rows; files and datasets are read a row at a time, when a row is asked for.

    The first row is checked at once, a list whole; any other row when it is read.  `for _ in prompts: pass` checks all.

    Args:
        source: A path (`.jsonl` or `.json`: one object a line, or an array; `.csv` or `.tsv` with a header; `.parquet`; `.txt`: one
            prompt a line; any but `.parquet` may be gzip, with `.gz` behind), a list of texts, dicts or `Prompt`, a Hugging Face
            dataset, or `"hf:ID"` or `"hf:ID:SPLIT"` (the split is `train` if none is named).
        prompt: The column with the prompt: a text, or messages (`role`, `content`) for `template`.
        references: Columns with texts to compare responses with: each a text, a list of them, or empty.
        template: Renders messages as text, see `chat_template`.
        chat: A prompt that is a text is what a user says, and goes through the template as one message.
        columns: Columns that become metadata; None takes all others.
        format: `"csv"`, `"tsv"`, `"json"`, `"jsonl"`, `"parquet"` or `"txt"`, if the suffix does not say it.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The source needs pyarrow or datasets, which is not installed.
        TypeError: The source is none of these.
        ValueError: The source is empty or malformed, changed after it was indexed, or a row holds no usable prompt; the
            message names the file and the line.
    """
    if chat and template is None:
        raise ValueError("chat=True: pass the template that a user's message goes through, template=chat_template(tokenizer_folder)")
    schema = _Schema(prompt, _names(references), None if columns is None else _names(columns), template, chat)
    return RowPrompts(rows_of(source, format, schema.needed), schema)


def split_prompts(prompts: Sequence[Prompt], fractions: Mapping[str, float] = _THIRDS, seed: int = 0) -> dict[str, Sequence[Prompt]]:
    """Split prompts into parts that share no prompt text; each part is a lazy view.

    A hash of seed and prompt text decides the part.  Unlike a permutation of the rows, it puts rows with the same text
    into the same part, so that no test prompt is trained on, and rows that are added later move no old one.  The price:
    sizes match the fractions on average only, and a part of few prompts may come out empty.

    Args:
        prompts: What to split; every prompt is read once, one at a time.
        fractions: The share of each part, above 0, with sum 1; the order of the parts matters, as the seed does.
        seed: Another seed gives another split.

    Raises:
        ValueError: The fractions are not positive, or do not add up to 1.
    """
    shares = list(fractions.values())
    if not all(share > 0 for share in shares) or not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-9):
        raise ValueError(f"fractions={dict(fractions)}: each must be above 0, and their sum 1, not {math.fsum(shares):.6g}")
    edges = np.cumsum(shares)[:-1].tolist()  # the last part takes the rest, whatever the sum is rounded to
    members = [array("q") for _ in shares]
    for index, row in enumerate(prompts):
        members[bisect_right(edges, _unit_hash(row.text, seed))].append(index)
    return {name: PromptView(prompts, np.array(rows, np.int64)) for name, rows in zip(fractions, members, strict=True)}


def split_of_text(text: str) -> str:
    """Return the part of the default `split_prompts` that a text belongs to: `"train"`, `"validation"` or `"test"`."""
    return list(_THIRDS)[bisect_right(np.cumsum(list(_THIRDS.values()))[:-1].tolist(), _unit_hash(text, 0))]


def deal_texts(texts: Iterable[str]) -> dict[str, str]:
    """Return the part that each text belongs to, by `split_of_text`; where none is a test text, the one that is nearest to it becomes it.

    Of two collections, one within the other, no text that trains in one is a test text of the other.
    """
    dealt = {text: split_of_text(text) for text in texts}
    if dealt and "test" not in dealt.values():
        dealt[max(dealt, key=lambda text: _unit_hash(text, 0))] = "test"
    return dealt


class LazyPrompts(NeverCopied, Sequence[Prompt]):
    """Prompts that are made when they are asked for, and never change."""

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptView: ...

    def __getitem__(self, index: int | slice) -> Prompt | PromptView:
        """Return a prompt, or a view of a range of them."""
        if isinstance(index, slice):
            return PromptView(self, np.arange(len(self), dtype=np.int64)[index])
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"prompt {position} of {len(self)}")
        return self._at(position % len(self))

    @abstractmethod
    def _at(self, index: int) -> Prompt: ...


class GeneratedPrompts(LazyPrompts):
    """Prompts that a function writes: row i is always the same, for its generator is seeded with (seed, i).

    Args:
        function: Given a `numpy.random.Generator`, returns a `Prompt` or a text.
        number: N, how many rows there are.
        seed: Another seed gives other prompts.
    """

    def __init__(self, function: Callable[[np.random.Generator], Prompt | str], number: int = 1_000_000, seed: int = 0) -> None:
        if number < 1:
            raise ValueError(f"number={number}: need at least 1 prompt")
        self.function, self.number, self.seed = function, number, seed

    def __len__(self) -> int:
        return self.number

    def _at(self, index: int) -> Prompt:
        made = self.function(np.random.default_rng([self.seed, index]))
        prompt = Prompt(made) if isinstance(made, str) else made
        if not isinstance(prompt, Prompt):
            raise TypeError(f"the prompt function returned {made!r} for row {index}: it must return a Prompt or a text")
        return prompt


class PromptView(LazyPrompts):
    """Some rows of other prompts.

    Args:
        prompts: The prompts that are viewed.
        indices: Which of them, shape (N,), int64.
    """

    def __init__(self, prompts: Sequence[Prompt], indices: np.ndarray) -> None:
        self.prompts = prompts
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def _at(self, index: int) -> Prompt:
        return self.prompts[int(self.indices[index])]


class RowPrompts(LazyPrompts):
    """The prompts in rows of data."""

    def __init__(self, rows: Rows, schema: _Schema) -> None:
        self.rows = rows
        self.schema = schema
        if not len(rows):
            raise ValueError(f"{rows.name} holds no prompts")
        for index in range(len(rows) if isinstance(rows, ListRows) else 1):
            self._at(index)  # a wrong column name shows now, not in the middle of training

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Prompt]:
        return self.rows.map(self.schema.prompt_of)  # opens the file once, not once a row

    def _at(self, index: int) -> Prompt:
        return next(self.rows.map(self.schema.prompt_of, [index]))


@dataclass(frozen=True)
class _Schema:
    """Which columns of a row mean what."""

    prompt: str
    references: tuple[str, ...]
    columns: tuple[str, ...] | None
    template: Template | None
    chat: bool

    @property
    def needed(self) -> tuple[str, ...] | None:
        """Columns that must be read; None is all."""
        return None if self.columns is None else (self.prompt, *self.references, *self.columns)

    def prompt_of(self, row: Any) -> Prompt:
        """Return the prompt in a row, or raise `RowError`."""
        if isinstance(row, Prompt):
            _check_text(row.text, "the prompt")
            return row
        if isinstance(row, str):
            row = {self.prompt: row}
        if not isinstance(row, Mapping):
            raise RowError(f"a row is a text, a dict or a Prompt, not {type(row).__name__}")
        asked = (self.prompt, *self.references, *(self.columns or ()))
        missing = [name for name in asked if name not in row]
        if missing:
            raise RowError(
                f"no column {quoted(missing)}; the row has {quoted(row)}: name its columns with prompt=, references= and columns="
            )
        names = [name for name in row if name not in asked] if self.columns is None else self.columns
        for name in set(names).intersection(_TAKEN):
            raise RowError(
                f"column {name!r} would be hidden from reward functions: use references= or rename it, or list columns= without it"
            )
        references = tuple(text for name in self.references for text in _references(row[name], name))
        text, typed = self._text(row[self.prompt])
        return Prompt(text, references, {name: row[name] for name in names}, typed)

    def _text(self, value: Any) -> tuple[str, Spans | None]:
        """Return a prompt's text, and of a rendered one where people typed special tokens."""
        typed: Spans | None = None
        if self.chat and isinstance(value, str):
            _check_text(value, f"column {self.prompt!r}")
            value = [{"role": "user", "content": value}]
        if is_chat(value):
            if self.template is None:
                raise RowError(f"column {self.prompt!r} holds messages: pass template=chat_template(tokenizer_folder) to render them")
            try:
                value, typed = render(self.template, value)
            except Exception as error:  # a stranger's code; it fails with the row's place, never silently
                raise RowError(f"the template failed: {type(error).__name__}: {error}") from error
        elif self.template is not None and isinstance(value, str):
            raise RowError(f"column {self.prompt!r} is a text, but template= renders messages: pass chat=True, or leave it out")
        _check_text(value, f"column {self.prompt!r}")
        return value, typed


def is_chat(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Return whether a prompt is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in value)


def _references(value: Any, name: str) -> Sequence[str]:
    if value is None or (isinstance(value, str) and not value):  # an empty cell of a CSV file
        return ()
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise RowError(f"references {name!r} are {excerpt(repr(value))}: a text or a list of texts is needed")
    return texts


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str):
        raise RowError(f"{name} is {excerpt(repr(text))} ({type(text).__name__}): a text is needed, or a list of messages")
    if not text.strip():
        raise RowError(f"{name} is empty: a policy needs something to start from")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair; no tokenizer takes it
        raise RowError(f"{name} holds half a character, \\u{ord(text[error.start]):04x}, at position {error.start + 1}") from error


def _unit_hash(text: str, seed: int) -> float:
    """Return a number in [0, 1) that only text and seed decide, on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
