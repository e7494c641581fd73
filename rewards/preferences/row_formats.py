"""The forms that preferences come in: from one row of a file to comparisons or to a ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NoReturn

from textrl_env.utils.row_files import RowError

from .preference import KNOWN, Preference, Ranking
from .text_ratings import has_text_ratings
from .transcripts import has_turns, invite, split_transcripts

_WORDS = {"tie": 0.5, "tied": 0.5, "equal": 0.5, "same": 0.5, "both": 0.5, "neither": 0.5, "chosen": 1.0, "rejected": 0.0}
Row = Mapping[str, Any]


def form_of(row: Row) -> str:
    """Return the name of the form that a row has: pair, two transcripts, conversations, ranking or ratings."""
    if has_text_ratings(row):
        return "ratings of texts"
    if "responses" in row:
        return "ranking" if row.get("ratings") is None else "ratings"
    if isinstance(row.get("chosen"), list) or isinstance(row.get("prompt"), list):
        return "conversations"
    return "pair" if "prompt" in row else "two transcripts"


def is_answer_set(row: Row) -> bool:
    """Return whether a row has lists of answers, which are texts; lists of messages are conversations."""
    return all(isinstance(row.get(side), list) and all(isinstance(text, str) for text in row[side]) for side in ("chosen", "rejected"))


def preferences_of(row: Row) -> list[Preference]:
    """Return the comparisons in a row, one of a pair and one for every two responses of a ranking or of ratings.

    Equal ranks or ratings, and equal responses, are ties; a label below 0.5 swaps the responses.

    Raises:
        RowError: A column is missing, has the wrong type or a value out of range.
    """
    if is_answer_set(row):
        raise RowError(
            "it has lists of right and wrong answers: read_answer_sets reads them, `reward report --reward` judges by them", "lists"
        )
    shared = _shared_columns(row)
    if "responses" not in row:
        prompt, (chosen, rejected) = _texts(row, [_column(row, "chosen"), _column(row, "rejected")])
        label, margin = _label(row), _number(row, "margin", 0.0, 0.0, math.inf)
        return [_preference(prompt, chosen, rejected, label, margin, shared)]
    prompt, responses = _texts(row, _responses(row))
    keys = _order_keys(row, len(responses))
    pairs = []
    for i, j in combinations(range(len(responses)), 2):
        label = 0.5 if keys[i] == keys[j] else float(keys[i] < keys[j])
        pairs.append(_preference(prompt, responses[i], responses[j], label, 0.0, shared))
    return pairs


def ranking_of(row: Row) -> Ranking:
    """Return the responses of a row from best to worst; a pair is a ranking of two.

    Raises:
        RowError: As of `preferences_of`; or there are ties, which a ranking cannot hold.
    """
    if "responses" not in row:
        (pair,) = preferences_of(row)
        if not pair.is_tie and pair.label < 1:
            raise RowError(f"the label {pair.label:g} is a probability: a ranking has none, read_preferences keeps it", "soft labels")
        prompt, responses, keys = pair.prompt, [pair.chosen, pair.rejected], [0.0, float(not pair.is_tie)]
    else:
        prompt, responses = _texts(row, _responses(row))
        keys = _order_keys(row, len(responses))
    if len(set(keys)) < len(keys):
        raise RowError("two responses are equally good: a ranking has no ties, read_preferences keeps them", "ties in a ranking")
    order = sorted(range(len(responses)), key=keys.__getitem__)
    return Ranking(prompt, tuple(responses[i] for i in order), **_shared_columns(row))


def _preference(prompt: str, first: str, second: str, label: float, margin: float, shared: dict[str, Any]) -> Preference:
    if first == second:  # nothing to choose between, whatever was chosen
        label, margin = 0.5, 0.0
    if label < 0.5:
        first, second, label = second, first, 1 - label
    return Preference(prompt, first, second, label, margin, **shared)


def _texts(row: Row, answers: Sequence[Any]) -> tuple[str, list[str]]:
    """Return the prompt and the answers as text, however they are given."""
    prompt = row.get("prompt")
    try:
        if any(isinstance(answer, list) for answer in answers) or isinstance(prompt, list):
            return _clean(*split_transcripts([_conversation(prompt, answer) for answer in answers]))
    except ValueError as error:
        raise RowError(str(error), "a message that cannot be read") from error
    if "prompt" not in row:
        return _clean(*split_transcripts(answers))
    prompt = _column(row, "prompt")
    if has_turns(prompt) and all(answer.startswith(prompt) for answer in answers):  # the answers repeat the conversation
        return _clean(*split_transcripts(answers))
    return _clean(prompt, answers)


def _conversation(prompt: Any, answer: Any) -> str:
    """Return prompt and answer as one transcript; an answer may be text, messages, or messages that repeat the prompt."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else prompt or []
    if isinstance(answer, str):
        gap = " " if answer and not answer[0].isspace() else ""
        return f"{invite(before)}{gap}{answer}"
    repeats = answer[: len(before)] == before or (isinstance(prompt, str) and before[0] in answer)
    return invite(answer if repeats else [*before, *answer])


def _clean(prompt: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    return _whole(prompt), [_whole(answer) for answer in answers]


def _whole(text: str) -> str:
    r"""Replace lone surrogates: JSON may hold half of a character (`"\ud83d"`), and no tokenizer takes it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not _encodes(text) else text


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _column(row: Row, key: str) -> Any:
    if key not in row:
        raise RowError(f"the key {key!r} is missing; it has {sorted(row)}", f"no {key!r}")
    if not isinstance(row[key], str | list):
        _refuse(row, key, "a string, or a list of messages")
    return row[key]


def _responses(row: Row) -> list[Any]:
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str | list) for r in responses):
        _refuse(row, "responses", "a list of at least 2 texts")
    return responses


def _order_keys(row: Row, count: int) -> list[float]:
    """Return a number for each response, lower for better ones."""
    for key, sign in (("ratings", -1.0), ("ranks", 1.0)):
        values = row.get(key)
        if values is not None:
            if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
                _refuse(row, key, f"a list of {count} numbers, one for each response")
            return [sign * value for value in values]
    return [float(i) for i in range(count)]


def _label(row: Row) -> float:
    key = "label" if row.get("label") not in (None, "") else "preference"
    value = row.get(key)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    return _number(row, key, 1.0, 0.0, 1.0, f", or one of {', '.join(_WORDS)}")


def _number(row: Row, key: str, default: float, low: float, high: float, other: str = "") -> float:
    value = row.get(key)
    if value in (None, ""):
        return default
    try:
        number = float(value)  # CSV holds text
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high or math.isinf(number):
        _refuse(row, key, f"a number in [{low:g}, {high:g}]{other}")
    return number


def _shared_columns(row: Row) -> dict[str, Any]:
    names = {key: None if row.get(key) in (None, "") else str(row[key]) for key in ("annotator", "group")}
    return {**names, "metadata": {key: value for key, value in row.items() if key not in KNOWN}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(row: Row, key: str, wanted: str) -> NoReturn:
    value = row[key]
    shown = repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
    raise RowError(f"{key!r} is {shown} ({type(value).__name__}); it must be {wanted}", f"{key!r} is not {wanted}")
