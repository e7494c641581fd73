"""From a posted form to an answer.

The page shows responses in a random order; answers are stored by the item's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .items import Assignment
from .study import SCALE, Study

LONGEST_REASON = 5_000
LONGEST_TEXT = 100_000
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")


Form = Mapping[str, Sequence[str]]  # what a browser posts: several values may have one name


class IncompleteError(ValueError):
    """Something is missing; the message is a key of `translations.WORDS`."""


def read_answer(form: Form, shown: Assignment, study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the answer's value and words.

    Raises:
        IncompleteError: The form does not answer the question.
    """
    words = {"reason": text(form, "reason", LONGEST_REASON)}
    if first(form, "choice") == "skip":
        return {"skip": True}, {key: value for key, value in words.items() if value}
    value, more = _READERS[study.kind](form, shown, study)
    ratings = _criteria(form, shown, study)
    return {**value, **({"ratings": ratings} if ratings else {})}, {key: text for key, text in (words | more).items() if text}


def first(form: Form, name: str) -> str:
    """Return the first value of a name, or nothing."""
    return next(iter(form.get(name, ())), "")


def text(form: Form, name: str, most: int) -> str:
    """Return a text field with one kind of line end and without control characters.

    Raises:
        IncompleteError: It is too long.
    """
    value = first(form, name).replace("\r\n", "\n").replace("\r", "\n")
    if len(value) > most:
        raise IncompleteError("too_long")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", value)


def _pair(form: Form, shown: Assignment, study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    choice = first(form, "choice")
    if choice in ("a", "b"):  # the letter of the place
        return {"choice": "ab"[shown.order["ab".index(choice)]]}, {}
    if choice in ("tie", "bad"):
        return {"choice": choice}, {}
    raise IncompleteError("pair")


def _rating(form: Form, shown: Assignment, study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    rating = _number(first(form, "rating"), SCALE)
    if rating is None:
        raise IncompleteError("missing_rating")
    return {"rating": rating}, {}


def _ranking(form: Form, shown: Assignment, study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    ranks = [_number(first(form, f"rank{place}"), len(shown.order)) for place in range(len(shown.order))]
    if None in ranks or len(set(ranks)) < len(ranks):
        raise IncompleteError("missing_rank")
    best_first = sorted(range(len(ranks)), key=lambda place: ranks[place] or 0)
    return {"ranking": [shown.order[place] for place in best_first]}, {}


def _spans(form: Form, shown: Assignment, study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    places = word_places(shown.item.responses[0])
    spans: list[dict[str, Any]] = []
    for number, flag in enumerate(study.flags):
        marked = sorted({i for raw in form.get(f"flag{number}", ()) if (i := _number(raw, len(places))) is not None})
        for i in marked:
            start, end = places[i - 1]
            if spans and spans[-1]["flag"] == flag and i > 1 and spans[-1]["end"] == places[i - 2][1]:
                spans[-1]["end"] = end  # neighbours are one span
            else:
                spans.append({"flag": flag, "start": start, "end": end})
    return {"spans": spans}, {}


def _demonstration(form: Form, shown: Assignment, study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    written = text(form, "text", LONGEST_TEXT)
    if not written.strip():
        raise IncompleteError("missing_text")
    return {"written": True}, {"text": written}


def word_places(response: str) -> list[tuple[int, int]]:
    """Return beginning and end of each word, in characters; every Chinese, Japanese or Korean character is a word of its own."""
    return [match.span() for match in _WORD.finditer(response)]


def _criteria(form: Form, shown: Assignment, study: Study) -> dict[str, list[int | None]]:
    """Return ratings by criterion, one for each response; None where nothing was said."""
    ratings = {}
    for number, criterion in enumerate(study.criteria):
        given = {response: _number(first(form, f"c{number}-{place}"), SCALE) for place, response in enumerate(shown.order)}
        if any(value is not None for value in given.values()):
            ratings[criterion] = [given[i] for i in range(len(shown.order))]
    return ratings


def _number(raw: str, most: int) -> int | None:
    """Return a whole number from 1 to `most`, else None."""
    if raw.isascii() and raw.isdecimal() and len(raw) < 8 and 1 <= int(raw) <= most:
        return int(raw)
    return None


_READERS: Mapping[str, Any] = {"pair": _pair, "rating": _rating, "ranking": _ranking, "spans": _spans, "demonstration": _demonstration}
