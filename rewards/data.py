"""Preference data: which of two responses to a prompt was preferred, or how several were ranked.

What is written here appears whole or not at all, a reward model's folder (`new_folder`) like a file of preferences.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison.

    `prompt + chosen` and `prompt + rejected` are the whole texts: a response keeps its leading space.

    Attributes:
        prompt: What both responses answer; may be empty.
        chosen: The preferred response.
        rejected: The other one.
        label: Probability that `chosen` is the better one, in [0.5, 1]; 0.5 is a tie.
        margin: By how much it is better, >= 0, on the scale of the reward; see `bradley_terry_loss`.
        annotator: Who compared.
        group: What the accuracy is broken down by, such as the topic or the kind of annotator.
        metadata: Further columns.
    """

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
    def is_tie(self) -> bool:
        """Whether neither response was preferred."""
        return self.label == 0.5

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


@contextmanager
def new_file(path: str | Path) -> Iterator[IO[str]]:
    """Give a text file to write into; it takes the name `path` if the block ends well, else it vanishes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # a byte tokenizer can leave half a character, which UTF-8 cannot hold
        with open(temporary, "w", encoding="utf-8", newline="\n", errors="backslashreplace") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write into; it takes the name `path` if the block ends well, else it vanishes.

    What bore the name before is moved aside first and deleted last, so that no crash can lose both.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = temporary.with_suffix(".old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _as_row(preference: Preference) -> dict[str, Any]:
    row = {"prompt": preference.prompt, "chosen": preference.chosen, "rejected": preference.rejected}
    said = {
        "label": None if preference.label == 1 else preference.label,
        "margin": preference.margin or None,
        "annotator": preference.annotator,
        "group": preference.group,
    }
    return {**preference.metadata, **row, **{key: value for key, value in said.items() if value is not None}}
