"""Regular expressions, JSON schemas and grammars over the text of a turn, compiled by llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..task import Prompt
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Regex:
    """The whole turn must match a regular expression (Rust syntax: no look-around, no back-references).

    A response begins where the prompt ends, so it mostly begins with a space: write it into the pattern.
    """

    pattern: str

    def bind(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """Return the constraint on the tokens of `vocabulary`."""
        return CompiledGrammar("regex", self.pattern, vocabulary)


@dataclass(frozen=True)
class JSONSchema:
    """The whole turn must be JSON text that a schema accepts; white space is free, as JSON has it."""

    schema: Mapping[str, Any] | str

    def bind(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """Return the constraint on the tokens of `vocabulary`."""
        schema = self.schema if isinstance(self.schema, str) else json.dumps(self.schema)
        return CompiledGrammar("json_schema", schema, vocabulary)


@dataclass(frozen=True)
class Grammar:
    """The whole turn must be a sentence of a context-free grammar in llguidance's variant of Lark."""

    lark: str

    def bind(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """Return the constraint on the tokens of `vocabulary`."""
        return CompiledGrammar("lark", self.lark, vocabulary)


class CompiledGrammar:
    """A grammar over the vocabulary.

    End-of-text is legal exactly where the text so far is a whole match; any tokens that spell a match may be written.
    Legal means that the text can go on in bytes: a vocabulary without a token for every byte may not have the tokens to.

    Raises:
        ImportError: llguidance is not installed.
        ValueError: The grammar cannot be compiled.
    """

    def __init__(self, kind: str, source: str, vocabulary: Vocabulary) -> None:
        self.kind, self.source, self.vocabulary = kind, source, vocabulary
        self._compile()

    def _compile(self) -> None:
        try:
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise ImportError(f"a {self.kind} constraint needs llguidance: pip install 'textrl[constraints]'") from error
        words = LLTokenizer(TokenizerWrapper(_Words(self.vocabulary)), n_vocab=self.vocabulary.size, eos_token=self.vocabulary.eos_token_id)
        self.matcher = LLMatcher(words, LLMatcher.grammar_from_lark(self._lark()), log_level=0)
        if self.matcher.is_error():
            raise ValueError(f"{self.kind} {self.source!r} cannot be compiled: {_first_line(self.matcher.get_error())}")

    def _lark(self) -> str:
        # Without no_forcing, llguidance tokenizes forced text itself and forbids every other spelling of it.
        option = '%llguidance {"no_forcing": true}\n'
        if self.kind == "regex":
            pattern = re.sub(r"(\\.)|/", lambda found: found[1] or "\\/", self.source.replace("\n", "\\n"), flags=re.DOTALL)
            return f"{option}start: /{pattern}/"
        return option + (f"start: %json {self.source}" if self.kind == "json_schema" else self.source)

    def start(self, prompt: Prompt) -> MatcherState:
        """Return the state of an empty turn."""
        return MatcherState(self, self.matcher.deep_copy(), ())

    def advance(self, state: MatcherState, token: int) -> MatcherState:
        """Return the state after one more legal token."""
        if token != self.vocabulary.eos_token_id:
            state.matcher.consume_token(token)
            if state.matcher.is_error():
                raise RuntimeError(f"token {token} after {state.tokens}: {_first_line(state.matcher.get_error())}")
        return MatcherState(self, state.matcher, (*state.tokens, token))

    def mask(self, state: MatcherState) -> np.ndarray:
        """Return which tokens may come next."""
        if state.matcher.is_stopped():  # a whole match that nothing can follow
            mask = np.zeros(self.vocabulary.size, bool)
            mask[self.vocabulary.eos_token_id] = True
            return mask
        bits = np.frombuffer(state.matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self.vocabulary.size].astype(bool)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled: it is no plain data."""
        return {"kind": self.kind, "source": self.source, "vocabulary": self.vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile anew."""
        self.__dict__.update(state)
        self._compile()

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGrammar:
        """Return itself: it never changes."""
        return self


class MatcherState:
    """Where a text is in a grammar; copies and pickles by the tokens that led there."""

    def __init__(self, grammar: CompiledGrammar, matcher: Any, tokens: tuple[int, ...]) -> None:
        self.grammar, self.matcher, self.tokens = grammar, matcher, tokens

    def __reduce__(self) -> tuple[Callable[..., MatcherState], tuple[CompiledGrammar, tuple[int, ...]]]:
        """Replay the tokens."""
        return _replay, (self.grammar, self.tokens)


def _replay(grammar: CompiledGrammar, tokens: tuple[int, ...]) -> MatcherState:
    state = MatcherState(grammar, grammar.matcher.deep_copy(), ())
    for token in tokens:
        state = grammar.advance(state, token)
    return state


class _Words:
    """The vocabulary in the form that llguidance asks for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.eos_token_id = vocabulary.eos_token_id
        self.bos_token_id = None
        nameless = [i for i, spelling in enumerate(vocabulary.token_bytes) if not spelling]
        # A token that adds nothing to the text is never legal, end-of-text excepted; llguidance wants a name for each.
        self.special_token_ids = sorted({*nameless, self.eos_token_id})
        self.tokens = [spelling or f"<special {i}>".encode() for i, spelling in enumerate(vocabulary.token_bytes)]

    def __call__(self, text: bytes | str) -> list[int]:
        return self.vocabulary.greedy(text.encode() if isinstance(text, str) else text)


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0]
