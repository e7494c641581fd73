"""Files of preferences, in every form that `row_formats` knows, with counts of their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from textrl_env.utils.row_files import RowError
from textrl_env.utils.tables import table_rows

from .preference import Preference, Ranking
from .row_formats import form_of, preferences_of, ranking_of
from .text_ratings import NoiseCeiling, RatedText, ceiling_of, comparisons_of_ratings, has_text_ratings, rated_text

_EXAMPLES = 5


@dataclass
class PreferenceFile:
    """What a file held.

    Attributes:
        preferences: In the order of the file.
        forms: How many rows had each form, see `row_formats.form_of`.
        skipped: How many rows could not be read, by reason.
        examples: The first few of those rows, with place and fault.
        ceiling: How far people agree, of a file of rated texts.
    """

    preferences: list[Preference] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    ceiling: NoiseCeiling | None = None

    def skipped_rows(self) -> str:
        """Return how many rows could not be read, and why; empty if all could."""
        reasons = "; ".join(f"{number}: {reason}" for reason, number in self.skipped.most_common())
        return f"{self.skipped.total()} of {self.counts()['rows']} rows could not be read ({reasons})" if reasons else ""

    def counts(self) -> dict[str, int]:
        """Return how many rows and pairs there are, and how many pairs are odd in some way."""
        pairs = self.preferences
        return {
            "rows": self.forms.total() + self.skipped.total(),
            "skipped": self.skipped.total(),
            "pairs": len(pairs),
            "ties": sum(p.is_tie and not p.is_identical for p in pairs),
            "identical": sum(p.is_identical for p in pairs),
            "one_empty": sum(bool(p.chosen.strip()) != bool(p.rejected.strip()) for p in pairs),
            "no_prompt": sum(not p.prompt for p in pairs),
        }


def read_preferences(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Preference]:
    r"""Read preferences from JSON Lines or an array, from CSV with a header (`.csv`, `.tsv`; any may be gzip) or from Parquet.

    Each row has one of these forms, told by its columns:

    - `prompt`, `chosen`, `rejected`: texts.
    - `chosen`, `rejected` without `prompt`: two transcripts (`"\n\nHuman: ...\n\nAssistant: ..."`) of a conversation; the prompt
      is what they share up to the last common turn, see `transcripts.split_transcripts`.
    - The same as lists of messages (`{"role": ..., "content": ...}`), with or without `prompt`; `transcripts.render` says
      which text they become.
    - `text`, `ratings`, perhaps `prompt`: one text a row and the numbers that several people gave it; they become comparisons of small
      groups of texts with the share of people who prefer one as label, see `text_ratings.comparisons_of_ratings`.
    - `prompt`, `responses`: a list of texts, best first, or with `ranks` (lower is better) or `ratings` (higher is better): a
      pair for every two of them.

    Further columns: `label` or `preference` (the probability that `chosen` is better, or "tie", "chosen", "rejected"),
    `margin`, `annotator`, `group`; all others become metadata.  Pairs of identical responses are ties.

    Args:
        path: The file.
        columns: The file's own names of columns: `{"prompt": "instruction", "chosen": "output_1"}`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row cannot be read (the message names its line), or there is none.
    """
    return read_preference_file(path, columns).preferences


def read_preference_file(path: str | Path, columns: Mapping[str, str] | None = None, *, skip_unreadable: bool = False) -> PreferenceFile:
    """Read what `read_preferences` reads, and count what was found.

    Args:
        path: The file.
        columns: See `read_preferences`.
        skip_unreadable: Whether rows that cannot be read are skipped and counted instead of being an error.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row cannot be read, or none can.
    """
    file, rows, rated = PreferenceFile(), table_rows(path, columns), list[RatedText]()
    with rows.opened() as read:
        for index in range(len(rows)):
            try:
                row = read(index)
                if has_text_ratings(row):
                    rated.append(rated_text(row))
                else:
                    file.preferences.extend(preferences_of(row))
                file.forms[form_of(row)] += 1
            except RowError as error:
                if not skip_unreadable:
                    raise ValueError(f"{rows.where(index)}: {error}") from error
                file.skipped[error.reason] += 1
                if len(file.examples) < _EXAMPLES:
                    file.examples.append(f"{rows.where(index)}: {error}")
    if rated:
        made = comparisons_of_ratings(rated)
        file.ceiling = ceiling_of(rated, made)
        file.preferences.extend(made)
    if not file.preferences:
        problem = f"; first of {file.skipped.total()} unreadable rows: {file.examples[0]}" if file.examples else ""
        raise ValueError(f"{path} holds no preferences: write one JSON object with prompt, chosen, rejected a line{problem}")
    return file


def read_rankings(path: str | Path) -> list[Ranking]:
    """Read rows with `responses`, see `read_preferences`, as rankings; pairs are rankings of two.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row cannot be read or holds ties (the message names its line), or there is none.
    """
    rankings = list(table_rows(path).map(ranking_of))
    if not rankings:
        raise ValueError(f"{path} holds no rankings: write one JSON object with prompt and responses, best first, a line")
    return rankings
