"""Models of people who compare texts: how far they follow their taste, and what else sways them.

With utilities u of the two texts, an annotator prefers the first one shown with probability

    p = sigmoid((u_first - u_second + position_bias) / (temperature * (1 + fatigue * i)))

where i counts the comparisons of this sitting (Bradley and Terry 1952, with Boltzmann noise).  With probability `flip` the answer is
then flipped, and a difference of less than `tie` is a tie.  Every answer follows from the seed, the name and the comparison
alone, fatigue apart, so that asking again, or in another order, gives the same answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .preference import Preference

Utility = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # of (prompts, responses), shape (N,)
Comparison = tuple[str, str, str]  # prompt, the response shown first, the one shown second


@dataclass(frozen=True)
class Annotator:
    """Somebody who compares.

    Attributes:
        utility: Their taste.
        temperature: Difference in utility at which the odds are e to 1, > 0.
        flip: Share of answers that are flipped, in [0, 0.5].
        position_bias: Utility that being shown first is worth.
        fatigue: How much the temperature grows with each comparison of a sitting, >= 0.
        tie: Differences in utility below this are ties.
        name: Who it is.
        group: Whom they belong to.
        seed: Of the noise.

    Raises:
        ValueError: A number is out of range.
    """

    utility: Utility
    temperature: float = 1.0
    flip: float = 0.0
    position_bias: float = 0.0
    fatigue: float = 0.0
    tie: float = 0.0
    name: str = "annotator"
    group: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be positive and finite; 1e-6 means no noise")
        if not 0 <= self.flip <= 0.5:
            raise ValueError(f"flip={self.flip} must be in [0, 0.5]: beyond one half it would be a taste of its own")
        if not (self.fatigue >= 0 and self.tie >= 0 and math.isfinite(self.position_bias)):
            raise ValueError(f"fatigue={self.fatigue}, tie={self.tie}, position_bias={self.position_bias}: at least 0, at least 0, finite")

    def probabilities(self, comparisons: Sequence[Comparison]) -> np.ndarray:
        """Return the probability that the first response is preferred, for the comparisons of one sitting, shape (N,); 0.5 for ties."""
        difference = self._difference(comparisons)
        spread = self.temperature * (1 + self.fatigue * np.arange(len(comparisons)))
        first = 0.5 * (1 + np.tanh((difference + self.position_bias) / spread / 2))  # the sigmoid without overflow
        return np.where(np.abs(difference) < self.tie, 0.5, (1 - self.flip) * first + self.flip * (1 - first))

    def compare(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """Return what is preferred in each comparison of one sitting; ties have label 0.5."""
        chances, ties = self.probabilities(comparisons), np.abs(self._difference(comparisons)) < self.tie
        answers = []
        for (prompt, first, second), chance, tie in zip(comparisons, chances, ties, strict=True):
            chosen, rejected = (first, second) if tie or self._lot(prompt, first, second) < chance else (second, first)
            answers.append(Preference(prompt, chosen, rejected, 0.5 if tie else 1.0, annotator=self.name, group=self.group))
        return answers

    def _difference(self, comparisons: Sequence[Comparison]) -> np.ndarray:
        prompts, first, second = ([c[i] for c in comparisons] for i in range(3))
        return np.asarray(self.utility(prompts, first), float) - np.asarray(self.utility(prompts, second), float)

    def _lot(self, *parts: str) -> float:
        """Return a number in [0, 1) that nobody can foresee and everybody can repeat."""
        text = "\0".join((str(self.seed), self.name, *parts))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
