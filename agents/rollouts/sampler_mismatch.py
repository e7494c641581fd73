"""Tokens that something else than the policy drew: how far its distribution is from the policy's, and importance weights against that.

With mu for what drew the tokens and pi for the policy at the start of the update, the weight of a token is pi / mu, and that of a text the
product over its tokens.  The expectation of a text's weight times an update is the update of a rollout that the policy had written
itself; that of a token's weight is right in the choice of this token only, while what stands before it and comes after it stays the
generator's.  Both have expectation 1, and the largest of either are cut off, for a bias that is bounded and a variance that is finite:

* truncated importance sampling, TIS: min(w, clip_max) (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
  training"; Ionides 2008);
* masked importance sampling, MIS: w where it lies within [clip_min, clip_max], else 0 (Liu et al. 2025, "When speed kills stability");
  with tokens, clip_min=0.5 and clip_max=5 it is IcePop (Zhao et al. 2025, "Small leak can sink a great ship").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..distributed.ranks import Ranks

ImportanceSamplingMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
_LARGEST = 300.0  # of log weights, so that squares of weights are finite


@dataclass(frozen=True)
class ImportanceSampling:
    """Which importance weights the advantages are multiplied with.

    Attributes:
        mode: Whether each token or each text (the product over its tokens) has a weight, and what becomes of weights beyond the limits:
            they are set to the limit ("truncate") or to 0 ("mask"); None: there are no weights.
        clip_min: Smallest weight, at least 0.
        clip_max: Largest weight, above `clip_min`.

    Raises:
        ValueError: One of them is out of range.
    """

    mode: ImportanceSamplingMode | None = None
    clip_min: float = 0.0
    clip_max: float = 2.0

    def __post_init__(self) -> None:
        if self.mode not in (None, *get_args(ImportanceSamplingMode)):
            raise ValueError(
                f"importance_sampling_mode={self.mode!r}: must be one of {', '.join(get_args(ImportanceSamplingMode))}, or None"
            )
        if not 0 <= self.clip_min < self.clip_max:
            raise ValueError(
                f"importance_sampling_clip_min={self.clip_min}, importance_sampling_clip_max={self.clip_max}: weights are 1 where policy "
                "and generator agree; need 0 <= clip_min < clip_max, such as 0 and 2"
            )

    def check_known(self, drawn: np.ndarray | None, live: np.ndarray) -> None:
        """Insist on the log-probabilities that weights are made of.

        Args:
            drawn: See `SamplingRecord`, shape (E,).
            live: In which rows a token was written, shape (E,).

        Raises:
            ValueError: There are weights to be made, and nobody said how the tokens were drawn.
        """
        if self.mode is not None and (drawn is None or np.isnan(drawn[live]).any()):
            who = "the policy writes itself" if drawn is None else "the generator returned tokens without log-probabilities"
            raise ValueError(
                f"importance_sampling_mode={self.mode!r} corrects for what a generator drew its tokens from, and {who}: leave it out, or "
                "set a generator that returns Response(tokens, log_probs)"
            )

    def compare(self, log_ratios: np.ndarray, offsets: np.ndarray, ranks: Ranks) -> tuple[SamplerMismatch | None, np.ndarray | None]:
        """Compare what drew a rollout with the policy.

        Args:
            log_ratios: log(pi / mu) of each token of this rank, shape (N,), float64; NaN where mu is not known.
            offsets: Where each text's tokens begin, and N, shape (S + 1,).
            ranks: Which have texts of their own.

        Returns:
            How far they are apart, None if some token's mu is not known; and what the advantage of each token is multiplied with, shape
            (N,), float32, None without a mode.
        """
        if np.isnan(log_ratios).any():
            return None, None
        of_texts = np.add.reduceat(log_ratios, offsets[:-1])  # (S,)
        raw = np.exp(np.minimum(of_texts if self._per_text else log_ratios, _LARGEST))  # (S,) or (N,)
        weights = np.clip(raw, self.clip_min, self.clip_max)
        beyond = weights != raw
        mismatch = _measure(log_ratios, of_texts, beyond, ranks)
        if self.mode is None:
            return mismatch, None
        if self.mode.endswith("mask"):
            weights[beyond] = 0
        total, squares, number = ranks.sums([weights.sum(), np.square(weights).sum(), len(weights)]).tolist()
        mismatch = replace(mismatch, effective=total**2 / (number * squares) if squares else 0.0)
        return mismatch, (np.repeat(weights, np.diff(offsets)) if self._per_text else weights).astype(np.float32)

    @property
    def _per_text(self) -> bool:
        return self.mode is not None and self.mode.startswith("sequence")


class WeightSums(NamedTuple):
    """What shows whether the weights of tokens have mean 1, which they have if the generator's log-probabilities are right.

    Whatever stands before a token, its weight minus 1 has expectation 0; so weights of different tokens are uncorrelated.

    Attributes:
        number: Tokens.
        excess: Sum of their weights minus 1.
        squares: Sum of the squares of that.
        largest: Largest absolute value of that.
    """

    number: float
    excess: float
    squares: float
    largest: float

    def joined(self, other: WeightSums | None) -> WeightSums:
        """Return those of both."""
        if other is None:
            return self
        number, excess, squares = (one + two for one, two in zip(self[:3], other[:3], strict=True))
        return WeightSums(number, excess, squares, max(self.largest, other.largest))

    @property
    def mean(self) -> float:
        """Mean weight."""
        return 1 + self.excess / self.number

    @property
    def is_off(self) -> bool:
        """Whether the mean differs from 1 by more than chance and rounding.

        More than 0.001, and more than Bernstein's inequality allows at five standard errors.  Its second term counts the largest weight
        many times over: a rare token with a large weight may still be missing among few tokens.
        """
        return bool(abs(self.excess) > max(1e-3 * self.number, 5 * np.sqrt(self.squares) + 25 * self.largest))


@dataclass(frozen=True)
class SamplerMismatch:
    """How far the distribution mu that drew a rollout's N tokens is from the policy pi; where several ranks write it, of all tokens.

    Attributes:
        kl: Mean over tokens of log(mu / pi), the k1 estimate of KL(mu || pi), in nats a token.
        kl_k3: That of r - 1 - log r, r = pi / mu: the k3 estimate of the same, never negative.
        effective_tokens: Effective sample size of the tokens by their weights, as a share of them: (sum w)^2 / (N sum w^2), in (0, 1].
        effective_texts: The same of texts by theirs, the products over their tokens.
        share_clipped: Share of the weights beyond `clip_min` and `clip_max`, see `ImportanceSampling`; of tokens if there is no mode.
        largest_log_ratio: Largest |log(pi / mu)| of a token.
        sums: Of the weights of tokens, before anything is cut off.
        effective: Effective sample size of the weights that are used, as a share; 0 if all are masked, 1 if there is no mode.
    """

    kl: float
    kl_k3: float
    effective_tokens: float
    effective_texts: float
    share_clipped: float
    largest_log_ratio: float
    sums: WeightSums
    effective: float = 1.0


def _measure(log_ratios: np.ndarray, of_texts: np.ndarray, beyond: np.ndarray, ranks: Ranks) -> SamplerMismatch:
    """Make the numbers of `SamplerMismatch` of log(pi / mu) of tokens (N,) and texts (S,), and of whether weights are beyond the limits."""
    excess = np.expm1(np.minimum(log_ratios, _LARGEST))  # (N,)
    most = ranks.numbers([log_ratios.max(), of_texts.max(), np.abs(log_ratios).max(), np.abs(excess).max()]).max(0).tolist()
    tokens, texts = np.exp(log_ratios - most[0]), np.exp(of_texts - most[1])  # (N,), (S,): for shares, on a scale without overflow
    own = [len(tokens), -log_ratios.sum(), (excess - log_ratios).sum(), excess.sum(), np.square(excess).sum(), tokens.sum()]
    own += [np.square(tokens).sum(), len(texts), texts.sum(), np.square(texts).sum(), beyond.sum(), len(beyond)]
    number, k1, k3, over, squares, of_tokens, token_squares, num_texts, of_text, text_squares, clipped, weights = ranks.sums(own).tolist()
    return SamplerMismatch(
        kl=k1 / number,
        kl_k3=k3 / number,
        effective_tokens=of_tokens**2 / (number * token_squares),
        effective_texts=of_text**2 / (num_texts * text_squares),
        share_clipped=clipped / weights,
        largest_log_ratio=most[2],
        sums=WeightSums(number, over, squares, most[3]),
    )
