"""Strengths of policies or checkpoints, estimated from comparisons of their texts with Bradley and Terry's model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

from .preference import names

# Two players, the share of the win that the first has, in [0, 1], and the pair of texts, if several games may be of one
Game = tuple[str, str, float] | tuple[str, str, float, Hashable]


@dataclass(frozen=True)
class Strength:
    """How strong a player is.

    Attributes:
        player: Name.
        strength: Log-odds of a win against the average player.
        low: Lower end of the 95% interval.
        high: Upper end.
        games: Pairs of texts that were compared.
    """

    player: str
    strength: float
    low: float
    high: float
    games: int


def tournament(games: Sequence[Game], samples: int = 1000, seed: int = 0, prior: float = 0.1) -> list[Strength]:
    """Rank players by P(i beats j) = sigmoid(s_i - s_j), the strengths adding to 0 (Bradley and Terry 1952); ties are half a win.

    Intervals are percentiles of the bootstrap over pairs of texts: a text that several players wrote is in several games of one outcome.

    Args:
        games: Of at least two players; several answers to one pair are not independent, see `games_of`.
        samples: Of the bootstrap.
        seed: Of the bootstrap.
        prior: Precision of a normal prior on strengths, so that who always wins stays finite.

    Raises:
        ValueError: There are no games, or an outcome is not in [0, 1].
    """
    players = sorted({player for game in games for player in game[:2]})
    if len(players) < 2:
        raise ValueError(f"{len(games)} comparisons between {len(players)} sources: a ranking needs comparisons between at least two")
    if not all(0 <= game[2] <= 1 for game in games):
        raise ValueError("an outcome is the share of the win that the first player has, in [0, 1]")
    index = {player: i for i, player in enumerate(players)}
    first, second = (np.array([index[game[i]] for game in games]) for i in (0, 1))  # type: ignore[index]
    wins = np.zeros((len(players), len(players)))  # (P, P)
    np.add.at(wins, (first, second), [game[2] for game in games])
    np.add.at(wins, (second, first), [1 - game[2] for game in games])
    best = _fit(wins, prior)
    rng = np.random.default_rng(seed)
    outcomes = np.array([game[2] for game in games])
    numbers: dict[Hashable, int] = {}
    pair = np.array([numbers.setdefault(game[3] if len(game) > 3 else (None, i), len(numbers)) for i, game in enumerate(games)])
    draws = np.empty((samples, len(players)))  # (samples, P)
    for draw in draws:
        times = np.bincount(rng.integers(len(numbers), size=len(numbers)), minlength=len(numbers))[pair]  # of each game
        again = np.zeros_like(wins)
        np.add.at(again, (first, second), times * outcomes)
        np.add.at(again, (second, first), times * (1 - outcomes))
        draw[:] = _fit(again, prior, best)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)  # (P,) each
    count = [len({int(k) for k in pair[(first == i) | (second == i)]}) for i in range(len(players))]
    strengths = [Strength(p, float(best[i]), float(low[i]), float(high[i]), count[i]) for i, p in enumerate(players)]
    return sorted(strengths, key=lambda s: -s.strength)


def games_of(answers: Iterable[tuple[Hashable, Sequence[str | Sequence[str]], Mapping[str, object]]]) -> list[Game]:
    """Return the games in answers to pairs: one for each pair and two of its sources, with the mean share of the answers.

    Args:
        answers: As (pair, sources, value), where `pair` is the same for all answers to one pair, such as its number, and `sources` has for
            each response who wrote it, one name or several.  Both bad counts as a tie; the same source twice is no game.
    """
    shares = {"a": 1.0, "b": 0.0, "tie": 0.5, "bad": 0.5}
    found: dict[tuple[Hashable, str, str], list[float]] = defaultdict(list)
    for pair, sources, value in answers:
        if "choice" not in value or len(sources) != 2:
            continue
        share = shares[str(value["choice"])]
        for x, y in product(*map(names, sources)):
            if x != y:
                found[pair, min(x, y), max(x, y)].append(share if x < y else 1 - share)
    return [(first, second, sum(own) / len(own), pair) for (pair, first, second), own in found.items()]


def _fit(wins: np.ndarray, prior: float, start: np.ndarray | None = None) -> np.ndarray:
    def loss(strength: np.ndarray) -> tuple[float, np.ndarray]:
        margin = strength[:, None] - strength  # (P, P)
        lost = 0.5 * (1 - np.tanh(margin / 2))  # probability of losing
        flow = wins * lost
        value = (wins * np.logaddexp(0, -margin)).sum() + 0.5 * prior * (strength**2).sum()
        return float(value), -(flow.sum(1) - flow.sum(0)) + prior * strength

    strengths = minimize(loss, np.zeros(len(wins)) if start is None else start, jac=True, method="L-BFGS-B").x
    return strengths - strengths.mean()
