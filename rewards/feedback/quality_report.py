"""The quality of a study's answers: agreement, accuracy, consistency and pace of annotators, and the items they disagree about."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from ..preferences.label_consensus import lot
from ..preferences.rater_agreement import Label, LabelEstimate, Level, dawid_skene, krippendorff_alpha, rating_matrix, raw_agreement
from ..utils.intervals import Rate, clustered, wilson
from .forms import word_places
from .items import Answer, right_answer
from .study import SCALE, Study

BLOCK = 25  # answers to a point of a learning curve
LOW_ACCURACY = 0.65
HASTE = 2.0  # seconds


Contested = tuple[str, tuple[str, ...], int, float]


@dataclass(frozen=True)
class AnnotatorQuality:
    """The quality of one annotator's answers.

    Attributes:
        name: Pseudonym.
        answers: Given, without repetitions and skipped questions.
        skipped: Questions passed over.
        accuracy: Estimated probability of saying the true label; NaN without one other opinion.
        consistency: Repeated questions that were answered as before.
        gold: Gold questions answered rightly.
        first_shown: Decided comparisons in which the response shown first won.
        seconds: Median time of an answer; NaN if none was measured.
        curve: Agreement with the others' consensus in each block of 25 answers, in order.
        doubts: Reasons to look at this annotator's answers.
    """

    name: str
    answers: int
    skipped: int
    accuracy: float
    consistency: Rate | None
    gold: Rate | None
    first_shown: Rate | None
    seconds: float
    curve: tuple[float, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class QualityReport:
    """The quality of a study's answers.

    Attributes:
        answers: Number of answers, repetitions and skipped questions left out.
        items: Number of items with an answer.
        alpha: Krippendorff's.
        agreement: Pairs of answers to one item that are equal; the interval takes items as the unit.  None without such a pair.
        criteria: Krippendorff's alpha of each criterion (ordinal).
        people: One for each annotator.
        contested: Items the annotators disagree about most: text of the prompt, its responses, number of answers,
            entropy of the label in bits.
    """

    answers: int
    items: int
    alpha: float
    agreement: Rate | None
    criteria: dict[str, float]
    people: tuple[AnnotatorQuality, ...]
    contested: tuple[Contested, ...]


def quality_report(answers: Sequence[Answer], study: Study) -> QualityReport:
    """Measure the quality of a study's answers."""
    given = [a for a in answers if "skip" not in a.value]
    first = [a for a in given if a.turn == 0]
    labels, num_labels, level = labels_of(first, study)
    known = {label[0]: label[2] for label in labels_of([right_answer(a, study) for a in first if a.item.gold is not None], study)[0]}
    model = dawid_skene(labels, num_labels, known) if labels else None
    alpha = krippendorff_alpha(rating_matrix(labels), level) if labels else math.nan
    names = sorted({a.annotator for a in answers})
    return QualityReport(
        len(first),
        len({a.item_id for a in first}),
        alpha,
        _agreement(labels),
        {name: _criterion_alpha(first, name) for name in study.criteria},
        tuple(_person(name, answers, study, model, labels) for name in names),
        _contested(first, labels, model),
    )


def _agreement(labels: Sequence[Label]) -> Rate | None:
    counts: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for key, pairs in raw_agreement(labels).items():
        counts[key[0] if isinstance(key, tuple) else key] += pairs  # an item's ranking or spans are several labels
    return clustered(*np.stack(list(counts.values()), 1)) if counts else None


def labels_of(answers: Sequence[Answer], study: Study) -> tuple[list[Label], int, Level]:
    """Return answers as labels, how many labels there are, and what a difference between them is.

    Pairs: which response, or neither.  Ratings: 1 to 5.  Rankings: which of each two responses is better.  Spans: whether each word is
    flagged.  Demonstrations have no labels.  Responses are numbered as `rewards.preferences.agreement` numbers them, by hash: many an item
    has its better response first, which chance agreement must not know.
    """
    labels: list[Label] = []
    for a in answers:
        who = a.annotator
        lots = [lot(a.item.prompt, response) for response in a.item.responses]
        drawn = sorted(range(len(lots)), key=lots.__getitem__)
        if study.kind == "pair":
            labels.append((a.item_id, who, {"a": drawn.index(0), "b": drawn.index(1)}.get(a.value["choice"], 2)))
        elif study.kind == "rating":
            labels.append((a.item_id, who, a.value["rating"] - 1))
        elif study.kind == "ranking":
            rank = {response: i for i, response in enumerate(a.value["ranking"])}
            labels += [((a.item_id, i, j), who, int(rank[i] > rank[j])) for i, j in combinations(drawn, 2)]
        elif study.kind == "spans":
            for number, (start, end) in enumerate(word_places(a.item.responses[0])):
                marked = any(span["start"] < end and start < span["end"] for span in a.value["spans"])
                labels.append(((a.item_id, number), who, int(marked)))
    if study.kind == "rating":
        return labels, SCALE, "ordinal"
    return labels, 3 if study.kind == "pair" else 2, "nominal"


def _person(name: str, answers: Sequence[Answer], study: Study, model: LabelEstimate | None, labels: Sequence[Label]) -> AnnotatorQuality:
    mine = [a for a in answers if a.annotator == name]
    given = [a for a in mine if "skip" not in a.value]
    first = {a.item_id: a for a in given if a.turn == 0}
    repeats = [a for a in given if a.turn == 1 and a.item_id in first]
    same = sum(_core(a) == _core(first[a.item_id]) for a in repeats)
    gold = [a for a in first.values() if a.item.gold is not None]
    right = sum(_core(a) == _core(right_answer(a, study)) for a in gold)
    decided = [a for a in given if a.value.get("choice") in ("a", "b")]
    won = sum("ab"[a.order[0]] == a.value["choice"] for a in decided)
    shared = {label[0] for label in labels if label[1] != name} | {a.item_id for a in gold}
    overlapping = [label for label in labels if label[1] == name and label[0] in shared]
    accuracy = model.accuracy[name] if model and overlapping else math.nan
    person = {
        "consistency": wilson(same, len(repeats)) if repeats else None,
        "gold": wilson(right, len(gold)) if gold else None,
        "first_shown": wilson(won, len(decided)) if decided else None,
    }
    measured = [a.seconds for a in given if a.seconds > 0]
    seconds = median(measured) if measured else math.nan
    doubts = _doubts(accuracy, len(overlapping), seconds, **person)
    curve = _curve(name, labels)
    return AnnotatorQuality(name, len(first), len(mine) - len(given), accuracy, **person, seconds=seconds, curve=curve, doubts=doubts)


def _core(a: Answer) -> Any:
    """Return the answer itself, without ratings by criterion."""
    return next((a.value[key] for key in ("choice", "rating", "ranking", "spans", "written") if key in a.value), None)


def _doubts(
    accuracy: float, shared: int, seconds: float, consistency: Rate | None, gold: Rate | None, first_shown: Rate | None
) -> tuple[str, ...]:
    doubts = []
    if shared >= 20 and accuracy < LOW_ACCURACY:
        doubts.append(f"estimated accuracy {accuracy:.2f} is below {LOW_ACCURACY}")
    if gold is not None and gold.high < 0.8:
        doubts.append(f"{gold.rate:.0%} of {gold.num} gold questions right")
    if consistency is not None and consistency.high < 0.8:
        doubts.append(f"{consistency.rate:.0%} of {consistency.num} repeated questions answered as before")
    if first_shown is not None and not first_shown.low <= 0.5 <= first_shown.high and first_shown.num >= 20:
        doubts.append(f"took the response shown first in {first_shown.rate:.0%} of {first_shown.num} comparisons")
    if seconds < HASTE:
        doubts.append(f"median time {seconds:.1f} s")
    return tuple(doubts)


def _curve(name: str, labels: Sequence[Label]) -> tuple[float, ...]:
    """Agreement with the majority of the others, in blocks of the annotator's answers."""
    others: dict[Hashable, list[int]] = defaultdict(list)
    for item, who, label in labels:
        if who != name:
            others[item].append(label)
    hits = []
    for item, who, label in labels:
        if who == name and others[item]:
            counts = np.bincount(others[item])
            best = np.flatnonzero(counts == counts.max())
            hits.append(float(label in best) / len(best))
    return tuple(float(np.mean(hits[i : i + BLOCK])) for i in range(0, len(hits) - BLOCK + 1, BLOCK))


def _criterion_alpha(answers: Sequence[Answer], name: str) -> float:
    rows: list[Label] = []
    for a in answers:
        for response, rating in enumerate(a.value.get("ratings", {}).get(name, ())):
            if rating is not None:
                rows.append(((a.item_id, response), a.annotator, rating))
    return krippendorff_alpha(rating_matrix(rows), "ordinal") if rows else math.nan


def _contested(answers: Sequence[Answer], labels: Sequence[Label], model: LabelEstimate | None, most: int = 10) -> tuple[Contested, ...]:
    if model is None:
        return ()
    counts: dict[Hashable, int] = defaultdict(int)
    for item, _, _ in labels:
        counts[item] += 1
    items = {a.item_id: a.item for a in answers}
    rows: dict[Hashable, float] = {}
    for item, chance in model.posterior.items():
        if counts[item] > 1:
            number = item[0] if isinstance(item, tuple) else item
            rows[number] = max(rows.get(number, 0.0), float(-(chance * np.log2(np.maximum(chance, 1e-300))).sum()))
    worst = sorted(rows.items(), key=lambda row: -row[1])[:most]
    per_item: dict[Hashable, int] = defaultdict(int)
    for a in answers:
        per_item[a.item_id] += 1
    shown = [(items[number], per_item[number], bits) for number, bits in worst if bits > 0.1]  # type: ignore[index]
    return tuple((item.prompt, tuple(item.responses), count, bits) for item, count, bits in shown)
