r"""Reward models that check an answer: exact match, multiple choice, JSON, Python's syntax; numbers stand in `numeric`."""

from __future__ import annotations

import ast
import json
import re
import string
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from textrl_env.episode import Episode

from ..utils.optional_imports import needed
from .base import Rule
from .numeric import last_boxed
from .references import ReferenceRule

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# The words in front of a letter that deny it, as in "is definitely not", "can't be the correct option", "neither A nor"
_DENIAL = re.compile(
    r"""(?ix) (?: \b(?:not|cannot|never|neither|nor) | n['\u2019]t )
    (?:\s+(?:be|been|have|possibly|necessarily|the|correct|right|answer|option|choice|letter|\w\s+n?or))* [\s({\[*"']* \Z"""
)
_LONGEST = 20_000  # characters: in more, Python 3.10 can be made to crash by nesting (python/cpython#95185)
# Limits on nesting of our own: Python's depend on how deep its caller stands, and on torch.compile, which raises one for the whole process
_DEEPEST_JSON = 64  # a validator of schemas takes some ten calls a level, of the 1,000 that Python allows
_DEEPEST_CODE = 500
_JSON_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)  # a string, up to the end if it has none, or a bracket
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatchReward(ReferenceRule):
    """1.0 where the response is one of the references, else 0.0; white space around either does not count.

    Args:
        normalise: Compare as SQuAD does (Rajpurkar et al. 2016): in lower case, without ASCII punctuation, without the articles a, an
            and the, and with single spaces.
    """

    name = "exact_match"

    def __init__(self, normalise: bool = False) -> None:
        self.normalise = normalise

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        form = normalised if self.normalise else str.strip
        return float(form(response) in {form(reference) for reference in references})

    def __repr__(self) -> str:
        return f"ExactMatchReward({'normalise=True' if self.normalise else ''})"


def normalised(text: str) -> str:
    """Return a text as SQuAD's evaluation compares it, see `ExactMatchReward`."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class ChoiceReward(ReferenceRule):
    r"""1.0 where the letter that the response chooses is that of a reference, else 0.0.

    The chosen letter is, by the first of these rules that finds one: the one in the last `\boxed{...}`; the one after the last
    "answer is", "answer:" or "answer ="; the same after "option" or "choice"; the whole response, or its beginning as in "(b)" or
    "B. Paris"; the last capital letter that stands alone, where "A dog" and "I think" are words.  A letter behind "not", "cannot be" or
    the like, or of which the text goes on to say that it is wrong or cannot be, is not chosen.  References are read in the same way.

    Args:
        letters: The letters to choose from.

    Raises:
        ValueError: `letters` are fewer than two, not letters, or not all different.
    """

    name = "choice"

    def __init__(self, letters: str = "ABCD") -> None:
        if not isinstance(letters, str) or len(letters) < 2 or len(set(letters.upper())) < len(letters) or not letters.isalpha():
            raise ValueError(f"letters={letters!r}: give at least two different letters, such as 'ABCD'")
        self.letters = letters.upper()
        either, capital = f"[{self.letters}{self.letters.lower()}]", f"[{self.letters}]"
        open_, close, word = r"[\s({\[*\"']*", r"(?![\w'])", r"(?!(?<=[AI])\s+[a-z])"  # word: not an article or pronoun
        self._boxed = re.compile(rf"(?:\\text\w*)?{open_}({either}){close}")
        wrong = (  # in the same sentence, as in "C is clearly wrong" or "C can't be it"
            r"(?![^\w.!?]*(?i:(?:is|was|are|seems|looks)\s+(?:\w+ly\s+)?(?:wrong|incorrect|false|not|out)\b"
            r"|(?:can|could)\s?not\b|(?:is|was|ca|could)n['\u2019]t\b))"
        )
        is_ = r"\b[*\"']*(?:\s+is\b|\s*[:=])*(?:\s+(?:option|choice)\b)?:?)"
        letter = rf"{open_}({capital}{close}{word}|{either}(?=[)\].]|\W*\Z)){wrong}"
        self._said = [re.compile(rf"(?i:\b(?:{of}){is_}{letter}") for of in ("answer", "option|choice")]
        self._first = re.compile(rf"\W*({either})\W*\Z|{open_}({either})[\])}}*\"']*[.:)]|\W*[(\[]({either})[)\]]")
        self._alone = re.compile(rf"(?<![\w'\u2019])({capital}){close}{word}{wrong}")

    def _compare(self, response: str, references: tuple[str, ...]) -> float:
        wanted = {self._required(reference) for reference in references}
        return float(self.find(response) in wanted)

    def find(self, text: str) -> str | None:
        """Return the letter that a text chooses, in upper case, or None."""
        boxed = last_boxed(text)
        if boxed is not None:
            match = self._boxed.match(boxed)
        else:
            answer, option = (_last(said, text) for said in self._said)
            match = answer or option or self._first.match(text) or _last(self._alone, text)
        return None if match is None else next(group for group in match.groups() if group).upper()

    def _required(self, reference: str) -> str:
        letter = self.find(reference)
        if letter is None:
            raise ValueError(f"choice finds none of the letters {self.letters} in the reference {reference[:100]!r}: give the right letter")
        return letter


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return the last match whose letter, its only group, is not denied by what stands before it."""
    last = None
    for match in pattern.finditer(text):
        if not _DENIAL.search(text, max(0, match.start(1) - 100), match.start(1)):
            last = match
    return last


class JsonReward(Rule):
    """1.0 where the whole response is valid JSON, and fits the schema if there is one, else 0.0.

    White space around it is allowed; NaN and Infinity are not (RFC 8259).  JSON of more than 64 levels scores 0.

    Args:
        schema: A JSON schema as plain data, draft 2020-12 unless its `$schema` says another; needs jsonschema.  References to other
            documents are not followed.

    Raises:
        TypeError: `schema` is not a dict.
        ValueError: `schema` is no valid schema.
        ImportError: jsonschema is not installed.
    """

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self.schema = schema
        self._validator = None if schema is None else _validator(schema)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 1.0 for each response that is valid, else 0.0."""
        return [float(self._fits(e.response)) for e in episodes]

    def _fits(self, text: str) -> bool:
        if max(accumulate((part in "[{") - (part in "]}") for part in _JSON_PARTS.findall(text)), default=0) > _DEEPEST_JSON:
            return False
        try:
            value = json.loads(text, parse_constant=_refuse)
        except ValueError:
            return False
        return self._validator is None or _is_valid(self._validator, value)

    def __reduce__(self) -> Any:
        return JsonReward, (self.schema,)  # validators cannot be pickled

    def __repr__(self) -> str:
        return f"JsonReward({'' if self.schema is None else f'schema={dict(self.schema)}'})"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _validator(schema: Mapping[str, Any]) -> Any:
    if not isinstance(schema, Mapping):
        raise TypeError(f"schema={schema!r} is a {type(schema).__name__}: give a JSON schema as a dict")
    jsonschema, referencing = (needed(module, "json with a schema") for module in ("jsonschema", "referencing"))
    schema = dict(schema)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        validator = kind(schema, registry=referencing.Registry())  # an empty registry: nothing is fetched
        _is_valid(validator, None)
    except jsonschema.SchemaError as error:
        raise ValueError(f"schema={schema!r} is not a JSON schema: {error.message}") from error
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"schema={schema!r} refers to {error.ref!r}, which is not in it") from error
    return validator


def _is_valid(validator: Any, value: Any) -> bool:
    try:
        return bool(validator.is_valid(value))
    except RecursionError as error:
        raise ValueError(f"schema={validator.schema!r} refers to itself without end") from error


class PythonSyntaxReward(Rule):
    """1.0 where the whole response is Python that parses and holds at least one statement, else 0.0.  Nothing is run.

    The grammar is that of the running interpreter.  White space before the first statement is allowed, since responses keep their
    leading space; comments alone score 0, and so does code longer than 20,000 characters or nested deeper than 500 levels of the syntax
    tree (or 200 brackets, which is Python's limit).  A single word is valid Python.
    """

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 1.0 for each response that parses, else 0.0."""
        return [float(_parses(e.response.lstrip())) for e in episodes]


def _parses(code: str) -> bool:
    if len(code) > _LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd escapes and the like
            tree = ast.parse(code)
    # ValueError: null bytes and lone surrogates; the last two: the parser's limits on nesting
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    level: list[ast.AST] = list(tree.body)
    for _ in range(_DEEPEST_CODE):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(tree.body) and not level
