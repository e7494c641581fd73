"""One vocabulary of metric names for all algorithms.

`objective/` is what is maximised, `kl/` the distance to the reference, `policy/` and `value/` the updates of either, `tokens/` the
texts themselves, `generator/` how far a generator is from the policy, `time/` how long things took.  Stable-Baselines3's own names in
`train/` are put into it; its `rollout/` and `time/` stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stable_baselines3.common.logger import Logger

from ...distributed.ranks import Ranks, combined
from ...models.backbones import Backbone
from ...rollouts.rollout_samples import RolloutResult

_NAMES: Mapping[str, str] = {
    "loss": "objective/loss",
    "approx_kl": "policy/approx_kl",
    "kl_divergence_loss": "policy/approx_kl",  # TRPO's, of the same two policies
    "policy_gradient_loss": "policy/loss",
    "policy_loss": "policy/loss",
    "policy_objective": "policy/objective",
    "entropy_loss": "policy/entropy_loss",
    "clip_fraction": "policy/clip_fraction",
    "clip_range": "policy/clip_range",
    "learning_rate": "policy/learning_rate",
    "is_line_search_success": "policy/line_search_success",
    "value_loss": "value/loss",
    "explained_variance": "value/explained_variance",
    "clip_range_vf": "value/clip_range",
    "kl_loss": "kl/loss",
    "n_updates": "time/updates",
}


def rename(logger: Logger) -> None:
    """Rename what Stable-Baselines3 recorded under `train/`."""
    for name in [name for name in logger.name_to_value if name.startswith("train/")]:
        value, excluded = logger.name_to_value.pop(name), logger.name_to_excluded.pop(name, ())
        short = name.removeprefix("train/")
        logger.record(_NAMES.get(short, f"policy/{short}"), value, excluded)


def record_rollout(logger: Logger, rollout: RolloutResult, ranks: Ranks) -> None:
    """Record the numbers of a rollout.

    Args:
        logger: SB3's.
        rollout: What was written; of several ranks, by this one.
        ranks: Those whose texts are counted.
    """
    stats, record = rollout.stats, logger.record
    reasons = Counter(f"tokens/finished_by_{info['finish_reason']}" for info in rollout.infos)
    writing = rollout.seconds - stats.reference_seconds
    record("objective/score", stats.score)
    told = [info["reward_terms"] for info in rollout.infos if "reward_terms" in info]
    sums = combined([{f"{name}/sum": value or 0.0 for name, value in values.items()} for values in told])
    applied = combined([{f"{name}/applied": value is not None for name, value in values.items()} for values in told])
    counted = combined(ranks.gather({**reasons, **sums, **applied, "texts with terms": len(told)}))
    for name in (key.removesuffix("/sum") for key in counted if key.endswith("/sum")):
        number, texts = counted[f"{name}/applied"], counted["texts with terms"]
        if number:
            record(f"reward/{name}", counted[f"{name}/sum"] / number)
        if number < texts:
            record(f"reward_applied/{name}", number / texts)
    record("objective/shaped_return", stats.shaped_return)
    record("objective/entropy", stats.entropy)
    record("kl/per_sequence", stats.kl_per_sequence)
    record("kl/per_token", stats.kl_per_token)
    record("kl/per_token_k3", stats.kl_per_token_k3)
    record("kl/beta", stats.beta)
    if (mismatch := stats.mismatch) is not None:
        record("generator/kl", mismatch.kl)
        record("generator/kl_k3", mismatch.kl_k3)
        record("generator/effective_tokens", mismatch.effective_tokens)
        record("generator/effective_texts", mismatch.effective_texts)
        record("generator/effective_weights", mismatch.effective)
        record("generator/share_clipped", mismatch.share_clipped)
        record("generator/largest_log_ratio", mismatch.largest_log_ratio)
        record("generator/mean_weight", mismatch.sums.mean)
    record("tokens/length", stats.num_tokens / stats.num_sequences)
    named = {"tokens/finished_by_eos": 0, "tokens/finished_by_length": 0}  # that every task has
    for name, number in {**named, **{name: n for name, n in counted.items() if name.startswith("tokens/")}}.items():
        record(name, number / stats.num_sequences)
    record("time/rollout_tokens_per_second", stats.num_tokens / writing)
    record("time/rollout_seconds", writing)
    record("time/reference_tokens_per_second", stats.num_tokens / max(stats.reference_seconds, 1e-9))
    record("time/reference_seconds", stats.reference_seconds)


def record_padding(logger: Logger, backbone: Backbone, ranks: Ranks) -> None:
    """Log which share of the positions that the update's passes computed, on all ranks, held no token."""
    positions, tokens = ranks.sums(backbone.positions)
    if positions:
        logger.record("tokens/padding_share", 1 - tokens / positions)
