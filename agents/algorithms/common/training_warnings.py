"""Checks of a training: errors where no update reaches the policy, warnings where it probably goes wrong in one of the usual ways."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rewards.utils.intervals import Rate, least_fall, wilson

if TYPE_CHECKING:  # pytest imports this file for its list of warnings, and need not import torch
    from torch import nn

    from ...distributed.ranks import Ranks
    from ...policies.transformer_policy import TransformerPolicy
    from ...rollouts.rollout_buffer import SequenceRolloutBuffer
    from ...rollouts.rollout_samples import RolloutResult
    from ...rollouts.sampler_mismatch import SamplerMismatch, WeightSums


_CUTS = {"top_k": 0, "top_p": 1, "min_p": 0}  # rules of `Sampler.cuts`, and where they are off


class TrainingWarning(UserWarning):
    """A training that probably goes wrong; each cause is warned of once."""


def trainable_parameters(policy: TransformerPolicy) -> list[nn.Parameter]:
    """Return the actor's trainable parameters; the optimizer must hold them, and those of the critic.

    Raises:
        RuntimeError: It does not.
    """
    held = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in policy.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise RuntimeError(
            f"{len(missing)} trainable parameters are not in the optimizer, {missing[0]} among them: give adapters to the policy "
            "as policy_kwargs={'lora': ...}, or build the optimizer after adding them"
        )
    return policy.actor_parameters()


def check_gradients(trainable: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Check that an update left a gradient, on any rank.

    Raises:
        RuntimeError: There is none.
    """
    gradients = [p.grad for p in trainable if p.grad is not None]
    parts = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]  # of shards
    if not ranks.sums(any(bool(part.any()) for part in parts)):
        raise RuntimeError(f"no gradient reached the {len(trainable)} trainable parameters of the policy: is the model detached somewhere?")


class RolloutSymptoms(NamedTuple):
    """Numbers of a rollout that show what goes wrong.

    Attributes:
        kl: KL to the reference of each text, in nats, shape (S,).
        scores: What the environment paid for each text, shape (S,).
        entropy: Mean of -log pi per token, in nats.
        finished: Texts that ended before the length limit.
        approx_kl: Mean KL per token of the update before; None before the first.
        generated: Whether a generator wrote the texts.
        mismatch: How far it is from the policy; None if it did not say, or there is none.
        cut: The rules that cut what the policy may draw while KL has a price, such as `top_p=0.9`; empty: none.
    """

    kl: np.ndarray
    scores: np.ndarray
    entropy: float
    finished: int
    approx_kl: float | None
    generated: bool = False
    mismatch: SamplerMismatch | None = None
    cut: str = ""

    @classmethod
    def of(cls, rollout: RolloutResult, buffer: SequenceRolloutBuffer, approx_kl: float | None, generated: bool) -> RolloutSymptoms:
        """Return those of a finished rollout."""
        kl = np.add.reduceat(buffer.kl, buffer._offsets[:-1])  # (S,)
        ended = sum(info["finish_reason"] != "length" for info in rollout.infos)
        sampler = buffer.sampler
        assert sampler is not None
        rules = {name: getattr(sampler, name) for name, off in _CUTS.items() if getattr(sampler, name) != off}
        cut = ", ".join(f"{name}={value}" for name, value in rules.items()) if buffer.beta else ""
        return cls(kl, buffer.scores, rollout.stats.entropy, ended, approx_kl, generated, rollout.stats.mismatch, cut)


@dataclass
class TrainingChecks:
    """Compares rollouts with the first one, and warns of each cause once.

    Attributes:
        entropy: Of the first rollout; None before it.
        finished: Share of its texts that ended before the length limit.
        named: Causes that were warned of.
        gradients: Whether an update was seen to leave gradients.
        drawn: What a generator said of its tokens in all rollouts; None before the first.
    """

    entropy: float | None = None
    finished: Rate = field(default_factory=lambda: wilson(0, 0))
    named: set[str] = field(default_factory=set)
    gradients: bool = False
    drawn: WeightSums | None = None

    def check(self, seen: RolloutSymptoms) -> None:
        """Warn of every cause that this rollout is the first to show."""
        if self.entropy is None:
            self.entropy, self.finished = seen.entropy, wilson(seen.finished, len(seen.scores))
        if seen.mismatch is not None:
            self.drawn = seen.mismatch.sums.joined(self.drawn)
        for cause, message in (*self._causes(seen, self.entropy), *self._causes_of_generator(seen)):
            self.warn(cause, message)

    def warn(self, cause: str, message: str) -> None:
        """Warn of a cause, unless it was warned of."""
        if cause not in self.named:
            self.named.add(cause)
            warnings.warn(message, TrainingWarning, stacklevel=5)

    def _causes(self, seen: RolloutSymptoms, entropy: float) -> Iterator[tuple[str, str]]:
        kl, error = seen.kl.mean(), seen.kl.std() / np.sqrt(len(seen.kl))
        if kl < -4 * error - 1e-3:
            yield (
                "negative KL",
                f"KL to the reference is {kl:.2f} nats a text, and KL cannot be negative: policy and reference are measured under "
                "different sampling rules, or what was written is not what is scored",
            )
        if seen.entropy < 0.1 * entropy:
            yield (
                "entropy",
                f"the policy's entropy fell from {entropy:.2f} to {seen.entropy:.2f} nats a token: it writes nearly the same text every "
                "time; raise beta or ent_coef, or lower the learning rate",
            )
        if seen.approx_kl is not None and seen.approx_kl > 0.5:
            yield (
                "ratio",
                f"an update moved the policy by {seen.approx_kl:.2g} nats a token (0.01 to 0.1 is usual): lower learning_rate or "
                "n_epochs, or set target_kl",
            )
        if seen.cut:
            yield (
                "cut",
                f"{seen.cut}: KL compares the two models on the tokens that the policy keeps, so that one which keeps a single token pays "
                "nothing for it, and beta cannot hold it back; train without a cut, and cut when texts are written",
            )
        if len(seen.scores) > 1 and np.ptp(seen.scores) == 0:
            yield (
                "equal scores",
                f"all {len(seen.scores)} texts of a rollout scored {seen.scores[0]:g}: there is nothing to learn from; is the reward too "
                "coarse, or the policy too far from any success?",
            )
        before, now = self.finished, wilson(seen.finished, len(seen.scores))
        if now.rate < 0.5 * before.rate and least_fall(before, now) > 0.3:
            yield (
                "unfinished",
                f"the share of texts that end by themselves fell from {before.rate:.0%} to {now.rate:.0%}: the reward pays for "
                "length, or nothing for ending; set missing_eos_penalty or raise max_new_tokens",
            )

    def _causes_of_generator(self, seen: RolloutSymptoms) -> Iterator[tuple[str, str]]:
        if seen.generated and seen.mismatch is None:
            yield (
                "unknown mismatch",
                "the generator returned tokens without log-probabilities: the rollout is off-policy by an unknown amount, which nothing "
                "shows or corrects; return Response(tokens, log_probs)",
            )
        if seen.mismatch is not None and seen.mismatch.effective < 0.1:
            yield (
                "few weights",
                f"the importance weights leave an effective sample of {seen.mismatch.effective:.1%} of a rollout: the generator is too far "
                "from the policy for weights of this mode and limits; take weights of tokens, or bring the generator nearer",
            )
        if self.drawn is not None and self.drawn.is_off:
            mean = self.drawn.mean
            constant = f"{abs(np.log(mean)):.3g} nats too {'low' if mean > 1 else 'high'}"
            yield (
                "importance weights",
                f"the mean of policy / generator over {self.drawn.number:.0f} tokens is {mean:.4f}, where right log-probabilities give 1: "
                f"either the generator's are not of what it draws from (as if all were {constant}; are they of other weights, or from "
                "before temperature and bans?), or it never draws tokens that the policy would",
            )
