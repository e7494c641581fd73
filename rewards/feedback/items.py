"""What a study is made of: items, what an annotator sees of one, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..preferences.preference import names
from .study import Study

Source = str | tuple[str, ...]  # who wrote a text: one name, or several
EQUAL = "equal"  # in place of the right answer where both responses are one text of several sources: a tie that nobody is asked about
_OTHER = {"a": "b", "b": "a"}


@dataclass(frozen=True)
class Item:
    """What is asked about.

    Attributes:
        prompt: What the responses answer.
        responses: 2 for a comparison, 1 for ratings and flags, 0 or 1 for demonstrations, 2 or more for rankings.
        sources: Who wrote each response; names in a tuple where several wrote it.
        group: What results are broken down by.
        gold: The right answer, for gold questions: "a" or "b" of a pair, a number, a ranking; `EQUAL` for what is not asked.
        metadata: Further columns.
    """

    prompt: str
    responses: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    group: str | None = None
    gold: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        sources = tuple(name if isinstance(name, str) else tuple(name) for name in self.sources)  # JSON has lists only
        object.__setattr__(self, "sources", sources)


@dataclass(frozen=True)
class Assignment:
    """An item on an annotator's page.

    Attributes:
        ticket: What the answer must bring back.
        item: The item.
        order: Number of the response shown at each place.
    """

    ticket: str
    item: Item
    order: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        item_id: Number of the item.
        item: What was asked.
        annotator: Pseudonym.
        turn: 0; 1 if the item was shown for the second time.
        order: Number of the response shown at each place.
        value: Such as `{"choice": "a", "ratings": {"fluent": [3, 5]}}`, by the item's own order.
        words: Such as `{"reason": "..."}`.
        answered_at: Seconds since 1970; 0 where nobody knows.
        seconds: From showing to answer; 0 where nobody measured them, as in answers from elsewhere.
    """

    item_id: int
    item: Item
    annotator: str
    turn: int
    order: tuple[int, ...]
    value: Mapping[str, Any]
    words: Mapping[str, str]
    answered_at: float
    seconds: float


def check_item(item: Item, study: Study) -> None:
    """Check that an item can be asked about in a study.

    Raises:
        ValueError: It has too few or too many responses, sources or letters for the kind.
    """
    low, high = {"pair": (2, 2), "rating": (1, 1), "ranking": (2, 10), "spans": (1, 1), "demonstration": (0, 1)}[study.kind]
    if not low <= len(item.responses) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise ValueError(f"an item has {len(item.responses)} responses: a study of kind {study.kind!r} shows {wanted}")
    if not all(isinstance(text, str) for text in (item.prompt, *item.responses)):
        raise ValueError("prompt and responses must be strings")
    if item.sources and len(item.sources) != len(item.responses):
        raise ValueError(f"an item has {len(item.responses)} responses and {len(item.sources)} sources: name one for each, or none")
    if study.kind == "spans" and len(item.responses[0]) > 20_000:
        raise ValueError(f"a response has {len(item.responses[0])} characters: words of at most 20,000 can be flagged; split it")


def written_by_both(sources: Sequence[Source], others: Sequence[Source]) -> tuple[Source, ...]:
    """Return who wrote each response, as two items with these responses say."""
    both = [tuple(dict.fromkeys((*names(x), *names(y)))) for x, y in zip(sources, others, strict=True)] if sources and others else ()
    return tuple(name[0] if len(name) == 1 else name for name in both) or tuple(sources or others)


def mirrored(item: Item) -> Item:
    """Return a pair with its responses in the other order: the same question."""
    gold = _OTHER.get(item.gold, item.gold) if isinstance(item.gold, str) else item.gold
    return replace(item, responses=item.responses[::-1], sources=item.sources[::-1], gold=gold)


def mirrored_answer(answer: Answer) -> Answer:
    """Return the answer to a pair as an answer to the mirrored one."""
    value = dict(answer.value)
    if "choice" in value:
        value["choice"] = _OTHER.get(value["choice"], value["choice"])
    if "ratings" in value:
        value["ratings"] = {name: ratings[::-1] for name, ratings in value["ratings"].items()}
    return replace(answer, item=mirrored(answer.item), order=tuple(1 - i for i in answer.order), value=value)


def with_texts(item: Item, change: Any) -> Item:
    """Return the item with every string changed, in its metadata too, however deep."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            return {changed(key): changed(inner) for key, inner in value.items()}
        return type(value)(map(changed, value)) if isinstance(value, list | tuple) else value

    return Item(*(changed(getattr(item, field.name)) for field in fields(item)))


def right_answer(a: Answer, study: Study) -> Answer:
    """Return the right answer to a gold question, as if somebody had given it."""
    key = {"pair": "choice", "rating": "rating", "ranking": "ranking", "spans": "spans"}.get(study.kind, "written")
    return Answer(a.item_id, a.item, "gold", 0, a.order, {key: a.item.gold}, {}, 0.0, 0.0)
