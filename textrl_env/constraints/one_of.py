"""A list of texts, one of which must be written."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..prompts.prompt import Prompt
from .vocabulary import Vocabulary

_Range = tuple[int, int, int]  # sorted texts [low, high) that agree with the `depth` bytes written so far


@dataclass(frozen=True)
class OneOf:
    """The turn must be one of these texts, in any tokens that spell it; end-of-text is legal after a whole one."""

    texts: Sequence[str]

    def bind(self, vocabulary: Vocabulary) -> PrefixTree:
        """Return the constraint on the tokens of `vocabulary`.

        Raises:
            ValueError: There are no texts, or the tokens cannot spell one.
        """
        if isinstance(self.texts, str) or not self.texts:
            raise ValueError(f"one_of={self.texts!r}: pass a list of at least one text")
        return PrefixTree(sorted({text.encode() for text in self.texts}), vocabulary)


class PrefixTree:
    """The sorted texts as a tree of prefixes: a state is the range of texts below a node, and the node's depth in bytes."""

    def __init__(self, texts: list[bytes], vocabulary: Vocabulary) -> None:
        self.texts, self.vocabulary = texts, vocabulary
        self.longest = max(map(len, vocabulary.ids))
        self._masks: dict[_Range, np.ndarray] = {}
        for text in texts:
            if not self._spellable(text):
                raise ValueError(f"no tokens of the vocabulary spell {text.decode()!r}: check its leading space")

    def start(self, prompt: Prompt) -> _Range:
        """Return the root."""
        return 0, len(self.texts), 0

    def advance(self, state: _Range, token: int) -> _Range:
        """Return the node below."""
        low, high, depth = state
        prefix = self.texts[low][:depth] + self.vocabulary.token_bytes[token]
        low = bisect_left(self.texts, prefix, low, high)
        return low, bisect_left(self.texts, prefix + b"\xff", low, high), len(prefix)  # no UTF-8 text holds the byte FF

    def mask(self, state: _Range) -> np.ndarray:
        """Return which tokens may come next."""
        if state not in self._masks:
            low, high, depth = state
            mask = np.zeros(self.vocabulary.size, bool)
            for rest in {text[depth : depth + self.longest] for text in self.texts[low:high]}:
                for length in range(1, len(rest) + 1):
                    mask[[t for t in self.vocabulary.ids.get(rest[:length], ()) if self._leads_on(state, t)]] = True
            mask[self.vocabulary.eos_token_ids] = low < high and len(self.texts[low]) == depth  # the shortest sorts first
            mask.setflags(write=False)
            self._masks[state] = mask
        return self._masks[state]

    def _leads_on(self, state: _Range, token: int) -> bool:
        low, high, depth = self.advance(state, token)
        return any(self._spellable(text[depth:]) for text in self.texts[low:high])

    def _spellable(self, text: bytes) -> bool:
        """Return whether tokens exist that spell `text`, looking at the ends of all prefixes in turn."""
        reached = [True] + [False] * len(text)
        for start in range(len(text)):
            if reached[start]:
                for length in range(1, min(self.longest, len(text) - start) + 1):
                    reached[start + length] |= text[start : start + length] in self.vocabulary.ids
        return reached[-1]
