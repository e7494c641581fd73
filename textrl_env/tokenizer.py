"""Tokenizers: the protocol the environment needs, and its implementations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .utils.control_tokens import ControlTokens, surroundings
from .utils.model_files import model_folder
from .utils.never_copied import NeverCopied
from .utils.pretrained_files import PretrainedFiles, of_words, read_tokenizer, written_files


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    One may also have `eos_token_ids`, if several tokens end a text; `bos_ids` and `closing_ids`, which prompts begin and end with;
    `unused_ids`, ids that no token has; `encode_template(text, typed)`, which encodes what a chat template wrote; and
    `pretrained_files()`, for exports.  See `FileTokenizer`.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids; every id is in [0, vocab_size)."""
        ...

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends a text, and of the one that is appended to texts to learn from."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        ...

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each id sequence, special tokens left out and a leading space kept."""
        ...


class FileTokenizer(NeverCopied):
    """A tokenizer in the `tokenizer.json` format of Hugging Face `tokenizers`.

    Special tokens that are spelled in a text are text: only a chat template's, see `Prompt.typed`, are encoded as what they are.

    Args:
        path: The JSON file, a folder that holds `tokenizer.json`, a `.gguf` file, the id of a model on the hub, a fast tokenizer of
            transformers, or a `tokenizers.Tokenizer`.
        eos_token: The token that ends a text, or several.  None: what the files beside it say, all of the `eos_token` of
            `tokenizer_config.json` and the `eos_token_id` of the model's `config.json` and `generation_config.json` (a single id counts
            where it is a special token, for architectures have defaults of their own); `<eos>` if they say nothing.
        add_bos: Whether prompts begin with the beginning-of-text token, as `bos_token` names it.  None: as the tokenizer itself does,
            by its post-processor and `add_bos_token`; one without either adds nothing.  Texts of a chat template hold their own.
        close_prompts: Whether prompts end with what the post-processor puts behind a text, such as the `</s>` of T5, BART and Marian, which
            their encoders were trained on.  None: where the model's `config.json` beside it is an encoder-decoder's.

    Attributes:
        files: What its files say; `chat_template` takes it.
        eos_token_id: The end that is appended to texts to learn from; the first of `eos_token_ids`, all of which end a text.
        bos_ids: Ids that prompts begin with.
        closing_ids: Ids that prompts end with.
        unused_ids: Ids below `vocab_size` that no token has.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: `path` is none of these.
        ValueError: The file cannot be parsed, or `eos_token` is not in its vocabulary.
    """

    def __init__(
        self, path: Any, eos_token: str | Sequence[str] | None = None, add_bos: bool | None = None, close_prompts: bool | None = None
    ) -> None:
        files = read_tokenizer(path)
        self.files, self.backend = files, files.backend
        self.path = Path(path) if isinstance(path, str | Path) else None
        ids = self.backend.get_vocab().values()
        self.vocab_size = max(ids, default=-1) + 1  # and not the number of tokens: a vocabulary may have gaps
        self.unused_ids = tuple(sorted(set(range(self.vocab_size)).difference(ids)))
        self.eos_token_ids = _ends(files, eos_token)
        self.eos_token_id = self.eos_token_ids[0]
        self.eos_token = str(self.backend.id_to_token(self.eos_token_id))
        self._controls = ControlTokens(self.backend, map(self.backend.id_to_token, self.eos_token_ids))
        self.bos_ids = self._opening(files, add_bos)
        closes = files.encoder_decoder if close_prompts is None else close_prompts
        self.closing_ids = tuple(surroundings(self.backend)[1]) if closes else ()
        self._told: dict[str, Any] = {} if add_bos is None else {"add_bos_token": add_bos}
        self._anchor, self._anchor_length = self._find_anchor()

    @classmethod
    def of(cls, tokenizer: Any) -> FileTokenizer:
        """Return a tokenizer as one in this format; see the class for what can be one."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)

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
        special = (i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)
        return frozenset((*special, *self.eos_token_ids))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens: those that are spelled in it are text."""
        return self._controls.encode(texts)

    def encode_template(self, text: str, typed: Sequence[tuple[int, int]]) -> list[int]:
        """Return the ids of a text that a chat template wrote, see `Prompt.typed`."""
        return self._controls.encode_template(text, typed)

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each id sequence, special tokens and ends of text left out and a leading space kept."""
        rows = [[*self._anchor, *(i for i in map(int, row) if i not in self.eos_token_ids)] for row in ids]
        return [text[self._anchor_length :] for text in self.backend.decode_batch(rows, skip_special_tokens=True)]

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of ids with special tokens spelled out."""
        return self.backend.decode([*self._anchor, *ids], skip_special_tokens=False)[self._anchor_length :]

    def token_id(self, spelling: str) -> int | None:
        """Return the id of a control token, given as it is spelled; None if there is no such token."""
        return self._controls.ids.get(spelling)

    def pretrained_files(self) -> dict[str, str]:
        """Return files, by name, from which `AutoTokenizer.from_pretrained` makes this tokenizer, with its first end of text."""
        return written_files(self.backend, {**self.files.config, **self._told, "eos_token": self.eos_token}, self.files.template)

    def _opening(self, files: PretrainedFiles, add_bos: bool | None) -> tuple[int, ...]:
        (opening, _), bos = surroundings(self.backend), files.token("bos_token")
        wanted = files.config.get("add_bos_token") if add_bos is None else add_bos
        token = None if bos is None else self.backend.token_to_id(bos)
        if add_bos and not opening and token is None:
            raise ValueError(f"add_bos=True: {files.name} names no bos_token, and its post-processor adds none")
        if wanted is True and not opening and token is not None:
            opening = [token]
        return () if wanted is False else tuple(opening)

    def _find_anchor(self) -> tuple[list[int], int]:
        """Return a token to decode behind, and the length of its text: many decoders drop the space that a text begins with.

        No token, if the file's decoder drops nothing: byte-level ones.
        """
        if self.is_byte_level:
            return [], 0
        for i in range(self.vocab_size):
            text = self.backend.decode([i], skip_special_tokens=True)
            # SentencePiece's bytes and lone spaces would join what follows
            if i not in self.eos_token_ids and text.isascii() and text.isalpha():
                return [i], len(text)
        return [], 0


def check_same_tokens(source: Any, tokenizer: Tokenizer, what: str = "model") -> None:
    """Insist that a model was trained on a tokenizer's ids, as far as its folder says: by the `tokenizer.json` in it, if there is one.

    Args:
        source: Folder, `.gguf` file or hub id of the model, or plain data with the folder as `weights`; anything else says nothing.
        tokenizer: Whose ids the model will be given; one that has no files (`pretrained_files`) is not compared.
        what: What the model is, for the message.

    Raises:
        ValueError: An id stands for different tokens; the message names the first.
    """
    model = source.get("weights") if isinstance(source, Mapping) else source
    if not isinstance(model, (str, Path)) or not (file := Path(model_folder(model, weights=False)) / "tokenizer.json").is_file():
        return
    from tokenizers import Tokenizer as Backend

    files = files_of(tokenizer)
    if "tokenizer.json" not in files:
        return
    theirs, own = Backend.from_file(str(file)), Backend.from_str(files["tokenizer.json"])
    for i in range(max(theirs.get_vocab_size(), own.get_vocab_size())):
        there, here = theirs.id_to_token(i), own.id_to_token(i)
        if there != here:
            raise ValueError(
                f"{what} {model} has a tokenizer.json of its own, in which id {i} is {there!r}; in the task it is {here!r}: make the task "
                f"with tokenizer=FileTokenizer({str(model)!r}), or take a model that was trained on the task's tokens"
            )


def _ends(files: PretrainedFiles, given: str | Sequence[str] | None) -> tuple[int, ...]:
    """Return the ids that end a text, as the user names them or else as the tokenizer's files do."""
    own = [] if given is not None else [token for token in [files.token("eos_token")] if token is not None]
    named = own or ([given] if isinstance(given, str) else list(given or ()))
    if not named and given is not None:
        raise ValueError("eos_token=[]: a text needs a token that ends it")
    if not named and not files.ends:
        named = ["<eos>"]
    for token in named:
        if files.backend.token_to_id(token) is None:
            raise ValueError(f"{files.name} has no token {token!r}: name its end-of-text token with eos_token=")
    found = [files.backend.token_to_id(token) for token in named]
    return tuple(dict.fromkeys(map(int, found if given is not None else [*found, *files.ends])))


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

    def pretrained_files(self) -> dict[str, str]:
        """Return files, by name, from which `AutoTokenizer.from_pretrained` makes a like tokenizer."""
        return of_words([str(i) for i in range(self.vocab_size)], {"eos_token": str(self.eos_token_id)})


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

    def pretrained_files(self) -> dict[str, str]:
        """Return files, by name, from which `AutoTokenizer.from_pretrained` makes a like tokenizer."""
        return of_words(list(self.words), {"eos_token": self.words[0]})

    def _id(self, word: str, text: str) -> int:
        token = self._ids.get(word)
        if not token:  # "<eos>" in a text is no word either: only the end of a text ends it
            raise ValueError(f"text {text[:80]!r} holds {word!r}, which is none of the {self.vocab_size - 1} words of this tokenizer")
        return token


def as_tokenizer(source: Any) -> Tokenizer:
    """Return a tokenizer of this package, of whatever stands for one.

    Args:
        source: A `Tokenizer`, or what `FileTokenizer` takes: a fast tokenizer of transformers, a folder, or a `tokenizer.json`.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: It is none of these.
        ValueError: The file cannot be parsed, or a text could not end in it.
    """
    tokenizer = source if isinstance(source, Tokenizer) else FileTokenizer(source)
    size, ends = tokenizer.vocab_size, ends_of(tokenizer)
    if not isinstance(size, int) or not all(isinstance(end, int) and 0 <= end < size for end in ends):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has vocab_size={size}, eos_token_id={list(ends) if len(ends) > 1 else ends[0]}: a text "
            "can only end with a token of the vocabulary; name its end-of-text token"
        )
    return tokenizer


def ends_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a text; the first is the one that is appended to texts to learn from."""
    return tuple(getattr(tokenizer, "eos_token_ids", None) or (tokenizer.eos_token_id,))


def id_of(tokenizer: Tokenizer, token: int | str) -> int | None:
    """Return the id of a token that is given as id or spelling, a special token's too; None if it is not one token."""
    if not isinstance(token, str):
        return int(token) if 0 <= int(token) < tokenizer.vocab_size else None
    known = tokenizer.token_id(token) if isinstance(tokenizer, FileTokenizer) else None
    ids = [known] if known is not None else tokenizer.encode_batch([token])[0]
    return ids[0] if len(ids) == 1 else None


def files_of(tokenizer: Any) -> dict[str, str]:
    """Return the files, by name, from which transformers makes the tokenizer anew; none of one that has no such files."""
    return tokenizer.pretrained_files() if hasattr(tokenizer, "pretrained_files") else {}
