"""Control tokens in texts: what a person types is characters, even where it spells `</s>`; a chat template's are tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

Spans = Sequence[tuple[int, int]]


class ControlTokens:
    """A backend of `tokenizers` as this package encodes with it: nothing is padded, cut or added, and control tokens are told from text.

    Control tokens are the special tokens of the file, and the ends of text unless they are plain words.

    Args:
        backend: A `tokenizers.Tokenizer`; its padding and truncation are switched off.
        ends: Spellings of the tokens that end a text.
    """

    def __init__(self, backend: Any, ends: Iterable[str] = ()) -> None:
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.ids: dict[str, int] = special | {end: backend.token_to_id(end) for end in ends if not end.isalnum()}
        spellings = "|".join(re.escape(text) for text in sorted(self.ids, key=len, reverse=True) if len(text) > 1)
        self._spelled = re.compile(f"({spellings})") if spellings else None
        self._begins = re.compile(f"(?={spellings})") if spellings else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; no control token comes out of what it spells."""
        self.backend.encode_special_tokens = True
        rows = [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]
        if self._spelled is not None:
            for number, text in enumerate(texts):
                typed = {self.ids[spelling] for spelling in self._spelled.findall(text)}
                if not typed.isdisjoint(rows[number]):  # a piece of the model's own vocabulary, or an added token that is not special
                    rows[number] = self._letter_by_letter(text)
        return rows

    def spelled_in(self, text: str) -> bool:
        """Return whether a text spells a control token."""
        return self._spelled is not None and self._spelled.search(text) is not None

    def encode_template(self, text: str, typed: Spans) -> list[int]:
        """Return the ids of a text that a template wrote: its control tokens are tokens, those in the spans `typed` are text.

        Where a span spells no control token of this vocabulary, such as `[1]` or `<div>`, the text is encoded as any other is.  Else what
        lies between control tokens is encoded by itself, which a tokenizer may begin otherwise.
        """
        found = [] if self._spelled is None else list(self._spelled.finditer(text))
        own = [token for token in found if not any(start < token.end() and token.start() < end for start, end in typed)]
        if len(own) == len(found):
            self.backend.encode_special_tokens = False
            return self.backend.encode(text, add_special_tokens=False).ids
        ids, done = [], 0
        for token in own:
            ids += [*self.encode([text[done : token.start()]])[0], self.ids[token[0]]]
            done = token.end()
        return ids + self.encode([text[done:]])[0]

    def _letter_by_letter(self, text: str) -> list[int]:
        """Encode as the backend does, but with every control token cut behind its first letter, so that no piece of the text is one."""
        assert self._begins is not None
        backend = self.backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text] if backend.pre_tokenizer is None else [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        ids = []
        for piece in pieces:
            cuts = [0, *(found.start() + 1 for found in self._begins.finditer(piece)), len(piece)]
            for start, end in itertools.pairwise(cuts):
                ids += [token.id for token in backend.model.tokenize(piece[start:end])] if end > start else []
        return ids


def surroundings(backend: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a backend's post-processor puts before every text and behind it, such as a beginning-of-text token."""
    if backend.post_processor is None:
        return [], []
    for word in ("a", *sorted(backend.get_vocab(with_added_tokens=False), key=len)[:50]):
        try:
            plain, whole = (backend.encode(word, add_special_tokens=added).ids for added in (False, True))
        except Exception:  # a word that this vocabulary lacks: the Rust side raises a bare Exception
            continue
        starts = [i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain]
        if starts:
            return whole[: starts[0]], whole[starts[0] + len(plain) :]
    return [], []
