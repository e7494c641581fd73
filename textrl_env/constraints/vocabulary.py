"""The bytes that each token adds to a text."""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np

from ..tokenizer import FileTokenizer, Tokenizer, ends_of

_UTF8 = {*range(0xF5)} - {0xC0, 0xC1}  # the bytes that occur in UTF-8 (RFC 3629)


class Vocabulary:
    """A tokenizer as constraints see it.

    Args:
        tokenizer: The task's.
        closing: Ids that end a turn: end-of-text and the task's stop tokens.
    """

    def __init__(self, tokenizer: Tokenizer, closing: np.ndarray | None = None) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.vocab_size
        self.eos_token_id = tokenizer.eos_token_id
        self.eos_token_ids = list(ends_of(tokenizer))
        self.closing = np.array(self.eos_token_ids) if closing is None else closing

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; empty for end-of-text and other tokens that add nothing.

        Raises:
            ValueError: A token's text depends on its neighbours, so that no mask can follow the text token by token.
        """
        byte_level = isinstance(self.tokenizer, FileTokenizer) and self.tokenizer.is_byte_level
        spellings = self._from_byte_level() if byte_level else self._from_decoding()
        for end in self.eos_token_ids:
            spellings[end] = b""
        return spellings

    @cached_property
    def ids(self) -> dict[bytes, list[int]]:
        """Ids of each spelling; tokens that add nothing are left out."""
        ids: dict[bytes, list[int]] = {}
        for token, spelling in enumerate(self.token_bytes):
            if spelling:
                ids.setdefault(spelling, []).append(token)
        return ids

    @cached_property
    def spells_everything(self) -> bool:
        """Whether every byte of UTF-8 is a token, so that every text can be finished from everywhere."""
        return all(bytes([byte]) in self.ids for byte in _UTF8)

    def greedy(self, text: bytes) -> list[int]:
        """Return tokens that spell `text` from the left, the longest one first, as far as that goes."""
        longest, tokens = max(map(len, self.ids)), []
        while text:
            for length in range(min(len(text), longest), 0, -1):
                if text[:length] in self.ids:
                    tokens.append(self.ids[text[:length]][0])
                    text = text[length:]
                    break
            else:
                break
        return tokens

    def _from_byte_level(self) -> list[bytes]:
        assert isinstance(self.tokenizer, FileTokenizer)
        special, characters = self.tokenizer.special_ids, _characters_of_bytes()
        spellings = []
        for i in range(self.size):
            text = "" if i in special else self.tokenizer.backend.id_to_token(i) or ""
            # A token added later is written as it is, in characters that need not stand for bytes.
            known = all(c in characters for c in text)
            spellings.append(bytes(characters[c] for c in text) if known else text.encode())
        return spellings

    def _from_decoding(self) -> list[bytes]:
        """Decode each token behind another one, and compare with decoding it alone and among all others."""
        raw = self._byte_fallback()
        plain = [i for i in range(self.size) if i not in self.eos_token_ids and i not in raw]
        alone = dict(zip(plain, self.tokenizer.decode_batch([[i] for i in plain]), strict=True))
        anchor = next((i for i in plain if alone[i].strip()), None)
        if anchor is None:
            raise ValueError(f"{type(self.tokenizer).__name__} has no token that spells anything: constraints on the text need one")
        before = alone[anchor]
        pairs = self.tokenizer.decode_batch([[anchor, i] for i in plain])
        behind = {i: pair[len(before) :] for i, pair in zip(plain, pairs, strict=True)}
        different = next((i for i in plain if behind[i] != alone[i]), None)
        if different is not None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} decodes token {different} as {alone[different]!r} at the start of a text and as "
                f"{behind[different]!r} behind another token: decode_batch must keep the leading space of a text"
            )
        order = np.random.default_rng(0).permutation(plain).tolist()  # all tokens once: a fixed order, but no token's own place
        if self.tokenizer.decode_batch([order])[0] != "".join(alone[i] for i in order):
            raise ValueError(
                f"{type(self.tokenizer).__name__} spells a token differently among other tokens: constraints on the text need a "
                "byte-level tokenizer, or one whose decoding is plain concatenation"
            )
        return [raw[i] if i in raw else behind.get(i, "").encode() for i in range(self.size)]

    def _byte_fallback(self) -> dict[int, bytes]:
        """Return the tokens `<0x00>` to `<0xFF>` of SentencePiece: each is one byte, and alone mostly no character."""
        if not (isinstance(self.tokenizer, FileTokenizer) and self.tokenizer.has_decoder("ByteFallback")):
            return {}
        names = {i: self.tokenizer.backend.id_to_token(i) or "" for i in range(self.size)}
        return {i: bytes([int(name[3:5], 16)]) for i, name in names.items() if re.fullmatch("<0x[0-9A-Fa-f]{2}>", name)}


def _characters_of_bytes() -> dict[str, int]:
    """Return the byte behind each character of a byte-level vocabulary (Radford et al. 2019, GPT-2)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable bytes stand for themselves
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(rest)}
