"""The gold annotator of the review task: a known taste, and noisy comparisons made with it.

The utility of a response, for any text whatever, is

    SENTIMENT * s + SPECIFICITY * c + POLITENESS * p - REPETITION * r + COHERENCE * (h - 1) + OFFSET

where s in (-1, 1) saturates after about two words of praise or blame, c in [0, 1] counts distinct concrete terms up to
`ENOUGH_CONCRETE`, p in [-1, 1] weighs courtesies against insults, r in [0, 4] counts repetitions and h in [0, 1] is the
share of word order that the grammar could have produced. Over the grammar's own reviews the utility has mean 0 and
standard deviation 1, about.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .coherence import coherence
from .lexicon import Unit, parse, polarity, split_words
from .repetition import count_repeats

SENTIMENT = 0.85
SPECIFICITY = 1.2
POLITENESS = 0.5
REPETITION = 0.8
COHERENCE = 4.0
OFFSET = -0.3

INTENSIFIED = 1.3
TONED_DOWN = 0.6
NEGATED = -0.8  # "not gripping" is a weaker reproach than "dull" of the same grade
ENOUGH_CONCRETE = 4
REPEATS_PER_POINT, MAX_REPETITION = 3, 4.0
DEFAULT_TEMPERATURE = 0.43  # then the best possible accuracy on random pairs of reviews is about 0.85

_DEGREE = {"intensifier": INTENSIFIED, "downtoner": TONED_DOWN}
_NEGATIONS = frozenset(("negation", "reversal"))
_CLAUSE_ENDS = frozenset(", . ! ? ; : and but or though while yet because since".split())
_CONCRETE = frozenset("craft crafts scene setting city genre nation companion role act object first surname".split())
_COURTESY = {"polite": 1.0, "polite_tail": 1.0, "rude": -1.0, "rude_tail": -1.0, "rude_who": -1.0}


@dataclass(frozen=True)
class Attributes:
    """What the annotator sees in a response.

    Attributes:
        sentiment: From -1 to 1, saturating.
        specificity: From 0 to 1, the share of `ENOUGH_CONCRETE` distinct names, crafts, scenes and the like.
        politeness: -1 (an insult), 0 or 1 (a courtesy).
        repetition: From 0 to `MAX_REPETITION`.
        coherence: From 0 to 1, the share of familiar word order.
    """

    sentiment: float
    specificity: float
    politeness: float
    repetition: float
    coherence: float

    @property
    def utility(self) -> float:
        """The gold utility: the weighted sum in the module's docstring."""
        return (
            SENTIMENT * self.sentiment
            + SPECIFICITY * self.specificity
            + POLITENESS * self.politeness
            - REPETITION * self.repetition
            + COHERENCE * (self.coherence - 1)
            + OFFSET
        )


def attributes(prompt: str, response: str) -> Attributes:
    """Read one text.

    Args:
        prompt: The opening. It is only the context of the response's first words: it earns nothing itself.
        response: Any text, in any state of grammar; it may be empty.

    Returns:
        The attributes of the response.
    """
    tokens = split_words(response)
    units = parse(tokens)
    concrete = {unit.phrase for unit in units if unit.category in _CONCRETE}
    return Attributes(
        sentiment=math.tanh(_polarity_sum(units)),
        specificity=min(len(concrete) / ENOUGH_CONCRETE, 1.0),
        politeness=max(-1.0, min(1.0, sum((_COURTESY.get(unit.category, 0.0) for unit in units), 0.0))),
        repetition=min(count_repeats(tokens) / REPEATS_PER_POINT, MAX_REPETITION),
        coherence=coherence(parse(split_words(prompt)), units),
    )


def gold_score(prompts: Sequence[str], responses: Sequence[str]) -> npt.NDArray[np.float64]:
    """The true utility of each response.

    Args:
        prompts: N openings.
        responses: N continuations.

    Returns:
        N utilities; every one is finite.

    Raises:
        ValueError: If the numbers of prompts and responses differ.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses: give one prompt per response")
    return np.array([attributes(p, r).utility for p, r in zip(prompts, responses, strict=True)], dtype=np.float64)


class SimulatedAnnotator:
    """Compares texts by their gold utility with Boltzmann noise (Bradley and Terry 1952).

    Args:
        rng: The source of the noise.
        temperature: The utility difference at which the odds for the better text are e to 1. The default makes
            0.85 the best accuracy that any model can reach on random pairs of reviews.

    Raises:
        ValueError: If the temperature is not a positive finite number.
    """

    def __init__(self, rng: np.random.Generator, temperature: float = DEFAULT_TEMPERATURE) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature}: it must be positive and finite; use 1e-6 for no noise")
        self.temperature = temperature
        self._rng = rng

    def probability(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> npt.NDArray[np.float64]:
        """Probability that b is preferred to a: sigmoid((u_b - u_a) / temperature), of shape (N,)."""
        margin = (gold_score(prompts, b) - gold_score(prompts, a)) / self.temperature
        return 0.5 * (1 + np.tanh(margin / 2))  # the sigmoid without overflow

    def compare(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> npt.NDArray[np.int64]:
        """Draw one noisy preference per pair: 0 where a is preferred, 1 where b is; of shape (N,)."""
        p = self.probability(prompts, a, b)
        return (self._rng.random(len(p)) < p).astype(np.int64)

    def best_accuracy(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> float:
        """The highest accuracy that any model can expect on these pairs under this noise: the mean of max(p, 1 - p)."""
        p = self.probability(prompts, a, b)
        if not len(p):
            raise ValueError("there are 0 pairs, so accuracy is undefined: give at least one pair")
        return float(np.maximum(p, 1 - p).mean())


def _polarity_sum(units: Sequence[Unit]) -> float:
    """Add up graded polarity; a degree word holds for the next polar word, a negation to the end of its clause."""
    grades = polarity()
    total, degree, negated = 0.0, 1.0, False
    for unit in units:
        category = unit.category
        if category in grades:
            total += grades[category] * degree * (NEGATED if negated else 1.0)
            degree = 1.0
        elif category in _NEGATIONS:
            negated = True
        elif category in _CLAUSE_ENDS:
            degree, negated = 1.0, False
        else:
            degree = _DEGREE.get(category, degree)
    return total
