"""A reward model changed: clipped, cut at a threshold, normalised, or freed from what the length alone explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reader import read_prompts
from textrl_env.prompts.reward_needs import see_prompts
from textrl_env.reward_model import as_reward_model, terms_of, valid_scores

from ..utils.base_reward import BaseReward
from .combine import pass_on_begin, refuse_dense, state_of

Reference = str | Path | Sequence[Episode]


class Transform(BaseReward):
    """What all transforms share.

    Args:
        reward: The reward model that is changed; anything that an environment takes.

    Attributes:
        last_terms: `raw`, its scores of the last batch, shape (n,), NaN where it did not apply, and its own terms.
    """

    name = "transform"

    def __init__(self, reward: Any) -> None:
        self.reward = as_reward_model(reward)
        self.last_terms: dict[str, np.ndarray] = {}
        refuse_dense(self.reward, self.name)
        pass_on_begin(self, [self.reward])

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if the reward model inside cannot score texts of these prompts."""
        see_prompts(self.reward, prompts, num_rows)

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return one score per episode, in order; None where the reward model does not apply."""
        raw = valid_scores(self.reward, episodes, optional=True)
        self.last_terms = {"raw": raw, **terms_of(self.reward, len(episodes))}
        scores = np.ma.masked_invalid(raw)
        applies = np.flatnonzero(~np.isnan(raw))
        scores[applies] = self._changed(raw[applies], [episodes[i] for i in applies.tolist()])
        return scores.tolist()  # None where masked

    def _changed(self, raw: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """Return what changes while texts are scored, as plain data."""
        return {"reward": state_of(self.reward)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Undo `get_state`."""
        if state["reward"] is not None:
            self.reward.set_state(state["reward"])  # type: ignore[attr-defined]  # it had one

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reward!r})"


class ClipReward(Transform):
    """Scores cut to [low, high].

    Raises:
        ValueError: `low` is not below `high`.
    """

    name = "clip"

    def __init__(self, reward: Any, low: float = -math.inf, high: float = math.inf) -> None:
        super().__init__(reward)
        if not low < high:
            raise ValueError(f"clip: low={low} must be below high={high}")
        self.low, self.high = low, high

    def _changed(self, raw: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
        return raw.clip(self.low, self.high)


class ThresholdReward(Transform):
    """1 where the score reaches `at`, else 0.

    Raises:
        ValueError: `at` is no finite number.
    """

    name = "threshold"

    def __init__(self, reward: Any, at: float) -> None:
        super().__init__(reward)
        if not math.isfinite(at):
            raise ValueError(f"threshold: at={at} must be a finite number")
        self.at = at

    def _changed(self, raw: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
        return (raw >= self.at).astype(np.float64)


class NormalizedReward(Transform):
    """Scores with mean 0 and variance 1, over reference texts or, without any, over all texts scored so far.

    With reference texts, best a few hundred of the base policy, the scale is fixed (Ziegler et al. 2019).  The running one moves as the
    policy improves, so that a gain in score does not show in the normalised one: read `reward/raw`.

    Args:
        reward: The reward model.
        reference: A file of texts (`prompt` and `response`, .jsonl, .csv or .parquet), or episodes; None for a running normalisation.

    Attributes:
        count: Texts that mean and variance come from.
        mean: Their mean score.
        variance: Their variance, that of the population.

    Raises:
        ValueError: The reference texts are fewer than two, or all score the same.
    """

    name = "normalize"

    def __init__(self, reward: Any, reference: Reference | None = None) -> None:
        super().__init__(reward)
        self.count, self.mean, self.variance = 0, 0.0, 0.0
        self._running = reference is None
        if reference is not None:
            scores = _reference_scores(self, reference)[1]
            self.count, self.mean, self.variance = len(scores), float(scores.mean()), float(scores.var())

    def _changed(self, raw: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
        if self._running and len(raw):
            self._add(raw)
        # before two texts differ there is no scale yet; 1 keeps the difference from the mean
        return (raw - self.mean) / (math.sqrt(self.variance) if self.variance > 1e-12 else 1.0)

    def _add(self, raw: np.ndarray) -> None:
        """Take a batch into mean and variance (Chan et al. 1979)."""
        n, m = self.count, len(raw)
        gap = float(raw.mean()) - self.mean
        self.mean += gap * m / (n + m)
        self.variance = (n * self.variance + m * float(raw.var()) + gap**2 * n * m / (n + m)) / (n + m)
        self.count = n + m

    def get_state(self) -> dict[str, Any]:
        """Return count, mean and variance, and the state of the reward model."""
        return {**super().get_state(), "count": self.count, "mean": self.mean, "variance": self.variance}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Undo `get_state`."""
        super().set_state(state)
        self.count, self.mean, self.variance = int(state["count"]), float(state["mean"]), float(state["variance"])


class DebiasLengthReward(Transform):
    """What the length of the response does not explain: score - slope * (length - mean length), length in tokens, else in words.

    The slope is that of the least-squares line through the reference texts' scores, so that on them the new scores do not correlate
    with the length and their mean stays (Singhal et al. 2024 show how much of learned rewards is length).

    Args:
        reward: The reward model.
        reference: A file of texts (`prompt` and `response`), whose lengths are counted in words, or episodes of the base policy.

    Attributes:
        slope: Score that one more token, or word, brought.
        mean_length: Of the reference texts.

    Raises:
        ValueError: The reference texts are fewer than two, all score the same, or all have the same length.
    """

    name = "debias_length"

    def __init__(self, reward: Any, reference: Reference) -> None:
        super().__init__(reward)
        episodes, scores = _reference_scores(self, reference)
        self._in_tokens = all(len(e.response_ids) for e in episodes)
        lengths = self._lengths(episodes)
        if not np.ptp(lengths):
            raise ValueError(f"debias_length: all {len(lengths)} reference texts have the length {lengths[0]:g}: give texts that differ")
        self.mean_length = float(lengths.mean())
        self.slope = float(np.cov(lengths, scores, bias=True)[0, 1] / lengths.var())

    def _changed(self, raw: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
        return raw - self.slope * (self._lengths(episodes) - self.mean_length)

    def _lengths(self, episodes: Sequence[Episode]) -> np.ndarray:
        return np.array([len(e.response_ids) if self._in_tokens else len(e.response.split()) for e in episodes], np.float64)


def _reference_scores(transform: Transform, reference: Reference) -> tuple[list[Episode], np.ndarray]:
    name = transform.name
    if isinstance(reference, (str, Path)):
        rows = read_prompts(reference)
        texts = [(row.text, row.metadata.get("response")) for row in (rows[i] for i in range(len(rows)))]
        bad = next((i for i, (_, response) in enumerate(texts) if not isinstance(response, str)), None)
        if bad is not None:
            raise ValueError(f"{name}: {reference}, row {bad + 1} has no text in the column 'response'")
        episodes = [Episode.from_text(prompt, response) for prompt, response in texts if isinstance(response, str)]
    else:
        episodes = [*reference]
    if len(episodes) < 2:
        raise ValueError(f"{name}: got {len(episodes)} reference text(s): give at least 2, better a few hundred")
    scores = valid_scores(transform.reward, episodes)
    if not np.ptp(scores):
        raise ValueError(f"{name}: the {len(episodes)} reference texts all score {scores[0]:g}: give texts that differ")
    return episodes, scores
