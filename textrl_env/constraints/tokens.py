"""Constraints on tokens, whatever they spell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..prompts.prompt import Prompt
from ..tokenizer import id_of
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class AllowedTokens:
    """Only these tokens, given as ids or spellings, and end-of-text."""

    tokens: Sequence[int | str]

    def bind(self, vocabulary: Vocabulary) -> FixedMask:
        """Return the constraint on the tokens of `vocabulary`."""
        return FixedMask(_among([*_ids(self.tokens, vocabulary), *vocabulary.eos_token_ids], vocabulary))


@dataclass(frozen=True)
class BannedTokens:
    """None of these tokens, given as ids or spellings."""

    tokens: Sequence[int | str]

    def bind(self, vocabulary: Vocabulary) -> FixedMask:
        """Return the constraint on the tokens of `vocabulary`."""
        return FixedMask(~_among(_ids(self.tokens, vocabulary), vocabulary))


@dataclass(frozen=True)
class MinNewTokens:
    """No end-of-text and no stop token before `number` tokens of the turn were written."""

    number: int

    def bind(self, vocabulary: Vocabulary) -> MinimumLength:
        """Return the constraint on the tokens of `vocabulary`."""
        if isinstance(self.number, bool) or not isinstance(self.number, int | np.integer):
            raise TypeError(f"min_new_tokens={self.number!r} is a {type(self.number).__name__}: pass an integer")
        if self.number < 0:
            raise ValueError(f"min_new_tokens={self.number}: must not be negative")
        return MinimumLength(self.number, vocabulary)


class FixedMask:
    """The same mask in every state."""

    def __init__(self, mask: np.ndarray) -> None:
        mask.setflags(write=False)
        self._mask = mask

    def start(self, prompt: Prompt) -> None:
        """Return the only state."""

    def advance(self, state: None, token: int) -> None:
        """Return the only state."""

    def mask(self, state: None) -> np.ndarray:
        """Return which tokens may come next."""
        return self._mask


class MinimumLength:
    """The state is the number of tokens written."""

    def __init__(self, number: int, vocabulary: Vocabulary) -> None:
        self.number = number
        self.free = np.ones(vocabulary.size, bool)
        self.short = self.free.copy()
        self.short[vocabulary.closing] = False
        self.free.setflags(write=False)
        self.short.setflags(write=False)

    def start(self, prompt: Prompt) -> int:
        """Return the state of an empty turn."""
        return 0

    def advance(self, state: int, token: int) -> int:
        """Return the state after one more token."""
        return state + 1

    def mask(self, state: int) -> np.ndarray:
        """Return which tokens may come next."""
        return self.short if state < self.number else self.free


def _among(ids: list[int], vocabulary: Vocabulary) -> np.ndarray:
    """Return which tokens are listed, shape (V,), bool."""
    return np.isin(np.arange(vocabulary.size), ids)


def _ids(tokens: Sequence[int | str], vocabulary: Vocabulary) -> list[int]:
    if isinstance(tokens, str | bytes):
        raise TypeError(f"tokens={tokens!r} is a {type(tokens).__name__}: pass a list of ids or spellings")
    ids = []
    for token in tokens:
        found = id_of(vocabulary.tokenizer, token)
        if found is None:
            raise ValueError(f"{token!r} is not one token of the vocabulary [0, {vocabulary.size})")
        ids.append(found)
    return ids
