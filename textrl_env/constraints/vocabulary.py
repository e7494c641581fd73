"""The bytes that each token adds to a text."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..tokenizer import FileTokenizer, Tokenizer


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
        self.closing = np.array([self.eos_token_id]) if closing is None else closing

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; empty for tokens that add nothing.

        Raises:
            ValueError: A token's text depends on its neighbours, so that no mask can follow the text token by token.
        """
        if isinstance(self.tokenizer, FileTokenizer) and self.tokenizer.is_byte_level:
            special = self.tokenizer.special_ids
            characters = _characters_of_bytes()
            spellings = (self.tokenizer.backend.id_to_token(i) or "" for i in range(self.size))
            return [b"" if i in special else bytes(characters[c] for c in text) for i, text in enumerate(spellings)]
        return self._from_decoding()

    @cached_property
    def ids(self) -> dict[bytes, list[int]]:
        """Ids of each spelling; tokens that add nothing are left out."""
        found: dict[bytes, list[int]] = {}
        for token, spelling in enumerate(self.token_bytes):
            if spelling:
                found.setdefault(spelling, []).append(token)
        return found

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

    def _from_decoding(self) -> list[bytes]:
        """Decode each token behind another one, for decoders that treat the beginning of a text differently."""
        anchor = next(i for i in range(self.size) if i != self.eos_token_id and self.tokenizer.decode_batch([[i]])[0])
        before = self.tokenizer.decode_batch([[anchor]])[0]
        pairs = self.tokenizer.decode_batch([[anchor, i] for i in range(self.size)])
        spellings = [pair[len(before) :] for pair in pairs]
        sample = [i for i in range(self.size) if i != self.eos_token_id][:64]
        if self.tokenizer.decode_batch([[anchor, *sample]])[0] != before + "".join(spellings[i] for i in sample):
            raise ValueError(
                f"{type(self.tokenizer).__name__} spells a token differently among other tokens: constraints on the text need a "
                "byte-level tokenizer, or one whose decoding is plain concatenation"
            )
        return [spelling.encode() for spelling in spellings]


def _characters_of_bytes() -> dict[str, int]:
    """Return the byte behind each character of a byte-level vocabulary (Radford et al. 2019, GPT-2)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable bytes stand for themselves
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(rest)}
