"""A study: a folder with its settings, its database, and the key file beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from textrl_env.utils.files import new_file

Kind = Literal["pair", "rating", "ranking", "spans", "demonstration"]
KINDS: tuple[Kind, ...] = ("pair", "rating", "ranking", "spans", "demonstration")
SCALE = 5  # of ratings: 1 to 5
LOOK = Path(__file__).parent / "static" / "look.css"  # the style of the page, the reports and the site


@dataclass(frozen=True)
class Study:
    """What annotators are asked, and how answers are collected.

    Attributes:
        name: Shown at the top of each page.
        kind: `pair` compares two responses; `rating` judges one; `ranking` orders several; `spans` flags words of one; `demonstration`
            writes or edits one.
        question: Asked above the responses; empty takes the kind's own, in the annotator's language.
        guideline: Text shown beside every question.
        criteria: What else is rated from 1 to 5, for each response.
        flags: What words may be flagged as, for `spans`.
        overlap: Answers wanted for each item, from different annotators.
        repeat_share: Share of assignments that repeat an item the annotator answered at least 5 answers before, in [0, 0.5].
        gold_share: Share of assignments that are gold questions, in [0, 0.5].
        language: `en` or `zh`: the page's, unless an annotator chooses another.
        scrub: Take e-mail addresses, phone, card and account numbers, IP addresses and URLs out of everything before it is stored.
        retention_days: Delete reasons and log entries older than this; None keeps them.
        database: SQLAlchemy's URL; None is SQLite in the study's folder.
        seed: Of orders and draws.

    Raises:
        ValueError: A setting is out of range.
    """

    name: str = "study"
    kind: Kind = "pair"
    question: str = ""
    guideline: str = ""
    criteria: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("wrong", "rude", "unclear")
    overlap: int = 1
    repeat_share: float = 0.05
    gold_share: float = 0.05
    language: Literal["en", "zh"] = "en"
    scrub: bool = True
    retention_days: float | None = None
    database: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not one of {', '.join(KINDS)}")
        if self.language not in ("en", "zh"):
            raise ValueError(f"language={self.language!r} is neither 'en' nor 'zh'")
        if self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: each item needs at least 1 answer")
        if not (0 <= self.repeat_share <= 0.5 and 0 <= self.gold_share <= 0.5):
            raise ValueError(f"repeat_share={self.repeat_share}, gold_share={self.gold_share}: both must be in [0, 0.5]")
        if self.retention_days is not None and not self.retention_days > 0:
            raise ValueError(f"retention_days={self.retention_days} must be positive, or None to keep everything")
        if self.kind == "spans" and not self.flags:
            raise ValueError("flags=(): a study of spans needs at least one name for what is flagged")

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read `study.yaml`.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It has unknown settings, or values out of range.
        """
        path = folder / "study.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: `textrl feedback create {folder}` makes a study")
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{path}: unknown settings {', '.join(unknown)}")
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**plain)

    def save(self, folder: Path) -> None:
        """Write `study.yaml`."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}
        with new_file(folder / "study.yaml") as file:
            yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)


def key_file(folder: Path) -> Path:
    """Return where a study's keys lie: beside its folder, so that a copy of the folder is of no use without them."""
    return folder.resolve().with_name(f"{folder.resolve().name}.keys.json")
