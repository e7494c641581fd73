"""The protocol of constraints, and how they compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..prompts.prompt import Prompt
from ..tokenizer import Tokenizer
from ..utils.suggestions import did_you_mean
from .grammar import Grammar, JSONSchema, Regex
from .one_of import OneOf
from .tokens import AllowedTokens, BannedTokens, MinNewTokens
from .vocabulary import Vocabulary


class BoundConstraint(Protocol):
    """A constraint on the tokens of one tokenizer.  Masks have shape (V,), bool, True = legal; they are shared and read-only."""

    def start(self, prompt: Prompt) -> Any:
        """Return the state of an empty turn."""
        ...

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more legal token; `state` stays as it is."""
        ...

    def mask(self, state: Any) -> np.ndarray:
        """Return which tokens may come next."""
        ...


@runtime_checkable
class Constraint(Protocol):
    """Plain data that says what may be written; `bind` gives it a vocabulary."""

    def bind(self, vocabulary: Vocabulary) -> BoundConstraint:
        """Return the constraint on the tokens of `vocabulary`."""
        ...


_KINDS: dict[str, Callable[[Any], Constraint]] = {
    "allowed_tokens": AllowedTokens,
    "banned_tokens": BannedTokens,
    "min_new_tokens": MinNewTokens,
    "regex": Regex,
    "json_schema": JSONSchema,
    "grammar": Grammar,
    "one_of": OneOf,
}


def as_constraint(spec: Any, tokenizer: Tokenizer, min_new_tokens: int = 0, closing: np.ndarray | None = None) -> BoundConstraint | None:
    """Bind whatever a task holds as `constraint`.

    Args:
        spec: None, a `Constraint`, a dict such as `{"regex": " yes| no", "min_new_tokens": 1}`, or a list of these; all must
            hold.  If they leave no token, end-of-text alone is legal, for an agent must be able to act.
        tokenizer: The task's.
        min_new_tokens: Shortest turn.
        closing: Ids that end a turn.

    Returns:
        The bound constraint; None if everything is legal.

    Raises:
        TypeError: `spec` is none of these.
        ValueError: An unknown kind of constraint, or one that cannot be compiled.
    """
    parts = _parts(spec)
    if min_new_tokens:
        parts.append(MinNewTokens(min_new_tokens))
    if not parts:
        return None
    return All(*parts).bind(Vocabulary(tokenizer, closing))


def _parts(spec: Any) -> list[Constraint]:
    if spec is None:
        return []
    if isinstance(spec, Mapping):
        for kind in spec:
            if kind not in _KINDS:
                raise ValueError(f"no constraint is called {kind!r}{did_you_mean(str(kind), _KINDS)}; known: {', '.join(_KINDS)}")
        return [_KINDS[kind](value) for kind, value in spec.items()]
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return [part for item in spec for part in _parts(item)]
    if isinstance(spec, Constraint) and not isinstance(spec, type):
        return [spec]
    raise TypeError(f"constraint={spec!r} is a {type(spec).__name__}: pass a Constraint, a dict like {{'regex': ...}}, or a list of them")


class All:
    """Several constraints, all of which must hold.

    Each looks at its own text alone: where two of them leave no token between them, end-of-text alone is legal, and the text
    that ends there matches neither as a whole.
    """

    def __init__(self, *parts: Constraint) -> None:
        self.parts = parts

    def bind(self, vocabulary: Vocabulary) -> _All:
        """Return the constraint on the tokens of `vocabulary`."""
        return _All([part.bind(vocabulary) for part in self.parts], vocabulary.eos_token_ids)


class _All:
    """The conjunction of bound constraints; its state is the list of theirs."""

    def __init__(self, parts: list[BoundConstraint], eos_token_ids: list[int]) -> None:
        self.parts, self.eos_token_ids = parts, eos_token_ids

    def start(self, prompt: Prompt) -> list[Any]:
        return [part.start(prompt) for part in self.parts]

    def advance(self, states: list[Any], token: int) -> list[Any]:
        return [part.advance(state, token) for part, state in zip(self.parts, states, strict=True)]

    def mask(self, states: list[Any]) -> np.ndarray:
        masks = [part.mask(state) for part, state in zip(self.parts, states, strict=True)]
        mask = np.logical_and.reduce(masks) if len(masks) > 1 else masks[0]  # (V,)
        if not mask.any():
            mask = mask.copy()
            mask[self.eos_token_ids] = True
        mask.setflags(write=False)
        return mask
