"""The order in which a task's prompts are dealt to the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..utils.suggestions import did_you_mean

Order = Literal["sequential", "random", "shuffled", "weighted", "priority"]

ORDERS = ("sequential", "random", "shuffled", "weighted", "priority")


class PromptSampler:
    """Deals the index of the next prompt to whichever row asks.

    - `"sequential"`: one after the other, and over again.
    - `"random"`: with replacement.
    - `"shuffled"`: every prompt once per epoch, each epoch in an order of its own.
    - `"weighted"`: with replacement, in proportion to `weights`.
    - `"priority"`: with replacement, in proportion to priority ** `alpha`, see `update_priorities` (Schaul et al. 2016,
      "Prioritized Experience Replay", eq. 1).

    Args:
        num_prompts: N, at least 1.
        order: One of the above.
        weights: One for each prompt if the order is `"weighted"`; finite, not negative, not all 0.
        group_size: How many times in a row a prompt is dealt before the next is drawn.
        alpha: Exponent of priorities, at least 0; 0 is uniform, 0.6 is the paper's.

    Raises:
        ValueError: An unknown order, a size below 1, or weights that are missing, unasked for or unusable.
    """

    def __init__(
        self,
        num_prompts: int,
        order: Order = "random",
        weights: Sequence[float] | np.ndarray | None = None,
        group_size: int = 1,
        alpha: float = 0.6,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order={order!r} is unknown{did_you_mean(str(order), ORDERS)}: choose from {', '.join(map(repr, ORDERS))}")
        if num_prompts < 1 or group_size < 1:
            raise ValueError(f"num_prompts={num_prompts}, group_size={group_size}: both must be at least 1")
        if not 0 <= alpha < np.inf:
            raise ValueError(f"alpha={alpha}: must be at least 0 and finite")
        if (weights is not None) != (order == "weighted"):
            fix = "needs weights=, one for each prompt" if weights is None else "takes no weights: choose order='weighted'"
            raise ValueError(f"order={order!r} {fix}")
        self.num_prompts = num_prompts
        self.order = order
        self.group_size = group_size
        self.alpha = alpha
        self._current = 0  # the prompt that is being dealt, and how often it still will be
        self._repeats = 0
        self._position = 0  # prompts drawn: ever ("sequential"), or in this epoch ("shuffled")
        self._epoch_seed: int | None = None
        self._permutation = np.zeros(0, np.int64)
        self._seen = np.zeros(num_prompts if order == "priority" else 0, bool)  # prompts whose priority was reported
        self._top = 0.0  # the largest priority ** alpha reported so far
        self._tree: SumTree | None = None
        if order == "weighted":
            self._tree = SumTree(_checked_weights(weights, num_prompts))
        elif order == "priority":
            self._tree = SumTree(np.ones(num_prompts))

    def draw(self, generator: np.random.Generator) -> int:
        """Return the index of the next prompt, in [0, N).

        Args:
            generator: What a random order draws from; it is untouched while a group is repeated.

        Raises:
            ValueError: Every priority is 0, or their sum is infinite.
        """
        if not self._repeats:
            self._current = self._next(generator)
            self._repeats = self.group_size
        self._repeats -= 1
        return self._current

    def end_group(self) -> None:
        """Draw a new prompt next, however often the present one was dealt."""
        self._repeats = 0

    def restart(self) -> None:
        """Begin the order anew, as an environment does when it is seeded; priorities stay."""
        self._repeats = self._position = 0
        self._epoch_seed = None

    def update_priorities(self, indices: Sequence[int] | np.ndarray, priorities: Sequence[float] | np.ndarray) -> None:
        """Set the priorities of some prompts.

        A prompt that was never reported counts as much as the largest priority reported so far (1 before any), so that
        each is drawn soon.  Where an index is named twice, the last priority holds; 0 means never again.

        Args:
            indices: Prompts, shape (k,), in [0, N).
            priorities: Theirs, shape (k,), at least 0, finite to the power of alpha.

        Raises:
            TypeError: The indices are not integers.
            ValueError: The order is another one, the shapes differ, or a value is out of range.
        """
        if self.order != "priority" or self._tree is None:
            raise ValueError(f"order={self.order!r} has no priorities: choose order='priority'")
        rows, values = np.asarray(indices), np.asarray(priorities, np.float64)
        if not rows.size and not values.size:
            return
        if rows.dtype.kind not in "iu":
            raise TypeError(f"indices have dtype {rows.dtype}: pass integers")
        if rows.ndim != 1 or rows.shape != values.shape:
            raise ValueError(f"indices have shape {rows.shape} and priorities {values.shape}: pass one priority for each index")
        if rows.min() < 0 or rows.max() >= self.num_prompts:
            raise ValueError(f"indices reach from {rows.min()} to {rows.max()}: they must be in [0, {self.num_prompts})")
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = values**self.alpha
        bad = ~(np.isfinite(scaled) & (values >= 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"the priority of prompt {rows[row]} is {values[row]}: it must be at least 0, and priority ** alpha finite")
        self._tree.update(rows, scaled)
        self._seen[rows] = True
        if scaled.max() > self._top:  # rare: a new maximum lifts all unseen prompts, which costs O(N)
            self._top = float(scaled.max())
            unseen = np.flatnonzero(~self._seen)
            self._tree.update(unseen, np.full(len(unseen), self._top))

    def state(self) -> dict[str, Any]:
        """Return what `set_state` needs to go on exactly from here: numbers, strings and lists."""
        reported = np.flatnonzero(self._seen)
        return {
            "order": self.order,
            "num_prompts": self.num_prompts,
            "group_size": self.group_size,
            "alpha": self.alpha,
            "current": self._current,
            "repeats": self._repeats,
            "position": self._position,
            "epoch_seed": self._epoch_seed,
            "reported": reported.tolist(),
            "scaled": self._tree.leaves[reported].tolist() if self._tree is not None else [],
            "top": self._top,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was called; weights are no part of it.

        Raises:
            ValueError: The state is that of a sampler with another order, number of prompts, group size or alpha.
        """
        for name in ("order", "num_prompts", "group_size", "alpha"):
            if state[name] != getattr(self, name):
                raise ValueError(f"the state has {name}={state[name]!r}, this sampler {getattr(self, name)!r}: build it with the former")
        self._current, self._repeats, self._position = state["current"], state["repeats"], state["position"]
        self._epoch_seed, self._top = state["epoch_seed"], state["top"]
        if self._epoch_seed is not None:
            self._permutation = self._permuted(self._epoch_seed)
        if self.order == "priority":
            self._seen[:] = False
            self._seen[state["reported"]] = True
            leaves = np.full(self.num_prompts, self._top or 1.0)
            leaves[state["reported"]] = state["scaled"]
            self._tree = SumTree(leaves)

    def _next(self, generator: np.random.Generator) -> int:
        if self.order == "random":
            return int(generator.integers(self.num_prompts))
        if self._tree is not None:
            if not 0 < self._tree.total < np.inf:
                raise ValueError(f"the priorities add up to {self._tree.total}: keep at least one above 0, and all small enough to add")
            return self._tree.find(generator.random() * self._tree.total)
        position = self._position % self.num_prompts
        if self.order == "sequential":
            self._position += 1
            return position
        if position == 0:  # a seed, so that a checkpoint holds one number and not the permutation
            self._epoch_seed = int(generator.integers(2**63))
            self._permutation = self._permuted(self._epoch_seed)
        self._position = position + 1
        return int(self._permutation[position])

    def _permuted(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).permutation(self.num_prompts)


class SumTree:
    """Numbers in the leaves of a binary tree whose nodes hold the sum of their children.

    Finding and changing one of n numbers takes O(log n).  Sums are always computed from the two children, never adjusted
    by a difference, so that no rounding error builds up and equal leaves have equal sums, bit for bit.

    Args:
        values: The numbers, shape (n,), not negative.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._size = len(values)
        self._width = 1 << (self._size - 1).bit_length()  # leaves, a power of two
        self._nodes = np.zeros(2 * self._width)  # node i has children 2i and 2i + 1; the root is 1
        self.update(np.arange(self._size), values)

    @property
    def leaves(self) -> np.ndarray:
        """The numbers, shape (n,)."""
        return self._nodes[self._width : self._width + self._size]

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self._nodes[1])

    def update(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set some of the numbers; the last one holds where an index is named twice."""
        nodes = np.asarray(indices, np.int64) + self._width
        self._nodes[nodes] = values
        while len(nodes) and nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, mass: float) -> int:
        """Return the first leaf whose cumulative sum exceeds `mass`, in [0, total); never one that holds 0."""
        node = 1
        while node < self._width:
            left, right = self._nodes[2 * node : 2 * node + 2].tolist()
            node *= 2
            if mass >= left and right > 0:  # rounding may leave more mass than the right side holds, but never send it to zeros
                mass -= left
                node += 1
        return node - self._width


def _checked_weights(weights: Any, num_prompts: int) -> np.ndarray:
    values = np.asarray(weights, np.float64)
    if values.shape != (num_prompts,):
        raise ValueError(f"weights have shape {values.shape}: pass one for each of {num_prompts} prompts")
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"weights[{row}] is {values[row]}: every weight must be finite and at least 0")
    with np.errstate(over="ignore"):
        total = float(values.sum())
    if not 0 < total < np.inf:
        raise ValueError(f"the weights add up to {total}: at least one must be above 0, and all small enough to add")
    return values
