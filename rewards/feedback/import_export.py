"""A study's answers as files: preferences for fitting, all answers for another study, Label Studio's JSON; and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

from ..preferences.label_consensus import consensus, votes
from ..preferences.preference import KNOWN, Preference
from ..preferences.row_formats import preferences_of
from .items import EQUAL, Answer, Item, right_answer
from .pair_selection import Sample
from .study import Study

_ANSWERS_OWN = KNOWN | {"text", "annotators", "choice", "time", "seconds", "order", "ratings_by_criterion", "reason"}


def preference_rows(answers: Sequence[Answer], study: Study) -> list[dict[str, Any]]:
    """Return rows that `rewards.read_preferences` reads, without skipped, repeated and gold questions.

    Each has the annotator's pseudonym, when they answered, how long it took, and the order in which the responses stood.  Equally good and
    both bad have label 0.5.  A demonstration is preferred to what it was made from, or to the empty response.

    Raises:
        ValueError: The study flags words: these are no preferences.
    """
    asked = _asked(answers)
    if study.kind == "spans":
        raise ValueError("flags of words are no preferences: export them with --format answers")
    if study.kind == "rating":
        return _compared_ratings(asked)
    rows = []
    for a in asked:
        shared = {**_further(a.item), "prompt": a.item.prompt}
        if study.kind == "pair":
            choice = a.value["choice"]
            x, y = a.item.responses if choice != "b" else a.item.responses[::-1]
            tie = {} if choice in ("a", "b") else {"label": 0.5, "choice": choice}
            rows.append({**shared, "chosen": x, "rejected": y, **tie, **_about(a)})
        elif study.kind == "ranking":
            rows.append({**shared, "responses": [a.item.responses[i] for i in a.value["ranking"]], **_about(a)})
        else:
            before = a.item.responses[0] if a.item.responses else ""
            rows.append({**shared, "chosen": a.words["text"], "rejected": before, **_about(a)})
    return rows


def consensus_of(answers: Sequence[Answer], study: Study) -> list[Preference]:
    """Return one comparison for each pair that was asked, see `rewards.preferences.consensus`; gold questions tell who is reliable."""
    asked = _preferences(answers, study)
    gold = [a for a in answers if a.turn == 0 and a.item.gold is not None and "skip" not in a.value]
    plain = [replace(a, item=replace(a.item, gold=None)) for a in gold]
    right = [replace(right_answer(a, study), item=b.item) for a, b in zip(gold, plain, strict=True)]
    golden, truth = _preferences(plain, study), _preferences(right, study)
    numbered = votes([*asked, *golden, *truth])
    known = {pair: label for pair, _, label in numbered[len(asked) + len(golden) :]}
    merged = consensus([*asked, *golden], known=known)
    return [one for one in merged if votes([one])[0][0] not in known]


def _preferences(answers: Sequence[Answer], study: Study) -> list[Preference]:
    return [p for row in preference_rows(answers, study) for p in preferences_of(row)]


def rating_rows(answers: Sequence[Answer], study: Study) -> list[dict[str, Any]]:
    """Return one row for each rated response, with all its ratings, that `rewards.read_thumbs` and `read_preferences` read.

    Skipped, repeated and gold questions are left out.

    Raises:
        ValueError: The study asks for no ratings.
    """
    if study.kind != "rating":
        raise ValueError(f"--format ratings is for ratings of single responses; this study's kind is {study.kind!r}")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for a in _asked(answers):
        response = a.item.responses[0]
        group = {} if a.item.group is None else {"group": a.item.group}
        blank = {**_further(a.item), "prompt": a.item.prompt, "text": response, "ratings": [], "annotators": [], **group}
        row = rows.setdefault((a.item.prompt, response), blank)
        row["ratings"].append(a.value["rating"])
        row["annotators"].append(a.annotator)
    return list(rows.values())


def _further(item: Item) -> dict[str, Any]:
    """Return an item's metadata without what an earlier judgement of it said: the annotator's answer stands in its place."""
    return {key: value for key, value in item.metadata.items() if key not in _ANSWERS_OWN}


def _asked(answers: Sequence[Answer]) -> list[Answer]:
    return [a for a in answers if a.turn == 0 and a.item.gold is None and "skip" not in a.value]


def _about(a: Answer) -> dict[str, Any]:
    more = {
        "annotator": a.annotator, "group": a.item.group,
        "time": _time(a.answered_at) if a.answered_at else None, "seconds": round(a.seconds, 3) or None, "order": list(a.order),
        "sources": list(a.item.sources) or None, "ratings_by_criterion": a.value.get("ratings"), "reason": a.words.get("reason"),
    }  # fmt: skip
    return {key: value for key, value in more.items() if value is not None}


def _compared_ratings(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Ratings compare what one person said of one prompt's responses."""
    by_person: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for a in answers:
        by_person[a.annotator, a.item.prompt].append(a)
    return [
        {
            "prompt": prompt, "responses": [a.item.responses[0] for a in own], "ratings": [a.value["rating"] for a in own],
            "annotator": who, **({"group": own[0].item.group} if own[0].item.group is not None else {}),
        }
        for (who, prompt), own in by_person.items() if len(own) > 1
    ]  # fmt: skip


def answer_rows(answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    """Return every answer with all that is known of it, as `answers_of` reads it."""
    for a in answers:
        row = asdict(a)
        del row["item_id"]
        yield row


def answers_of(rows: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """Read rows of `answer_rows`.

    Raises:
        ValueError: A row is none.
    """
    answers = []
    for number, row in enumerate(rows, 1):
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) and k != "gold" else v for k, v in row["item"].items()}
            item = Item(**fields)
            rest = {key: row[key] for key in ("annotator", "turn", "value", "words")}
            rest |= {key: float(row.get(key) or 0) for key in ("answered_at", "seconds")}
            answers.append(Answer(item_id=0, item=item, order=tuple(row["order"]), **rest))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"row {number} is no exported answer: it lacks {error}") from error
    return answers


_SIDES = {"a": "left", "b": "right"}


def to_label_studio(answers: Sequence[Answer], items: Sequence[tuple[int, Item]]) -> list[dict[str, Any]]:
    """Return Label Studio's tasks for pairs, with `data` of `prompt`, `response_a`, `response_b`, and finished annotations.

    A choice is a `pairwise` result of `left` or `right`, ties and both bad are `choices`, reasons `textarea`.  What else is known of an
    item is in `meta`.
    """
    own: dict[int, list[Answer]] = defaultdict(list)
    for a in answers:
        own[a.item_id].append(a)
    tasks = []
    for number, item in items:
        if item.gold == EQUAL:
            continue
        if len(item.responses) != 2:
            raise ValueError("Label Studio's form is written for pairs: export this study with --format answers")
        data = {"prompt": item.prompt, "response_a": item.responses[0], "response_b": item.responses[1]}
        meta = {"sources": item.sources, "group": item.group, "gold": item.gold, "metadata": dict(item.metadata)}
        tasks.append({"id": number, "data": data, "meta": meta, "annotations": [_annotation(a) for a in own[number] if a.turn == 0]})
    return tasks


def _annotation(a: Answer) -> dict[str, Any]:
    choice = a.value.get("choice")
    results: list[dict[str, Any]] = []
    if choice in _SIDES:
        results.append({"from_name": "pw", "to_name": "response_a,response_b", "type": "pairwise", "value": {"selected": _SIDES[choice]}})
    elif choice is not None:
        results.append({"from_name": "neither", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}})
    if "reason" in a.words:
        results.append({"from_name": "reason", "to_name": "prompt", "type": "textarea", "value": {"text": [a.words["reason"]]}})
    when = {"created_at": _time(a.answered_at), "lead_time": a.seconds or None}
    return {"completed_by": a.annotator, "result": results, "was_cancelled": choice is None, "ground_truth": False, **when}


def from_label_studio(tasks: Sequence[Mapping[str, Any]]) -> tuple[list[Item], list[Answer]]:
    """Read Label Studio's JSON export of pairs, as `to_label_studio` writes it.

    `completed_by` becomes the annotator; cancelled annotations are skipped questions.

    Raises:
        ValueError: A task lacks `data.prompt`, `data.response_a` or `data.response_b`.
    """
    items, answers = [], []
    for number, task in enumerate(tasks, 1):
        try:
            data, meta = task["data"], task.get("meta") or {}
            more = tuple(meta.get("sources", ())), meta.get("group"), meta.get("gold"), meta.get("metadata", {})
            item = Item(data["prompt"], (data["response_a"], data["response_b"]), *more)
        except (KeyError, TypeError) as error:
            raise ValueError(f"task {number} lacks data with prompt, response_a and response_b: {error}") from error
        items.append(item)
        for annotation in task.get("annotations", ()):
            value, words = _value(annotation)
            who = annotation.get("completed_by", "label-studio")
            who = str(who["id"] if isinstance(who, Mapping) else who)
            when = datetime.fromisoformat(str(annotation.get("created_at", "1970-01-01T00:00:00Z")).replace("Z", "+00:00"))
            when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
            answers.append(Answer(0, item, who, 0, (0, 1), value, words, when.timestamp(), float(annotation.get("lead_time") or 0)))
    return items, answers


def _value(annotation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    value: dict[str, Any] = {"skip": True}
    words: dict[str, str] = {}
    for result in annotation.get("result", ()):
        kind, content = result.get("type"), result.get("value", {})
        if kind == "pairwise":
            value = {"choice": "a" if content["selected"] == "left" else "b"}
        elif kind == "choices":
            value = {"choice": "bad" if content["choices"][0] == "bad" else "tie"}
        elif kind == "textarea":
            words = {"reason": "\n".join(content["text"])}
    return ({"skip": True} if annotation.get("was_cancelled") else value), words


def items_of(rows: Iterable[Mapping[str, Any]]) -> list[Item]:
    """Read what is to be asked: rows of `prompt` and `responses`, or `chosen` and `rejected`, or `response`, or the prompt alone.

    `sources`, `group` and `gold` are taken, other columns kept as metadata.

    Raises:
        ValueError: A row has no prompt, texts that are no strings, or a picture, which the page does not show.
    """
    items = []
    for number, row in enumerate(rows, 1):
        _check_no_picture(row, number)
        prompt, group = row.get("prompt"), row.get("group")
        if "responses" in row:
            responses = row["responses"]
        else:
            responses = [row[key] for key in ("chosen", "rejected", "response") if key in row]
        if not isinstance(prompt, str) or not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
            got = f"prompt {str(prompt)[:60]!r} and responses {str(responses)[:60]}"
            raise ValueError(f"row {number} has {got}: a string and a list of strings are needed")
        known = {"prompt", "responses", "chosen", "rejected", "response", "sources", "group", "gold"}
        more = {key: value for key, value in row.items() if key not in known}
        sources = tuple(tuple(map(str, name)) if isinstance(name, list) else str(name) for name in row.get("sources", ()))
        group = None if group is None else str(group)
        items.append(Item(prompt, tuple(responses), sources, group, row.get("gold"), more))
    return items


def samples_of(rows: Iterable[Mapping[str, Any]], source: str) -> list[Sample]:
    """Read what a policy wrote: rows of `prompt` and `response`, as `textrl generate --out` writes them.

    Raises:
        ValueError: A row lacks one, or has a picture, which the page does not show.
    """
    samples = []
    for number, row in enumerate(rows, 1):
        _check_no_picture(row, number)
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("response"), str):
            raise ValueError(f"row {number} of the samples of {source!r} lacks the strings prompt and response")
        samples.append(Sample(row["prompt"], row["response"], source, None if row.get("group") is None else str(row["group"])))
    return samples


def _check_no_picture(row: Mapping[str, Any], number: int) -> None:
    if row.get("image") is not None:
        raise ValueError(
            f"row {number} has a picture (`image`): a study shows texts only, so that nobody could judge it; leave such rows out"
        )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
