"""Which comparisons are held out, so that what is measured on them was not learned from their texts or prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from .preference import Preference, Ranking, words_of

_LEAST = 1 / 4  # of what was asked for: where texts hang together so much that not even this can be cut out, nothing is held out
_TEMPLATE = 0.2  # of all comparisons: a prompt of more of them is a question to nobody in particular

Key = tuple[str, str]  # "text" or "prompt", and its words


@dataclass(frozen=True, slots=True)
class Split:
    """Two sides of comparisons that share no text.

    Attributes:
        held: Numbers of the comparisons that are held out, at least one, in the order in which they were given.
        kept: Those that are left to learn from, at least one.
        dropped: How many are on neither side, because they have a text or a prompt of each.
        prompts_apart: Whether the sides share no prompt either; empty prompts are none.
    """

    held: list[int]
    kept: list[int]
    dropped: int
    prompts_apart: bool


def hold_out(comparisons: Sequence[Preference | Ranking], order: Sequence[int], share: float) -> Split | None:
    """Choose what is held out, so that no text, and no prompt that tells comparisons apart, is on both sides.

    Comparisons that share a response, a whole text (prompt and response), or a prompt hang together; case and white space do not count.
    An empty prompt joins nothing, nor does a template: the prompt of more than twice as many comparisons as are to be held out, such as one
    that all have.  What hangs together is taken whole, in the order of its first comparison, where it still fits in; with distinct texts
    and prompts this is the first `share` of the order.

    Where not even half of the share comes together so, a region of neighbouring comparisons is cut out of the rest, and those on its edge,
    with a text or a prompt of each side, are dropped: at most so many that half of all comparisons are left to learn from.  Where prompts
    make that impossible, they are let go, and `prompts_apart` says so; texts never are.

    Args:
        comparisons: N pairs or rankings.
        order: A permutation of 0..N-1.
        share: In (0, 1).

    Returns:
        The split; None if texts hang together so much that there is none.
    """
    wanted = min(max(1, round(share * len(order))), len(order) - 1)
    for most in (2 * wanted, 0):
        keys = _keys(comparisons, most)
        times = Counter(chain.from_iterable(keys))
        keys = [{key for key in own if times[key] > 1} for own in keys]
        sides = _whole(keys, order, wanted) or _cut(keys, order, wanted)
        if sides:
            held, kept = ([i for i in order if i in side] for side in sides)
            seen = {words_of(comparisons[i].prompt) for i in kept} - {""}
            apart = seen.isdisjoint(words_of(comparisons[i].prompt) for i in held)
            return Split(held, kept, len(order) - len(held) - len(kept), apart)
    return None


def overlapping(train: Sequence[Preference | Ranking], test: Sequence[Preference | Ranking]) -> list[int]:
    """Return the numbers of the test comparisons that share a text or a prompt with training, compared as `hold_out` does.

    Here a template is the prompt of more than a fifth of all comparisons.
    """
    keys = _keys([*train, *test], _TEMPLATE * (len(train) + len(test)))
    known = set(chain.from_iterable(keys[: len(train)]))
    return [i for i, own in enumerate(keys[len(train) :]) if not known.isdisjoint(own)]


def independent_units(comparisons: Sequence[Preference | Ranking]) -> Sequence[Hashable]:
    """Return the clusters of comparisons for an interval, which says how sure a share is for others like these: their prompts.

    Where all have one prompt, or none, comparisons that share a text hang together, since a text that is misjudged is wrong in each; where
    that joins all of them, those of the same texts do, as answers of several people to one pair.
    """
    prompts = [comparison.prompt for comparison in comparisons]
    if len(set(prompts)) > 1:
        return prompts
    _, label = connected_components(_graph(_keys(comparisons, 0))[0], directed=False)
    joined = label[: len(comparisons)].tolist()
    if len(set(joined)) > 1:
        return joined
    return [frozenset(c.responses if isinstance(c, Ranking) else (c.chosen, c.rejected)) for c in comparisons]


def _keys(comparisons: Sequence[Preference | Ranking], most: float) -> list[set[Key]]:
    """Return what each comparison may share with others; prompts of more than `most` comparisons are left out."""
    prompts = [words_of(c.prompt) for c in comparisons]
    times = Counter(prompts)
    keys: list[set[Key]] = []
    for comparison, prompt in zip(comparisons, prompts, strict=True):
        responses = comparison.responses if isinstance(comparison, Ranking) else (comparison.chosen, comparison.rejected)
        texts = {words_of(text) for response in responses for text in (response, comparison.prompt + response)} - {""}
        keys.append({("text", text) for text in texts} | ({("prompt", prompt)} if prompt and times[prompt] <= most else set()))
    return keys


def _graph(keys: Sequence[set[Key]]) -> tuple[csr_array, dict[Key, int]]:
    """Return the graph that joins comparisons, the first nodes, with their keys, shape (nodes, nodes), and the nodes of the keys."""
    number = {key: len(keys) + i for i, key in enumerate(dict.fromkeys(chain.from_iterable(map(sorted, keys))))}
    rows = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
    columns = np.array([number[key] for own in keys for key in sorted(own)], np.int64)
    size = len(keys) + len(number)
    return csr_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size)), number


Sides = tuple[set[int], set[int]]


def _whole(keys: Sequence[set[Key]], order: Sequence[int], wanted: int) -> Sides | None:
    """Hold out comparisons with all that hangs together with them, if this comes near the number that is wanted."""
    _, label = connected_components(_graph(keys)[0], directed=False)
    together: dict[int, list[int]] = {}
    for i in order:
        together.setdefault(int(label[i]), []).append(i)
    held: set[int] = set()
    for rows in together.values():
        if len(held) + len(rows) <= wanted:
            held.update(rows)
    if len(held) < wanted / 2:
        smallest = min((rows for rows in together.values() if rows[0] not in held), key=len)
        held.update(smallest)
    return (held, set(order) - held) if wanted / 2 <= len(held) <= min(2 * wanted, len(order) - 1) else None


def _cut(keys: Sequence[set[Key]], order: Sequence[int], wanted: int) -> Sides | None:
    """Hold out a region that grows from one comparison to its neighbours, and drop the comparisons on its edge."""
    graph, number = _graph(keys)
    _, label = connected_components(graph, directed=False)
    largest = np.bincount(label[: len(keys)]).argmax()
    start = next(i for i in order if label[i] == largest)
    reached = breadth_first_order(graph, start, directed=False, return_predecessors=False)
    rank = np.full(graph.shape[0], len(label))  # what is not reached stays outside
    rank[reached] = np.arange(len(reached))
    first, last = (np.array([edge((int(rank[number[key]]) for key in own), default=len(label)) for own in keys]) for edge in (min, max))
    bounds = np.sort(last)[:wanted]  # the region ends with this key, so that 1, 2, ... comparisons are inside
    left = len(order) - np.searchsorted(np.sort(first), bounds, side="right")
    possible = np.flatnonzero((left >= len(order) / 2) & (bounds < len(label)))
    if not len(possible) or possible[-1] + 1 < _LEAST * wanted:
        return None
    bound = bounds[possible[-1]]
    return set(np.flatnonzero(last <= bound).tolist()), set(np.flatnonzero(first > bound).tolist())
