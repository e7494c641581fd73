"""The tasks: which corpus, which protocol, which reward."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...prompts.prompt import Prompt
from ...task import TextTask
from ...tokenizer import FileTokenizer, Tokenizer
from ...utils.suggestions import did_you_mean
from . import formats
from .split_files import Row

Make = Callable[[Row, Tokenizer], Iterator[Prompt]]
HISTORY = 5  # utterances of a dialogue that are shown


@dataclass(frozen=True)
class CorpusTask:
    """A task on a public corpus.

    Attributes:
        asks: What the policy is to write.
        metric: What the literature reports for it.
        read: Returns the rows of (path, split).
        make: Turns a row into prompts.
        reward: Default, by name; any other can be given.
        max_new_tokens: Longest response.
        max_prompt_tokens: Longer prompts lose their beginning, or their end where `cut` is `"right"`.
        cut: Which side is lost.
        options: Further arguments of `read`, with their defaults.
    """

    asks: str
    metric: str
    read: Callable[..., list[Row]]
    make: Make
    reward: Any
    max_new_tokens: int
    max_prompt_tokens: int = 512
    cut: str = "left"
    options: Mapping[str, Any] = field(default_factory=dict)


def _half(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """RL4LMs' protocol (Ramamurthy et al. 2023): the first half of a review's words is the prompt, its rest the reference."""
    words = row["text"].split()
    half = len(words) // 2
    if half:
        yield Prompt(" ".join(words[:half]), (" ".join(words[half:]),), {"label": row["label"]})


def _prefix(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """The protocol of DPO (Rafailov et al. 2023) and of PPO on IMDB before it: the first 2 to 8 tokens are the prompt.

    How many, a hash of the review decides, so that it is the same in every run.
    """
    ids = tokenizer.encode_batch([row["text"]])[0]
    number = 2 + hashlib.sha256(row["text"].encode("utf-8", "surrogatepass")).digest()[0] % 7
    text = tokenizer.decode_batch([ids[:number]])[0] if len(ids) > number else ""
    if text.strip():
        yield Prompt(text, (), {"label": row["label"]})


def _tldr(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """The format of Stiennon et al. 2020, "Learning to summarize from human feedback", table 2."""
    head = "".join(f"{key.upper()}: {'r/' if key == 'subreddit' else ''}{row[key]}\n\n" for key in ("subreddit", "title") if row.get(key))
    yield Prompt(f"{head}POST: {row['post']}\n\nTL;DR:", (row["summary"].strip(),))


def _cnn(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    yield Prompt(f"{row['article'].strip()}\n\nTL;DR:", (row["highlights"].strip(),))


def _common_gen(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    yield Prompt(f"generate a sentence with: {' '.join(row['concepts'])}\n", tuple(row["targets"]), {"concepts": row["concepts"]})


def _translation(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    if row["source"].strip():
        yield Prompt(f"{row['source'].strip()}\n", (row["target"].strip(),))


def _squad(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    answers = tuple(row["answers"]) or ("unanswerable",)
    yield Prompt(f"{row['context'].strip()}\n\nQuestion: {row['question'].strip()}\nAnswer:", answers)


def _narrative(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    yield Prompt(f"{row['summary']}\n\nQuestion: {row['question']}\nAnswer:", tuple(row["answers"]))


def _dialog(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """Each utterance but the first is asked for, after at most five before it."""
    said = row["utterances"]
    for turn in range(1, len(said)):
        yield Prompt("\n".join(said[max(0, turn - HISTORY) : turn]) + "\n", (said[turn],))


def _gsm8k(row: Row, tokenizer: Tokenizer) -> Iterator[Prompt]:
    yield Prompt(f"Question: {row['question'].strip()}\nAnswer:", (row["number"],))


def _table(*needed: str) -> Callable[..., list[Row]]:
    return lambda path, split, columns=None: formats.table(path, split, needed, columns)


_LANGUAGES = {"source": "en", "target": "de"}
_EXACT = {"name": "exact_match", "normalise": True}
CORPORA: Mapping[str, CorpusTask] = {
    "imdb-half": CorpusTask("the second half of a film review, favourably", "sentiment", formats.imdb, _half, "vader", 48, 64),
    "imdb-prefix": CorpusTask(
        "a film review after 2 to 8 tokens, favourably", "sentiment against KL", formats.imdb, _prefix, "vader", 48, 8
    ),
    "tldr": CorpusTask("a summary of a post", "preference, ROUGE", _table("post", "summary"), _tldr, "rouge", 48),
    "cnn-dailymail": CorpusTask("the highlights of an article", "ROUGE", _table("article", "highlights"), _cnn, "rouge", 100),
    "common-gen": CorpusTask("a sentence with given words", "CIDEr, coverage", formats.common_gen, _common_gen, "cider", 20),
    "wmt": CorpusTask("a translation", "BLEU, chrF", formats.parallel, _translation, "chrf", 128, options=_LANGUAGES),
    "iwslt": CorpusTask("a translation of a talk", "BLEU, chrF", formats.parallel, _translation, "chrf", 128, options=_LANGUAGES),
    "squad": CorpusTask("the answer to a question", "exact match", formats.squad, _squad, _EXACT, 16),
    "narrativeqa": CorpusTask("the answer to a question about a story", "ROUGE-L", formats.narrativeqa, _narrative, "rouge", 32, 1024),
    "dailydialog": CorpusTask("the next utterance", "ROUGE, METEOR", formats.dailydialog, _dialog, "rouge", 32, 128),
    "gsm8k": CorpusTask("the solution of a word problem", "exact number", formats.gsm8k, _gsm8k, "numeric", 256),
}  # fmt: skip


def real_task(
    name: str,
    path: str,
    tokenizer: Any,
    split: str = "test",
    eos_token: str | Sequence[str] | None = None,
    add_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> TextTask:
    """Return a task on a public corpus.

    Args:
        name: A key of `CORPORA`.
        path: File or folder of the corpus in its authors' format, a table of JSON Lines, CSV or Parquet, or `hf:ID`.
        tokenizer: The policy's, or what `FileTokenizer` takes.
        split: `"train"`, `"validation"` or `"test"`: the corpus's own, by the names of its files.  A corpus of one file whose name says no
            split is dealt: 80, 10 and 10%, by a hash of the text that a prompt is made of.  IMDB's validation split is a tenth of train.
        eos_token: The token that ends a text, or several, see `FileTokenizer`; not for a `Tokenizer`, which knows its own.
        add_bos: Whether prompts begin with the beginning-of-text token, see `FileTokenizer`; likewise.
        columns: A table's own name of a column, where it has another: `{"post": "body"}`.
        **options: Further arguments of the reader (`source` and `target` language), or fields of `TextTask`.

    Raises:
        ValueError: The name or the split is unknown, the corpus is malformed or empty, or which file is meant is not clear.
        FileNotFoundError: The corpus is not there, or has no such split.
    """
    if name not in CORPORA:
        raise ValueError(f"no corpus is called {name!r}{did_you_mean(name, CORPORA)}; known: {', '.join(CORPORA)}, prompts")
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split={split!r}: choose 'train', 'validation' or 'test'")
    task = CORPORA[name]
    reading = {key: options.pop(key, default) for key, default in task.options.items()}
    if isinstance(tokenizer, Tokenizer) and (eos_token is not None or add_bos is not None):
        raise ValueError(f"eos_token={eos_token!r}, add_bos={add_bos}: the {type(tokenizer).__name__} says both itself; leave them out")
    own = tokenizer if isinstance(tokenizer, Tokenizer) else FileTokenizer(tokenizer, eos_token, add_bos)
    around = sum(len(getattr(own, name, ())) for name in ("bos_ids", "closing_ids"))  # beside the tokens that the protocol counts
    rows = task.read(str(path), split, columns=columns, **reading)
    prompts = tuple(prompt for row in rows for prompt in task.make(row, own))
    if not prompts:
        raise ValueError(f"{path} has no usable row for {name}, split {split}: {len(rows)} of its rows are in that split")
    settings: dict[str, Any] = {
        "max_new_tokens": task.max_new_tokens, "max_prompt_tokens": task.max_prompt_tokens + around, "over_long": task.cut,
        "reward": task.reward,
    }  # fmt: skip
    return TextTask(own, prompts, **(settings | options))
