"""Regular expressions, JSON schemas and grammars over the text of a turn, compiled by llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..prompts.prompt import Prompt
from ..utils.never_copied import NeverCopied
from ..utils.optional_imports import optional_import
from .search import EndingSearch
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Regex:
    """The whole turn must match a regular expression (Rust syntax: no look-around, no back-references).

    A response begins where the prompt ends, so it mostly begins with a space: write it into the pattern.
    """

    pattern: str

    def bind(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """Return the constraint on the tokens of `vocabulary`."""
        if not isinstance(self.pattern, str):
            raise TypeError(f"regex={self.pattern!r} is a {type(self.pattern).__name__}: pass the pattern as a string")
        return CompiledGrammar("regex", self.pattern, vocabulary)


@dataclass(frozen=True)
class JSONSchema:
    """The whole turn must be JSON text that a schema accepts; white space is free, as JSON has it."""

    schema: Mapping[str, Any] | str

    def bind(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """Return the constraint on the tokens of `vocabulary`."""
        try:
            schema = json.loads(self.schema) if isinstance(self.schema, str) else self.schema
        except ValueError as error:
            raise ValueError(f"json_schema={self.schema!r} is no JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise TypeError(f"json_schema={self.schema!r} is a {type(schema).__name__}: pass the schema as a dict or as JSON text")
        return CompiledGrammar("json_schema", json.dumps(schema), vocabulary)


@dataclass(frozen=True)
class Grammar:
    """The whole turn must be a sentence of a context-free grammar in llguidance's variant of Lark."""

    lark: str

    def bind(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """Return the constraint on the tokens of `vocabulary`."""
        return CompiledGrammar("lark", self.lark, vocabulary)


class CompiledGrammar(NeverCopied):
    """A grammar over the vocabulary.

    End-of-text is legal exactly where the text so far is a whole match; any tokens that spell a match may be written.

    llguidance asks whether a text can go on in bytes.  A vocabulary without a token for every byte may not have the tokens
    to, so there each token that llguidance allows is also tried: it is legal if tokens to a whole match are found behind it.
    Where the search for them reaches its limit undecided, the token is legal too; see `EndingSearch`.

    Raises:
        ImportError: llguidance is not installed.
        ValueError: The grammar cannot be compiled, or no tokens spell a text that matches.
    """

    def __init__(self, kind: str, source: str, vocabulary: Vocabulary) -> None:
        self.kind, self.source, self.vocabulary = kind, source, vocabulary
        self._compile()

    def _compile(self) -> None:
        with optional_import("constraints", f"a {self.kind} constraint needs llguidance"):
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        words = LLTokenizer(TokenizerWrapper(_Words(self.vocabulary)), n_vocab=self.vocabulary.size, eos_token=self.vocabulary.eos_token_id)
        self.matcher = LLMatcher(words, LLMatcher.grammar_from_lark(self._lark()), log_level=0)
        if self.matcher.is_error():
            raise ValueError(f"{self.kind} {self.source!r} cannot be compiled: {_first_line(self.matcher.get_error())}")
        if not self.mask(self.start(None)).any():
            raise ValueError(f"no tokens of the vocabulary spell a text that {self.kind} {self.source!r} matches: check its leading space")

    def _lark(self) -> str:
        # Without no_forcing, llguidance tokenizes forced text itself and forbids every other spelling of it.
        option = '%llguidance {"no_forcing": true}\n'
        if self.kind == "regex":
            raw = {"/": "\\/", "\n": "\\n"}  # these would end the pattern, or its line
            pattern = re.sub(r"(\\.)|/|\n", lambda match: match[1] or raw[match[0]], self.source)
            return f"{option}start: /{pattern}/"
        return option + (f"start: %json {self.source}" if self.kind == "json_schema" else self.source)

    def start(self, prompt: Prompt | None) -> MatcherState:
        """Return the state of an empty turn."""
        return MatcherState(self, self.matcher.deep_copy(), ())

    def advance(self, state: MatcherState, token: int) -> MatcherState:
        """Return the state after one more legal token."""
        if token in self.vocabulary.eos_token_ids:
            return state
        return MatcherState(self, self._after(state.matcher, token), (*state.tokens, token))

    def mask(self, state: MatcherState) -> np.ndarray:
        """Return which tokens may come next."""
        mask = self._allowed(state.matcher)
        if not self.vocabulary.spells_everything:
            search = EndingSearch(self._ids, self._after)
            for token in np.flatnonzero(mask).tolist():
                mask[token] = token == self.vocabulary.eos_token_id or search.can_end(self._after(state.matcher, token))
        mask[self.vocabulary.eos_token_ids] = mask[self.vocabulary.eos_token_id]  # llguidance knows of one end
        mask.setflags(write=False)
        return mask

    def _after(self, matcher: Any, token: int) -> Any:
        after = matcher.deep_copy()  # 2 us; what is expensive is shared
        after.consume_token(token)
        return _sound(after)

    def _allowed(self, matcher: Any) -> np.ndarray:
        mask = np.zeros(self.vocabulary.size, bool)
        if matcher.is_stopped():  # a whole match that nothing can follow
            mask[self.vocabulary.eos_token_id] = matcher.is_accepting()
        else:
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            mask[:] = np.unpackbits(bits, bitorder="little")[: self.vocabulary.size]
        if _sound(matcher).is_error():  # a dead end, and the bits say that end-of-text is left
            mask[:] = False
        return mask

    def _ids(self, matcher: Any) -> list[int]:
        return np.flatnonzero(self._allowed(matcher)).tolist()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled: it is no plain data."""
        return {"kind": self.kind, "source": self.source, "vocabulary": self.vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile anew."""
        self.__dict__.update(state)
        self._compile()


class MatcherState:
    """Where a text is in a grammar; never changes, and copies and pickles by the tokens that led there."""

    def __init__(self, grammar: CompiledGrammar, matcher: Any, tokens: tuple[int, ...]) -> None:
        self.grammar, self.matcher, self.tokens = grammar, matcher, tokens

    def __reduce__(self) -> tuple[Callable[..., MatcherState], tuple[CompiledGrammar, tuple[int, ...]]]:
        """Replay the tokens."""
        return _replay, (self.grammar, self.tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> MatcherState:
        """Copy the matcher: llguidance refuses to use one from two threads at once."""
        return MatcherState(self.grammar, self.matcher.deep_copy(), self.tokens)


def _replay(grammar: CompiledGrammar, tokens: tuple[int, ...]) -> MatcherState:
    state = grammar.start(None)
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


def _sound(matcher: Any) -> Any:
    """Return `matcher`; raise if a limit of llguidance was hit, for its masks would allow end-of-text anywhere after that."""
    if matcher.is_error() and not matcher.get_error().startswith("NoExtensionBias"):  # that one: no token fits, a dead end
        raise RuntimeError(f"llguidance gave up on a constraint: {_first_line(matcher.get_error())}; simplify the pattern or the grammar")
    return matcher


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0]
