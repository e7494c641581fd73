"""Preference data: which of two responses to a prompt was preferred, or how several were ranked.

What is written here appears whole or not at all, a reward model's folder (`new_folder`) like a file of preferences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textrl_env.utils.files import new_file

KNOWN = {  # columns that say something; all others are metadata
    "prompt", "chosen", "rejected", "responses", "ranks", "ratings", "label", "preference", "margin", "annotator", "group"
}  # fmt: skip
_DECIDED = 0.51


def words_of(text: str) -> str:
    """Return what counts of a text where it is asked whether two are the same: not case, nor white space."""
    return " ".join(text.casefold().split())


def names(source: str | Sequence[str]) -> Sequence[str]:
    """Return who wrote a text: one name, or several."""
    return [source] if isinstance(source, str) else source


def is_decided(label: Any) -> Any:
    """Return whether labels, a number or an array, favour a side: 0.51 or more.

    A consensus of people who disagree ends near one half and hardly ever at it: which side of it says nothing.
    """
    return label > _DECIDED - 1e-6  # 0.51 itself may have been rounded


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison.

    `prompt + chosen` and `prompt + rejected` are the whole texts: a response keeps its leading space.

    Attributes:
        prompt: What both responses answer; may be empty.
        chosen: The preferred response.
        rejected: The other one.
        label: Probability that `chosen` is the better one, in [0.5, 1]; below 0.51 it is a tie, see `is_decided`.
        margin: By how much it is better, >= 0, on the scale of the reward; see `bradley_terry_loss`.
        annotator: Who compared.
        group: What the accuracy is broken down by, such as the topic or the kind of annotator.
        metadata: Further columns.
    """

    __module__ = "rewards"

    prompt: str
    chosen: str
    rejected: str
    label: float = 1.0
    margin: float = 0.0
    annotator: str | None = None
    group: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0.5 <= self.label <= 1:
            raise ValueError(f"label={self.label} must be in [0.5, 1]: swap the responses if rejected is the better one")
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin={self.margin} must be at least 0 and finite")

    @property
    def columns(self) -> dict[str, Any]:
        """What comparisons can be grouped by: `group`, `annotator` and the further columns."""
        return {"group": self.group, "annotator": self.annotator, **self.metadata}

    @property
    def is_tie(self) -> bool:
        """Whether neither response was preferred, or so little that it says nothing."""
        return not is_decided(self.label)

    @property
    def is_identical(self) -> bool:
        """Whether there is nothing to choose between."""
        return self.chosen == self.rejected


@dataclass(frozen=True, slots=True)
class Ranking:
    """Several responses to a prompt, the best first.

    Attributes:
        prompt: What they answer; may be empty.
        responses: At least 2, best first, without ties.
        annotator: Who ranked.
        group: What results are broken down by.
        metadata: Further columns.
    """

    __module__ = "rewards"

    prompt: str
    responses: tuple[str, ...]
    annotator: str | None = None
    group: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.responses, str) or len(self.responses) < 2:
            raise ValueError(f"responses={self.responses!r}: a ranking needs a sequence of at least 2")


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Write JSON Lines that `read_preferences` reads back; fields that say nothing are left out.

    The file appears whole or not at all: it is written under a temporary name in the same folder, then renamed.
    """
    with new_file(path) as file:
        for preference in preferences:
            file.write(json.dumps(_as_row(preference), ensure_ascii=False) + "\n")


def _as_row(preference: Preference) -> dict[str, Any]:
    row = {"prompt": preference.prompt, "chosen": preference.chosen, "rejected": preference.rejected}
    said = {
        "label": None if preference.label == 1 else preference.label,
        "margin": preference.margin or None,
        "annotator": preference.annotator,
        "group": preference.group,
    }
    metadata = {key: value for key, value in preference.metadata.items() if key not in KNOWN}
    return {**metadata, **row, **{key: value for key, value in said.items() if value is not None}}
