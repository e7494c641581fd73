"""The part of a rollout that each of several processes plays."""

from __future__ import annotations

from typing import NamedTuple


class RankShare(NamedTuple):
    """One of `size` contiguous parts of a rollout.

    Attributes:
        rank: Which part, in [0, size).
        size: How many parts.
    """

    rank: int
    size: int

    def of(self, num_episodes: int, group_size: int = 1) -> slice:
        """Return which episodes of a rollout belong to this part; groups stay whole, so it may be empty.

        Parts differ by one group at most, and together they are all episodes.
        """
        groups = -(-num_episodes // group_size)
        first, last = (groups * rank // self.size * group_size for rank in (self.rank, self.rank + 1))
        return slice(min(first, num_episodes), min(last, num_episodes))
