"""Readers of public corpora: each turns a file or folder into rows, plain dicts with the columns that its task asks for."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...prompts.reader import split_of_text
from ...prompts.row_sources import rows_of
from ...utils.tables import TABLES
from .split_files import Row, deal, named_split, parallel_files, split_files

Columns = Mapping[str, str] | None  # the task's name of a column -> the table's
_TABLES = tuple(f".{kind}{end}" for end in ("", ".gz") for kind in TABLES)
_LABELS = {"0": 0, "negative": 0, "neg": 0, "false": 0, "1": 1, "positive": 1, "pos": 1, "true": 1}


def table(path: str, split: str, needed: Sequence[str], columns: Columns = None) -> list[Row]:
    """Read rows with named columns from JSON Lines, CSV, Parquet, or `hf:ID`.

    Args:
        path: A file, a folder that holds one named after the split, or a dataset of the hub.
        split: `"train"`, `"validation"` or `"test"`.  Where a table is the whole corpus, rows of equal value in the first needed column
            stay in one split.
        needed: Columns that every row must have; `"text|review"` is the first of these that is there, and called `text`.
        columns: The table's own name of a column, where it has another.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row lacks a column; the message names file, row and what it has.
    """
    if path.startswith("hf:"):
        return _rows(f"{path}:{split}", needed, columns)
    files, whole = split_files(path, split, _TABLES)
    rows = [row for file in files for row in _rows(file, needed, columns)]
    return deal(rows, split, needed[0].partition("|")[0]) if whole else rows


def _rows(source: str | Path, needed: Sequence[str], columns: Columns) -> list[Row]:
    rows, named = rows_of(source, None, None), dict(columns or {})
    wanted = {name.partition("|")[0]: name.split("|") for name in needed}
    wanted |= {ours: [theirs] for ours, theirs in named.items()}
    checked = []
    with rows.opened() as read:
        for index in range(len(rows)):
            row = read(index)
            row = row if isinstance(row, dict) else {}
            there = {ours: next((name for name in names if name in row), None) for ours, names in wanted.items()}
            missing = [" or ".join(wanted[ours]) for ours, name in there.items() if name is None]
            if missing:
                raise ValueError(
                    f"{rows.where(index)} has no {' and no '.join(missing)} (it has {', '.join(row) or 'no columns'}): is this the right "
                    f"file?  A column of another name is given as columns={{{next(iter(wanted))!r}: 'its name'}}"
                )
            checked.append({**row, **{ours: row[name] for ours, name in there.items() if name is not None}})
    return checked


def imdb(path: str, split: str, columns: Columns = None) -> list[Row]:
    """Read film reviews with `text` and `label` (1 is positive): the folders of aclImdb, or a table.

    A table has `text` and `label`, or `review` and `sentiment`; labels are 0 and 1, or `negative` and `positive`.  Where there is no
    validation split, a tenth of the training reviews is it, by a hash of the text.
    """
    base, needed = Path(path), ("text|review", "label|sentiment")
    files = base.rglob("*") if base.is_dir() else [base]
    own = split == "test" or any(file.suffix.lower() in _TABLES and named_split(file) == "validation" for file in files)
    if (base / "train" / "pos").is_dir():
        rows, whole = _review_files(base / ("test" if split == "test" else "train")), False
    elif path.startswith("hf:"):
        rows, whole = _rows(f"{path}:{'test' if split == 'test' else 'train'}", needed, columns), False
    else:
        tables, whole = split_files(path, split if own else "train", _TABLES)
        rows = [row for file in tables for row in _rows(file, needed, columns)]
    rows = [_review(row) for row in rows]
    if whole:
        return deal(rows, split, "text")
    return rows if own else [row for row in rows if (split_of_text(row["text"]) == "validation") == (split == "validation")]


def _review_files(folder: Path) -> list[Row]:
    files = [(file, kind) for kind in ("neg", "pos") for file in sorted((folder / kind).glob("*.txt"))]
    if not files:
        raise FileNotFoundError(f"{folder} holds no pos/*.txt and no neg/*.txt")
    return [{"text": file.read_text(encoding="utf-8"), "label": kind} for file, kind in files]


def _review(row: Row) -> Row:
    label = _LABELS.get(str(row["label"]).strip().lower())
    if label is None:
        raise ValueError(f"a review has the label {row['label']!r}: known are {', '.join(_LABELS)}")
    return {**row, "text": re.sub(r"(\s*<br\s*/?>)+\s*", " ", row["text"]), "label": label}


def squad(path: str, split: str, columns: Columns = None) -> list[Row]:
    """Read SQuAD 1.1 or 2.0: nested JSON, or a table; rows have `context`, `question`, and `answers`, texts, none if unanswerable."""
    files, whole = ([Path()], False) if path.startswith("hf:") else split_files(path, split, _TABLES)
    if files[0].suffix.lower() == ".json":
        rows = _nested_squad(files[0])
        return deal(rows, split, "context") if whole else rows
    rows = table(path, split, ["context", "question", "answers"], columns)
    return [{**row, "answers": _answers(row["answers"])} for row in rows]


def _answers(given: Any) -> list[str]:
    """Return texts without repetition: of the hub's form, of a list, or of one text, all that a CSV file holds."""
    texts = given["text"] if isinstance(given, dict) else [given] if isinstance(given, str) else given
    return list(dict.fromkeys(text for text in texts if text))


def _nested_squad(file: Path) -> list[Row]:
    data = _json(file)
    if not isinstance(data, dict) or "data" not in data:
        raise ValueError(f"{file} has no 'data': SQuAD's file is one object with version and data")
    paragraphs = [paragraph for article in data["data"] for paragraph in article["paragraphs"]]
    return [
        {"context": it["context"], "question": qa["question"], "answers": _answers([answer["text"] for answer in qa.get("answers", ())])}
        for it in paragraphs
        for qa in it["qas"]
    ]


def narrativeqa(path: str, split: str, columns: Columns = None) -> list[Row]:
    """Read NarrativeQA's `qaps.csv` and `summaries.csv`; rows have `summary`, `question`, `answers`."""
    if columns:
        raise ValueError(f"columns={dict(columns)!r}: NarrativeQA is read from its authors' two files, whose columns have fixed names")
    base, name = Path(path), {"validation": "valid"}.get(split, split)
    places = [file for file in (base / "summaries.csv", base / "third_party" / "wikipedia" / "summaries.csv") if file.is_file()]
    if not places or not (base / "qaps.csv").is_file():
        raise FileNotFoundError(f"{base} holds no qaps.csv beside summaries.csv or third_party/wikipedia/summaries.csv")
    summaries = {row["document_id"]: row["summary"].strip() for row in _csv(places[0], ["document_id", "summary"])}
    items = []
    for row in _csv(base / "qaps.csv", ["document_id", "set", "question", "answer1", "answer2"]):
        if row["set"] == name:
            if row["document_id"] not in summaries:
                raise ValueError(f"{base / 'qaps.csv'} asks about document {row['document_id']}, of which {places[0]} has no summary")
            answers = [row[key].strip() for key in ("answer1", "answer2") if row[key].strip()]
            items.append({"summary": summaries[row["document_id"]], "question": row["question"].strip(), "answers": answers})
    return items


def dailydialog(path: str, split: str, columns: Columns = None) -> list[Row]:
    """Read DailyDialog: lines of `__eou__`-separated utterances, or a table with `dialog`; rows have `utterances`.

    Of the authors' folders only the texts are read, not the acts, emotions and topics beside them.
    """
    base = Path(path)
    if base.suffix == ".txt" or any(base.rglob("dialogues_*.txt")):
        files, whole = split_files(path, split, (".txt",), lambda file: bool(re.match(r"dialogues(?!_(act|emotion|topic))", file.name)))
        rows = [{"utterances": _utterances(line, file)} for file in files for line in _lines(file) if line.strip()]
        return deal(rows, split, "utterances") if whole else rows
    rows = table(path, split, ["dialog|utterances"], columns)
    for index, row in enumerate(rows):
        if not isinstance(row["dialog"], list):
            raise ValueError(f"row {index} of {path} has no list of utterances: {row['dialog']!r:.60}")
        row["utterances"] = [str(part).strip() for part in row["dialog"]]
    return rows


def _utterances(line: str, file: Path) -> list[str]:
    if "__eou__" not in line:
        raise ValueError(f"{file} has a line without __eou__, the end of an utterance: {line[:60]!r}.  Is it a file of acts or emotions?")
    return [part.strip() for part in line.split("__eou__") if part.strip()]


def parallel(path: str, split: str, source: str, target: str, columns: Columns = None) -> list[Row]:
    """Read sentence pairs: two files whose names differ in the language alone, or a table with `translation`.

    The files are plain text, one sentence a line, or WMT's SGML and IWSLT's XML; IWSLT's training files have lines of tags.  Training
    files may be several, and need not be called `train` beside files that are named after another split: WMT's have their origins' names.

    Returns:
        Rows with `source` and `target`.

    Raises:
        ValueError: The two sides differ in length, or several test files may be meant.
    """
    if path.startswith("hf:") or Path(path).suffix.lower() in _TABLES or not (sides := parallel_files(path, split, source, target)):
        rows = table(path, split, ["translation"], columns)
        return [{"source": row["translation"][source], "target": row["translation"][target]} for row in rows]
    pairs, whole = sides
    rows = []
    for files in pairs:
        texts = [_sentences(file) for file in files]
        if len(texts[0]) != len(texts[1]):
            raise ValueError(f"{files[0]} has {len(texts[0])} sentences and {files[1]} {len(texts[1])}: they must be parallel")
        rows += [{"source": a, "target": b} for a, b in zip(*texts, strict=True)]
    return deal(rows, split, "source") if whole else rows


def common_gen(path: str, split: str, columns: Columns = None) -> list[Row]:
    """Read CommonGen: `concepts` and `target`, one row each, or the authors' `concept_set` and `scene`; rows have lists of both.

    The older files' parts of speech (`look_V`) are taken off the concepts.
    """
    grouped: dict[tuple[str, ...], list[str]] = {}
    for row in table(path, split, ["concepts|concept_set"], columns):
        given = row["concepts"].split("#") if isinstance(row["concepts"], str) else row["concepts"]
        scenes: str | list[str] = next((row[name] for name in ("references", "targets", "target", "scene") if row.get(name)), [])
        concepts = tuple(re.sub(r"_[A-Z]+$", "", concept) for concept in given)
        grouped.setdefault(concepts, []).extend([scenes] if isinstance(scenes, str) else scenes)
    return [{"concepts": list(concepts), "targets": list(dict.fromkeys(scenes))} for concepts, scenes in grouped.items()]


def gsm8k(path: str, split: str, columns: Columns = None) -> list[Row]:
    """Read GSM8K: `question`, and `answer` that ends in `#### number`; rows have `question`, `answer`, `number`."""
    rows = table(path, split, ["question", "answer"], columns)
    for index, row in enumerate(rows):
        _, mark, number = row["answer"].rpartition("####")
        if not mark or not re.fullmatch(r"\s*-?[\d,.]+\s*", number):
            raise ValueError(f"row {index} of {path} has an answer that does not end in '#### number': {row['answer'][-60:]!r}")
        row["number"] = number.strip().replace(",", "")
    return rows


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def _csv(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = set(needed) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it has {', '.join(reader.fieldnames or ())}")
        yield from reader


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")


def _sentences(file: Path) -> list[str]:
    if file.suffix in (".xml", ".sgm"):
        segments = re.findall(r"<seg[^>]*>(.*?)</seg>", file.read_text(encoding="utf-8-sig"), re.DOTALL | re.IGNORECASE)
        return [html.unescape(text).strip() for text in segments]
    return [line.strip() for line in _lines(file) if not (".tags." in file.name and line.startswith("<"))]
