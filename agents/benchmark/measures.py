"""The measures of a run: those of an agent's test texts, and its learning curve."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np

from rewards.metrics.diversity import distinct_n
from rewards.utils.intervals import win_rate
from textrl_env import Episode, TextTask
from textrl_env.tasks.exact import BETA, ExactReward

from ..evaluation.exact_optimum import Gap, optimality_gap
from ..evaluation.policy_texts import WrittenTexts
from ..models.backbones import backbone_of
from ..models.loading import frozen, load_lm
from .agents import TrainedAgent


def measures_of(test: TextTask, texts: WrittenTexts, base: dict[str, Any], trained: TrainedAgent) -> dict[str, Any]:
    """Return every measure of a cell; None is what cannot be measured.

    Args:
        test: What was learned, with the prompts of the test split; some tasks know the answers to their own prompts only.
        texts: What the agent wrote on them.
        base: What the preparation of the task found.
        trained: The agent.
    """
    each, length = score_each(test, texts), float(texts.lengths.mean())
    value, gap = value_of(test, texts, base["base"], trained)
    kl_exact, of_best_score = None if gap is None else gap.achieved.kl, None
    if gap is not None and gap.best_score - gap.reference > 1e-6:  # at no KL at all nothing can be gained
        of_best_score = gap.of_best_score
    written = _against_references(test, texts, each)
    return {
        "value": value, "reference_value": base["value"], "optimum": base["optimum"],
        "reward": float(texts.scores.mean()), "gold": float(each.mean()) if test.gold is not None else None,
        "kl_per_sequence": texts.kl_per_sequence, "kl_per_token": texts.kl_per_sequence / max(length, 1e-9), "kl_exact": kl_exact,
        "of_best_score": of_best_score,
        "wins_reference": win_rate(each, np.array(base["gold"])).rate, "wins_texts": written,
        "distinct_1": distinct_n(texts.responses, 1), "distinct_2": distinct_n(texts.responses, 2),
        "self_bleu": _self_bleu(texts), "entropy": texts.entropy, "perplexity": texts.perplexity, "length": length,
        "write_tokens_per_second": texts.tokens_per_second,
    }  # fmt: skip


def value_of(test: TextTask, texts: WrittenTexts, base: str, trained: TrainedAgent) -> tuple[float | None, Gap | None]:
    """Return the value by which an agent is judged, and on an exact task what enumeration finds of a policy.

    An agent of one's own has no value on exact tasks, since its KL is not known.

    Args:
        test: What was learned, with the prompts that it is judged on.
        texts: What the agent wrote on them.
        base: Folder of the base policy, which on exact tasks KL is measured against.
        trained: The agent.
    """
    value, exact = judged(test, texts), exact_name(test)
    if exact is None:
        return value, None
    if trained.policy is None:  # the KL of best-of-n is estimated
        return (None if math.isnan(texts.kl_per_sequence) else value - BETA * texts.kl_per_sequence), None
    reference = backbone_of(frozen(load_lm(base)).to(trained.policy.device))
    gap = optimality_gap(trained.policy.backbone, reference, exact, BETA)
    return gap.achieved.objective, gap


class LearningCurve:
    """Records reward and score of the texts that an agent writes while it learns, a row for each rollout.

    Attributes:
        rows: Tokens and seconds so far, mean reward, normalised score (None where the task has none) and KL.
        watched: Seconds that recording took.
    """

    def __init__(self, task: TextTask, base: dict[str, Any]) -> None:
        self.task, self.base = task, base
        self.rows: list[dict[str, Any]] = []
        self.began, self.watched = perf_counter(), 0.0

    def __call__(self, tokens: int, finished: list[dict[str, Any]], kl: float) -> None:
        """Record a rollout: tokens so far, infos of its finished texts, KL per text."""
        now = perf_counter()
        reward = float(np.mean([info["score"] for info in finished]))
        score = None
        if exact_name(self.task) is not None:
            score = normalised(reward - BETA * kl, self.base)
        elif self.task.measure is not None or self.task.gold is not None:
            score = normalised(_judged(self.task, [i["prompt"] for i in finished], [i["response"] for i in finished]), self.base)
        self.rows.append({"tokens": tokens, "seconds": now - self.began - self.watched, "reward": reward, "score": score, "kl": kl})
        self.watched += perf_counter() - now


def _judged(task: TextTask, prompts: list[str], responses: list[str]) -> float:
    if task.measure is not None:
        return float(task.measure(prompts, responses))
    assert task.gold is not None
    return float(np.mean(task.gold(prompts, responses)))


def judged(task: TextTask, texts: WrittenTexts) -> float:
    """Return the value by which an agent is judged: the task's own measure or mean gold score, or else the mean reward."""
    if task.measure is None and task.gold is None:
        return float(texts.scores.mean())
    return _judged(task, texts.prompts, texts.responses)


def score_each(task: TextTask, texts: WrittenTexts) -> np.ndarray:
    """Return the gold score, or where there is none the reward, of each text, shape (N,)."""
    return texts.scores if task.gold is None else np.asarray(task.gold(texts.prompts, texts.responses), float)


def normalised(value: float, base: dict[str, Any]) -> float:
    """Return a value on the scale where the base policy is 0 and the optimum 1; without a known optimum, the gain over the base policy."""
    gained = value - base["value"]
    return gained if base["optimum"] is None else gained / (base["optimum"] - base["value"])


def _against_references(test: TextTask, texts: WrittenTexts, each: np.ndarray) -> float | None:
    """Return how often the texts win against the first reference of their prompts, if there are any."""
    rows = [test.prompts[i % len(test.prompts)] for i in range(len(texts.prompts))]
    by_text = {row.text: row for row in rows if row.references}
    if test.gold is None or not all(prompt in by_text for prompt in texts.prompts):
        return None
    theirs = test.gold(texts.prompts, [f" {by_text[prompt].references[0]}" for prompt in texts.prompts])
    return win_rate(each, np.asarray(theirs, float)).rate


def _self_bleu(texts: WrittenTexts) -> float | None:
    """Return the mean BLEU of the first hundred texts against each other; None without sacrebleu."""
    from rewards.metrics.diversity import SelfBleuReward

    try:
        reward = SelfBleuReward()
    except ImportError:
        return None
    some = [Episode.from_text(p, r) for p, r in zip(texts.prompts[:100], texts.responses[:100], strict=True)]
    return 1 - float(np.mean(reward.score(some)))


def exact_name(task: TextTask) -> str | None:
    """Return the name of an exact task, whose optimum can be enumerated; None for any other."""
    return task.reward.task.name if isinstance(task.reward, ExactReward) else None
