"""Sentences that people rated: read from where they were published, and dealt into parts that share none."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textrl_env.utils.tables import read_rows

Row = dict[str, Any]  # `text`, and `ratings`, a list with one number a person


def read_ratings(path: Path) -> list[Row]:
    """Return rows of `text` and `ratings`.

    Args:
        path: A table with these columns, or the source package of vaderSentiment as it was downloaded (Hutto and Gilbert 2014), where they
            are two files in an archive, joined by number.
    """
    if not path.name.endswith(".tar.gz"):
        return [{"text": row["text"], "ratings": row["ratings"]} for row in read_rows(path)]
    with tarfile.open(path) as package:
        inner = next(member for member in package if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=package.extractfile(inner)) as archive:
            texts, ratings = (_lines(archive, f"movieReviewSnippets_{name}.txt") for name in ("GroundTruth", "anonDataRatings"))
    rated = {number: json.loads(given) for number, _, _, given in ratings}
    return [{"text": text.strip(), "ratings": rated[number]} for number, _, text in texts]


def _lines(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    assert file is not None
    return [line.split("\t") for line in file.read().decode().splitlines()]


def deal(rows: Sequence[Row], shares: Sequence[float], seed: int) -> tuple[list[Row], ...]:
    """Deal rows into parts; all rows of one sentence, in any spelling (case, spaces, punctuation), go to the same.

    Args:
        rows: With a `text` each.
        shares: Of all parts but the last, which gets the rest.
        seed: Of the dealing.
    """
    same: dict[str, list[Row]] = {}
    for row in rows:
        same.setdefault("".join(c for c in row["text"].casefold() if c.isalnum()), []).append(row)
    keys = np.random.default_rng(seed).permutation(sorted(same))
    parts = np.split(keys, [int(share * len(keys)) for share in np.cumsum(shares)])
    return tuple([row for key in part for row in same[key]] for part in parts)
