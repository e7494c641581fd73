"""A check of a reward model before anything is trained against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.reward_model import RewardError, RewardModel, as_reward_model, scorer_of, valid_scores
from textrl_env.reward_warnings import length_correlation, response_length, scores_flaws, stop_watching, warn_of

_LEAST = 8  # episodes
_SAME = 0.1  # of the scores' deviation: what a batch's padding may change in half precision; a wrong order changes far more


@dataclass(frozen=True)
class RewardCheck:
    """What `check` found.

    Attributes:
        scores: Scores of the episodes, shape (n,).
        deterministic: Whether the same batch scores the same a second time, to a tenth of the scores' deviation.
        length_correlation: Pearson's, of scores and response lengths; 0 where either is constant.
        uses_prompt: Whether scores change with the prompts; None where that cannot be told: a model that is not deterministic, or
            prompts that do not differ.
    """

    __module__ = "rewards"

    scores: np.ndarray
    deterministic: bool
    length_correlation: float
    uses_prompt: bool | None


def check(reward: Any, episodes: Sequence[Episode], seed: int = 0) -> RewardCheck:
    """Look for the mistakes that a reward model makes in silence, by scoring the episodes four times.

    They are scored twice as they are, once in another order, and once with their prompts (references and metadata with them)
    exchanged.  Scores that do not follow the episodes into the other order are an error.  Warnings (`RewardWarning`) say that the model is
    `"random"` (then order and prompts cannot be checked), `"constant"`, follows the `"length"` of the response (correlation beyond 0.9),
    or ignores the `"prompt"`.  A model that means one of them names it in its attribute `by_design`, a tuple of these words; a
    function may have that attribute too.

    `checked_scores`, and so every environment, looks for a constant reward and for the length by itself, in the first 64 texts of a model
    that was not checked here.

    Args:
        reward: Anything that an environment takes as its reward.
        episodes: Finished texts that differ, at least 8, better 64 from the policy that will be trained.
        seed: Of the other order.

    Raises:
        RewardError: Scores depend on the place in the batch, or are no finite numbers, one for each episode.
        ValueError: There are fewer than 8 episodes.
    """
    if len(episodes) < _LEAST:
        raise ValueError(f"check got {len(episodes)} episode(s): give at least {_LEAST}, better 64")
    model = as_reward_model(reward)
    scorer = scorer_of(model)
    stop_watching(scorer)
    scores = valid_scores(model, episodes)
    lengths = np.array([response_length(e) for e in episodes])
    noise = float(np.abs(valid_scores(model, episodes) - scores).max())
    deterministic = noise <= _SAME * scores.std()
    uses_prompt = None
    if deterministic:
        _check_order(model, episodes, scores, np.random.default_rng(seed).permutation(len(episodes)))
        uses_prompt = _uses_prompt(model, episodes, scores, noise)
    warn_of([*scores_flaws(scores, lengths), *_further_flaws(deterministic, uses_prompt, scores)], scorer, model)
    return RewardCheck(scores, deterministic, length_correlation(scores, lengths), uses_prompt)


def _check_order(model: RewardModel, episodes: Sequence[Episode], scores: np.ndarray, order: np.ndarray) -> None:
    shuffled = valid_scores(model, [episodes[i] for i in order])
    changes = np.abs(scores[order] - shuffled)
    place = int(changes.argmax())
    if changes[place] > _SAME * scores.std():
        at = int(order[place])
        raise RewardError(
            f"{model!r} scores by the place in the batch: it gave {episodes[at].response[:100]!r} {scores[at]:g} in place {at} and "
            f"{shuffled[place]:g} in place {place}; return the scores in the order of the episodes, undoing any sorting"
        )


def _uses_prompt(model: RewardModel, episodes: Sequence[Episode], scores: np.ndarray, noise: float) -> bool | None:
    """Return whether scores change by more than `noise` where an episode gets a prompt that differs from its own."""
    exchanged = [_with_prompt_of(e, other) for e, other in zip(episodes, _partners(episodes), strict=True)]
    if all(new is old for new, old in zip(exchanged, episodes, strict=True)) or np.ptp(scores) == 0:
        return None
    return bool(np.abs(valid_scores(model, exchanged) - scores).max() > 1e-6 * scores.std() + 3 * noise)


def _partners(episodes: Sequence[Episode]) -> Iterator[Episode]:
    """Yield for each episode the next one, starting over, whose prompt differs; itself if none does."""
    for i, episode in enumerate(episodes):
        after = [*episodes[i + 1 :], *episodes[:i]]
        yield next((other for other in after if other.prompt != episode.prompt), episode)


def _with_prompt_of(episode: Episode, other: Episode) -> Episode:
    if other is episode:
        return episode
    return replace(
        episode, prompt=other.prompt, prompt_ids=other.prompt_ids, references=other.references, metadata=other.metadata, typed=other.typed
    )


def _further_flaws(deterministic: bool, uses_prompt: bool | None, scores: np.ndarray) -> Iterator[tuple[str, str]]:
    if not deterministic:
        yield (
            "random",
            "scores the same texts differently from call to call: whether it keeps their order and reads prompts cannot be told",
        )
    if uses_prompt is False:
        yield "prompt", f"gave {len(scores)} texts the same scores when their prompts were exchanged: it does not read the prompt"
