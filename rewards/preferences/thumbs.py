"""Judgements of single texts, thumbs up or down: from ratings, from comparisons, and from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textrl_env.utils.row_files import RowError
from textrl_env.utils.tables import table_rows

from .preference import Preference
from .text_ratings import RatedText, Row, has_text_ratings, rated_text


@dataclass(frozen=True, slots=True)
class Thumb:
    """A judgement of one response.

    Attributes:
        prompt: What it answers.
        response: The response, with its leading space.
        good: Probability that it is good, in [0, 1]: 1 for thumbs up, 0 for thumbs down, of several people's the share of thumbs up.
    """

    __module__ = "rewards"

    prompt: str
    response: str
    good: float

    def __post_init__(self) -> None:
        if not 0 <= self.good <= 1:
            raise ValueError(f"good={self.good} must be in [0, 1]")


def thumbs_of_ratings(rated: Sequence[RatedText], above: float | None = None) -> list[Thumb]:
    """Return a judgement of each rated text: the share of its ratings above a number, those equal to it counting half.

    Args:
        rated: The texts.
        above: The number; None: the middle between the lowest and the highest rating of all.

    Raises:
        ValueError: All ratings are equal, and nothing says what they mean.
    """
    if above is None:
        low, high = min(it.ratings.min() for it in rated), max(it.ratings.max() for it in rated)
        if low == high:
            raise ValueError(f"all ratings are {low:g}: say above which rating a text is good, above=...")
        above = float(low + high) / 2
    return [Thumb(it.prompt, it.text, float(0.5 + np.sign(it.ratings - above).mean() / 2)) for it in rated]


def thumbs_of(preferences: Sequence[Preference]) -> list[Thumb]:
    """Return two judgements of each comparison (Ethayarajh et al. 2024): the chosen text is good with its label, the rejected one without.

    Raises:
        ValueError: One has a margin, which a judgement of one text cannot hold.
    """
    if margin := next((pair.margin for pair in preferences if pair.margin), None):
        raise ValueError(f"a pair has margin={margin:g}, and judgements of single texts have none: leave margins out, or learn by DPO")
    return [
        thumb
        for pair in preferences
        for thumb in (Thumb(pair.prompt, pair.chosen, pair.label), Thumb(pair.prompt, pair.rejected, 1 - pair.label))
    ]


def read_thumbs(path: str | Path, columns: Mapping[str, str] | None = None, above: float | None = None) -> list[Thumb]:
    """Read judgements of single texts from the files that `read_preferences` reads.

    Each row has one of these forms, told by its columns:

    - `text`, `ratings`, perhaps `prompt`: a text, and what people gave it, as `textrl feedback export --format ratings` writes it.
    - `prompt`, `responses`, `ratings`: several responses, and a number for each.
    - `prompt`, `completion` or `response`, and `label` (true or false, as TRL's unpaired preferences have it) or `rating` (a number).

    Args:
        path: The file.
        columns: The file's own names of columns: `{"response": "answer"}`.
        above: See `thumbs_of_ratings`; labels need none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row cannot be read (the message names its line), there is none, or the file mixes labels and ratings.
    """
    read = list(table_rows(path, columns).map(_judged))
    if not read:
        raise ValueError(f"{path} holds no judgements: write one JSON object with prompt, response and rating or label a line")
    labels = [thumb for row in read for thumb in row if isinstance(thumb, Thumb)]
    rated = [text for row in read for text in row if isinstance(text, RatedText)]
    if labels and rated:
        raise ValueError(f"{path} holds {len(labels)} labels and {len(rated)} rated texts: what is a rating beside a label? split the file")
    return labels or thumbs_of_ratings(rated, above)


def _judged(row: Row) -> Sequence[Thumb | RatedText]:
    if has_text_ratings(row):
        return [rated_text(row)]
    if "responses" in row:
        responses, ratings = row["responses"], row.get("ratings")
        if not isinstance(responses, list) or not isinstance(ratings, list) or len(responses) != len(ratings):
            raise RowError(f"responses={responses!r:.60}, ratings={ratings!r:.60}: one rating of each is needed", "unequal lists")
        return [_rated(row, text, value) for text, value in zip(responses, ratings, strict=True)]
    response = row.get("completion", row.get("response"))
    if response is None or not ({"label", "rating"} & row.keys()):
        raise RowError(f"it has {sorted(row)}: prompt, response and rating or label are needed", "columns are missing")
    if "label" not in row:
        return [_rated(row, response, row["rating"])]
    text = _rated(row, response, 0)
    return [Thumb(text.prompt, text.text, float(_truth(row["label"])))]


def _truth(value: Any) -> bool:
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # CSV holds text; 1 and 0 equal true and false
    found = known.get(value.strip().lower() if isinstance(value, str) else value) if isinstance(value, (bool, int, float, str)) else None
    if found is None:
        raise RowError(f"label={value!r:.60}: must be true or false", "a label that is neither true nor false")
    return found


def _rated(row: Row, text: Any, rating: Any) -> RatedText:
    """Read one response and one rating, which CSV holds as text."""
    with suppress(ValueError):
        rating = float(rating) if isinstance(rating, str) else rating
    return rated_text({"prompt": row.get("prompt"), "text": text, "ratings": [rating]})
