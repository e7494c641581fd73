"""Whether tokens lead from a state of a grammar to a whole match."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import Any

_Path = tuple[int, ...]


class EndingSearch:
    """The search behind one mask.

    It begins anew with every mask, so that a mask is a function of the text alone, however the search ends.

    Args:
        allowed: The ids that llguidance allows after a matcher's state.
        after: A matcher's state after one more token.
        limit: States to visit in all.
        depth_first: Of these, how many depth first for each state asked about; the rest breadth first.
    """

    def __init__(
        self, allowed: Callable[[Any], list[int]], after: Callable[[Any, int], Any], limit: int = 2000, depth_first: int = 300
    ) -> None:
        self.allowed, self.after, self.left, self.depth_first = allowed, after, limit, depth_first
        self.endings: deque[list[int]] = deque([[]], maxlen=8)  # tokens that led to a whole match, latest first: try them first

    def can_end(self, matcher: Any) -> bool:
        """Return whether tokens lead to a whole match; True if the limit comes before the answer."""
        for ending in self.endings:
            end = matcher.deep_copy()
            if end.try_consume_tokens(ending) == len(ending) and end.is_accepting():
                return True
        ends = self._search(matcher, min(self.left, self.depth_first), latest=True)
        if ends is None:
            ends = self._search(matcher, self.left, latest=False)
        return ends is not False

    def _search(self, matcher: Any, limit: int, latest: bool) -> bool | None:
        """Return whether a whole match exists, taking the latest or the earliest path first; None if paths are left over."""
        path: _Path = ()
        paths = deque(zip(repeat(matcher), repeat(path), self.allowed(matcher), strict=False))
        while paths and limit:
            limit -= 1
            self.left -= 1
            before, path, token = paths.pop() if latest else paths.popleft()
            state, path = self.after(before, token), (*path, token)
            if state.is_accepting():
                self.endings.appendleft(list(path))
                return True
            paths.extend(zip(repeat(state), repeat(path), self.allowed(state), strict=False))
        return None if paths else False
