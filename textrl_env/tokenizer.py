"""Tokenizers: the protocol the environment needs, and two implementations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .utils.never_copied import NeverCopied


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids; every id is in [0, vocab_size)."""
        ...

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends a text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        ...

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each id sequence, special tokens left out and a leading space kept."""
        ...


class FileTokenizer(NeverCopied):
    """A tokenizer in the `tokenizer.json` format of Hugging Face `tokenizers`.

    Args:
        path: The JSON file, or a folder that holds `tokenizer.json`.
        eos_token: The token that ends a text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be parsed, or `eos_token` is not in its vocabulary.
    """

    def __init__(self, path: str | Path, eos_token: str = "<eos>") -> None:
        from tokenizers import Tokenizer as Backend  # 30 ms that `import textrl_env` need not pay

        self.path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no tokenizer file at {self.path}")
        try:
            self.backend = Backend.from_file(str(self.path))
        except Exception as error:  # the Rust side raises a bare Exception
            raise ValueError(f"{self.path} is not a tokenizer.json that `tokenizers` can read: {error}") from error
        self.eos_token = eos_token
        eos = self.backend.token_to_id(eos_token)
        if eos is None:
            raise ValueError(f"{self.path} has no token {eos_token!r}: name its end-of-text token with eos_token=")
        self.eos_token_id = int(eos)
        self.vocab_size = int(self.backend.get_vocab_size())
        self._anchor, self._anchor_length = self._find_anchor()

    @property
    def is_byte_level(self) -> bool:
        """Whether tokens spell bytes, so that what a token adds to a text never depends on its neighbours."""
        return self.has_decoder("ByteLevel")

    def has_decoder(self, kind: str) -> bool:
        """Return whether the file's decoder is of this kind, or has a step of it."""
        return f'"type":"{kind}"' in json.dumps(json.loads(self.backend.to_str())["decoder"], separators=(",", ":"))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that decoding leaves out."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each id sequence, special tokens left out and a leading space kept."""
        rows = [[*self._anchor, *map(int, row)] for row in ids]
        return [text[self._anchor_length :] for text in self.backend.decode_batch(rows, skip_special_tokens=True)]

    def _find_anchor(self) -> tuple[list[int], int]:
        """Return a token to decode behind, and the length of its text: many decoders drop the space that a text begins with.

        No token, if the file's decoder drops nothing: byte-level ones.
        """
        if self.is_byte_level:
            return [], 0
        for i in range(self.vocab_size):
            text = self.backend.decode([i], skip_special_tokens=True)
            if text.isascii() and text.isalpha():  # SentencePiece's bytes and lone spaces would join what follows
                return [i], len(text)
        return [], 0


def check_same_tokens(source: Any, tokenizer: Tokenizer, what: str = "model") -> None:
    """Insist that a model was trained on a tokenizer's ids, as far as its folder says: by the `tokenizer.json` in it, if there is one.

    Args:
        source: Folder of the model, or plain data with the folder as `weights`; anything else says nothing.
        tokenizer: Whose ids the model will be given.
        what: What the model is, for the message.

    Raises:
        ValueError: An id stands for different tokens; the message names the first.
    """
    folder = source.get("weights") if isinstance(source, Mapping) else source
    if not isinstance(folder, (str, Path)) or not (Path(folder) / "tokenizer.json").is_file():
        return
    from tokenizers import Tokenizer as Backend

    theirs = Backend.from_file(str(Path(folder) / "tokenizer.json"))
    own = tokenizer.backend if isinstance(tokenizer, FileTokenizer) else None
    for i in range(max(theirs.get_vocab_size(), tokenizer.vocab_size)):
        there, here = theirs.id_to_token(i), own.id_to_token(i) if own else None
        if own is None and i < tokenizer.vocab_size and there is not None:  # no spelling of its own: the texts are compared
            there, here = theirs.decode([i]).strip(), tokenizer.decode_batch([[i]])[0].strip()
            here = there if i == tokenizer.eos_token_id else here  # decoding leaves it out
        if there != here:
            raise ValueError(
                f"{what} {folder} has a tokenizer.json of its own, in which id {i} is {there!r}; in the task it is {here!r}: make the task "
                f"with tokenizer=FileTokenizer({str(folder)!r}), or take a model that was trained on the task's tokens"
            )


class IntegerTokenizer:
    """Token ids written as decimal numbers: for tasks whose tokens have no spelling.

    `"3 1 4"` is the text of ids (3, 1, 4).

    Args:
        vocab_size: Number of token ids, at least 2.
        eos_token_id: The id that ends a text.

    Raises:
        ValueError: `eos_token_id` is not in [0, vocab_size), or a text holds something else than such numbers.
    """

    def __init__(self, vocab_size: int, eos_token_id: int = 0) -> None:
        if vocab_size < 2 or not 0 <= eos_token_id < vocab_size:
            raise ValueError(f"vocab_size={vocab_size}, eos_token_id={eos_token_id}: need at least 2 ids and 0 <= eos < vocab_size")
        self.vocab_size = vocab_size
        self.eos_token_id = eos_token_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers in each text."""
        rows = []
        for text in texts:
            words = text.split()
            if not all(word.isdecimal() for word in words):
                wrong = next(word for word in words if not word.isdecimal())
                raise ValueError(
                    f"text {text[:80]!r} holds {wrong!r}: an IntegerTokenizer reads token ids, such as '3 1 4'; for words take a "
                    "WordTokenizer or a FileTokenizer"
                )
            rows.append([int(word) for word in words])
        for row, text in zip(rows, texts, strict=True):
            if row and not (min(row) >= 0 and max(row) < self.vocab_size):
                raise ValueError(f"text {text!r} holds an id outside [0, {self.vocab_size})")
        return rows

    def decode_batch(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Write each id sequence as numbers, each after a space, the end-of-text id left out."""
        return ["".join(f" {int(i)}" for i in row if i != self.eos_token_id) for row in ids]


class WordTokenizer(NeverCopied):
    """A closed vocabulary of words: for tasks whose texts come from a grammar.  Needs no file and no `tokenizers`.

    Id 0 is the end of text, `words[i]` has id i + 1.  `" to be"` is the text of two words: each follows a space.

    Args:
        words: The vocabulary; no word is empty, holds white space, or appears twice.

    Raises:
        ValueError: The words are not as they should be, or a text holds another word.
    """

    vocab_size: int
    eos_token_id = 0

    def __init__(self, words: Iterable[str]) -> None:
        self.words = ("<eos>", *words)
        self.vocab_size = len(self.words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        for word in self.words:
            if word.split() != [word]:
                raise ValueError(f"word {word!r}: a word is not empty and holds no white space")
        if len(self._ids) != self.vocab_size:
            twice = next(word for i, word in enumerate(self.words) if self._ids[word] != i)
            raise ValueError(f"word {twice!r} is there twice (or is '<eos>', which ends a text)")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the words in each text."""
        return [[self._id(word, text) for word in text.split()] for text in texts]

    def decode_batch(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Write the words of each id sequence, each after a space, the end-of-text id left out."""
        return ["".join(f" {self.words[i]}" for i in row if i) for row in ids]

    def _id(self, word: str, text: str) -> int:
        token = self._ids.get(word)
        if token is None:
            raise ValueError(f"text {text[:80]!r} holds {word!r}, which is none of the {self.vocab_size - 1} words of this tokenizer")
        return token
