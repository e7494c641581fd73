"""Making a study with its keys and items, writing its answers to a file, and adding answers from one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from textrl_env.utils.files import new_file
from textrl_env.utils.tables import read_rows

from ..preferences.preference import write_preferences
from .encryption import VARIABLE, Keys
from .import_export import answer_rows, answers_of, consensus_of, from_label_studio, preference_rows, rating_rows, to_label_studio
from .items import Item
from .store import FeedbackStore
from .study import Study, key_file

ExportFormat = Literal["preferences", "ratings", "answers", "label-studio"]


class CreatedStudy(NamedTuple):
    """What `create_study` did.

    Attributes:
        existed: Whether the study was there already; its settings then stayed.
        new_keys: The key file that was made; None if the keys were there.
        added: Items added.
        known: Items that were there already.
        scrubbed: How many of each kind of personal data were taken out of the texts.
    """

    existed: bool
    new_keys: Path | None
    added: int
    known: int
    scrubbed: Mapping[str, int]

    def describe(self) -> str:
        """Return what the study's owner should know."""
        lines = ["the study is there: its settings stay, items are added"] if self.existed else []
        if self.new_keys is not None:
            lines.append(f"keys: {self.new_keys}  Without it nobody can read the study: keep it, and keep it apart.")
        removed = ", ".join(f"{n} {kind}" for kind, n in self.scrubbed.items())
        lines.append(
            f"{self.added} items added, {self.known} were there already" + (f"; taken out of the texts: {removed}" if removed else "")
        )
        return "\n".join(lines)


def create_study(folder: Path, study: Study, items: Sequence[Item]) -> CreatedStudy:
    """Make the folder, the keys and the database of a study, or open the one that is there, and add the items."""
    existed, new_keys = (folder / "study.yaml").is_file(), None
    if existed:
        study = Study.load(folder)
    else:
        study.save(folder)
        if VARIABLE not in os.environ and not key_file(folder).exists():
            new_keys = key_file(folder)
            Keys.new().save(new_keys)
    store = FeedbackStore(folder, study)
    added, known, scrubbed = store.add_items(items)
    store.close()
    return CreatedStudy(existed, new_keys, added, known, scrubbed)


def export_answers(folder: Path, out: Path, form: ExportFormat = "preferences", merge: bool = False) -> int:
    """Write a study's answers to a file, no longer encrypted, and return the number of rows.

    Args:
        folder: The study's.
        out: The file.
        form: `preferences` for fitting a reward model; `ratings` of single responses; `answers` with everything; `label-studio` for Label
            Studio.
        merge: Of pairs and rankings: write one comparison each with the probability that Dawid and Skene's model gives.

    Raises:
        ValueError: The study's kind has no such form.
    """
    store = FeedbackStore(folder)
    answers = store.answers()
    rows: list[Any]
    if merge:
        if store.study.kind not in ("pair", "ranking"):
            raise ValueError(f"--consensus is for pairs and rankings; this study's kind is {store.study.kind!r}")
        rows = consensus_of(answers, store.study)
        write_preferences(out, rows)
    elif form == "label-studio":
        rows = to_label_studio(answers, store.items())
        with new_file(out) as file:
            json.dump(rows, file, ensure_ascii=False, indent=1)
    else:
        chosen = rating_rows if form == "ratings" else preference_rows
        rows = list(answer_rows(answers)) if form == "answers" else chosen(answers, store.study)
        with new_file(out) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    store.note("owner", "export", f"{len(rows)} rows as {form}")
    store.close()
    return len(rows)


def import_answers(folder: Path, file: Path) -> tuple[int, int]:
    """Add the answers of a file to a study, and return how many were added and how many were there already.

    Args:
        folder: The study's.
        file: JSON Lines of `export_answers` in the form `answers`, or a .json file of Label Studio.

    Raises:
        ValueError: The file is neither.
    """
    store = FeedbackStore(folder)
    if file.suffix == ".json":
        try:
            tasks = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        items, answers = from_label_studio(tasks)
        store.add_items(store.completed(items))
        answers = [replace(a, item=item) for a, item in zip(answers, store.completed([a.item for a in answers]), strict=True)]
    else:
        answers = answers_of(read_rows(file))
    # Names from elsewhere are not kept either; pseudonyms stay what they are
    names = {a.annotator: a.annotator if re.fullmatch(r"p-[0-9a-f]{12}", a.annotator) else store.keys.name(a.annotator) for a in answers}
    added, known = store.add_answers([replace(a, annotator=names[a.annotator]) for a in answers])
    store.close()
    return added, known
