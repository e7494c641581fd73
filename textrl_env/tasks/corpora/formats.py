"""Readers of public corpora: each turns a file or folder into rows, plain dicts with the columns that its task asks for."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...prompts.row_sources import rows_of

Row = dict[str, Any]
_SUFFIXES = ("jsonl", "json", "csv", "parquet")
_HUB_SPLITS = {"validation": ("validation", "dev", "val", "valid"), "test": ("test",), "train": ("train",)}


def table(path: str, split: str, needed: Sequence[str]) -> list[Row]:
    """Read rows with named columns from JSON Lines, CSV, Parquet, or `hf:ID`.

    Args:
        path: A file, a folder that holds one named after the split, or a dataset of the hub.
        split: `"train"`, `"validation"` or `"test"`.
        needed: Columns that every row must have.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row lacks a column; the message names file, row and what it has.
    """
    rows = rows_of(f"{path}:{split}" if path.startswith("hf:") else str(split_file(path, split, _SUFFIXES)), None, None)
    checked = []
    with rows.opened() as read:
        for index in range(len(rows)):
            row = read(index)
            missing = [name for name in needed if not isinstance(row, dict) or name not in row]
            if missing:
                there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"{rows.where(index)} has no {' and no '.join(missing)} (it has {there}): is this the right file?")
            checked.append(dict(row))
    return checked


def split_file(path: str, split: str, suffixes: Sequence[str]) -> Path:
    """Return the file of a split: the path itself, or the one in a folder that is named after the split.

    Raises:
        FileNotFoundError: There is none.
    """
    base = Path(path)
    if base.is_file():
        return base
    for name in _HUB_SPLITS[split]:
        for suffix in suffixes:
            for file in sorted(base.glob(f"*{name}*.{suffix}")):
                return file
    raise FileNotFoundError(
        f"{base} holds no {split} file (*{split}*.{', *.'.join(suffixes)}): pass the file itself, or the corpus's folder"
    )


def imdb(path: str, split: str) -> list[Row]:
    """Read film reviews with `text` and `label` (1 is positive): the folders of aclImdb, or a table of these columns."""
    folder = Path(path) / ("test" if split == "test" else "train")
    if not (folder / "pos").is_dir():
        return table(path, "test" if split == "test" else "train", ["text", "label"])
    files = [(file, int(kind == "pos")) for kind in ("neg", "pos") for file in sorted((folder / kind).glob("*.txt"))]
    if not files:
        raise FileNotFoundError(f"{folder} holds no pos/*.txt and no neg/*.txt")
    return [{"text": file.read_text(encoding="utf-8").replace("<br />", " "), "label": label} for file, label in files]


def squad(path: str, split: str) -> list[Row]:
    """Read SQuAD 1.1 or 2.0: nested JSON, or a table; rows have `context`, `question`, and `answers`, texts, none if unanswerable."""
    if path.startswith("hf:") or split_file(path, split, _SUFFIXES).suffix != ".json":
        rows = table(path, split, ["context", "question", "answers"])
        return [{**row, "answers": list(dict.fromkeys(row["answers"]["text"]))} for row in rows]
    file = split_file(path, split, _SUFFIXES)
    data = _json(file)
    if not isinstance(data, dict) or "data" not in data:
        raise ValueError(f"{file} has no 'data': SQuAD's file is one object with version and data")
    items = []
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                answers = list(dict.fromkeys(answer["text"] for answer in item.get("answers", ())))
                items.append({"context": paragraph["context"], "question": item["question"], "answers": answers})
    return items


def narrativeqa(path: str, split: str) -> list[Row]:
    """Read NarrativeQA's `qaps.csv` and `summaries.csv`; rows have `summary`, `question`, `answers`."""
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


def dailydialog(path: str, split: str) -> list[Row]:
    """Read DailyDialog: lines of `__eou__`-separated utterances, or a table with `dialog`; rows have `utterances`."""
    if not path.startswith("hf:") and (file := _text_file(path, split, "dialogues_*{}*.txt", "dialogues_text.txt")):
        lines = _lines(file)
        return [{"utterances": [part.strip() for part in line.split("__eou__") if part.strip()]} for line in lines if line.strip()]
    rows = table(path, split, [])
    for index, row in enumerate(rows):
        said = row.get("dialog", row.get("utterances"))
        if not isinstance(said, list):
            raise ValueError(f"row {index} of {path} has no list 'dialog' or 'utterances'; it has {', '.join(row)}")
        row["utterances"] = [str(part).strip() for part in said]
    return rows


def parallel(path: str, split: str, source: str, target: str) -> list[Row]:
    """Read sentence pairs: files that end in the language codes, IWSLT's XML and tagged text, or a table with `translation`.

    Returns:
        Rows with `source` and `target`.
    """
    if not path.startswith("hf:") and Path(path).is_dir():
        sides = [_side(Path(path), split, language) for language in (source, target)]
        if all(sides):
            texts = [_sentences(file) for file in sides if file is not None]
            if len(texts[0]) != len(texts[1]):
                raise ValueError(f"{sides[0]} has {len(texts[0])} sentences and {sides[1]} {len(texts[1])}: they must be parallel")
            return [{"source": a, "target": b} for a, b in zip(*texts, strict=True)]
    return [{"source": row["translation"][source], "target": row["translation"][target]} for row in table(path, split, ["translation"])]


def common_gen(path: str, split: str) -> list[Row]:
    """Read CommonGen: `concepts` and `target`, one row each, or the authors' `concept_set` and `scene`; rows have lists of both."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for index, row in enumerate(table(path, split, [])):
        if "concept_set" in row:
            concepts, scenes = tuple(row["concept_set"].split("#")), row.get("scene", [])
        elif "concepts" in row:
            target = row.get("references") or row.get("target") or []
            concepts, scenes = tuple(row["concepts"]), [target] if isinstance(target, str) else target
        else:
            raise ValueError(f"row {index} of {path} has neither 'concepts' nor 'concept_set'; it has {', '.join(row)}")
        grouped.setdefault(concepts, []).extend(scenes)
    return [{"concepts": list(concepts), "targets": list(dict.fromkeys(scenes))} for concepts, scenes in grouped.items()]


def gsm8k(path: str, split: str) -> list[Row]:
    """Read GSM8K: `question`, and `answer` that ends in `#### number`; rows have `question`, `answer`, `number`."""
    rows = table(path, split, ["question", "answer"])
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


def _text_file(path: str, split: str, pattern: str, one: str) -> Path | None:
    base = Path(path)
    if base.is_file():
        return base if base.suffix == ".txt" else None
    named = [file for name in _HUB_SPLITS[split] for file in sorted(base.rglob(pattern.format(name)))]
    whole = base / one
    return named[0] if named else whole if whole.is_file() else None


def _side(folder: Path, split: str, language: str) -> Path | None:
    """Return one side of a parallel corpus: `*test*.de`, `*tst2015.de-en.de.xml`, `train.tags.de-en.de`."""
    names = (*_HUB_SPLITS[split], *({"test": ("tst",), "validation": ("dev",), "train": ()}[split]))
    for name in names:
        for suffix in (f".{language}", f".{language}.xml"):
            for file in sorted(folder.glob(f"*{name}*{suffix}")):
                return file
    return None


def _sentences(file: Path) -> list[str]:
    if file.suffix == ".xml":
        return [
            html.unescape(text).strip() for text in re.findall(r"<seg[^>]*>(.*?)</seg>", file.read_text(encoding="utf-8-sig"), re.DOTALL)
        ]
    lines = _lines(file)
    return [line.strip() for line in lines if not (".tags." in file.name and line.startswith("<"))]
