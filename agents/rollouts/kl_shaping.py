"""KL of a rollout to a reference, and the rewards that pay for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
import torch

from ..distributed.engine import Engine
from ..distributed.ranks import Ranks
from ..models.backbones import Backbone
from ..models.log_probs import action_log_probs, full_kl
from ..models.sampler import Sampler
from ..models.sequences import SequenceBatch
from .kl_controller import KLController
from .reward_scaling import ScoreScale, whiten_returns
from .rollout_samples import RolloutStats

KLReward = Literal["k1", "full", "none"]


class RecordedTokens(NamedTuple):
    """The N tokens of a rollout that are actions, text after text.

    Attributes:
        log_probs: Of the acting policy, shape (N,), float32.
        sampler: The sampling rules that drew them.
        autocast: Precision of the policy's trunk; None: that of its weights.
        for_each: Calls a function with packed texts and their actions, and returns its numbers of all tokens, shape (N,).
        offsets: Where each text's tokens begin, and N, shape (S + 1,).
    """

    log_probs: np.ndarray
    sampler: Sampler
    autocast: torch.dtype | None
    for_each: Callable[[Callable[[SequenceBatch, torch.Tensor], torch.Tensor]], np.ndarray]
    offsets: np.ndarray


class ShapedRewards(NamedTuple):
    """What KL makes of a rollout's rewards.

    Attributes:
        rewards: Shape (N,), float32.
        kl: log(pi / pi_ref) of each action in nats, shape (N,), float32; 0 without a reference.
        reference_log_probs: log pi_ref of each action, shape (N,), float32; None without a reference.
        stats: Means over the rollout.
    """

    rewards: np.ndarray
    kl: np.ndarray
    reference_log_probs: np.ndarray | None
    stats: RolloutStats


@dataclass
class KLShaping:
    """Scales the rewards of a rollout, takes beta times the KL to the reference from them, and has the controller set the next beta.

    Attributes:
        controller: Holds beta.
        score_scale: What the rewards go through first.
        vocab_size: Tokens of the environment, V.
        kl_reward: See `SequenceRolloutBuffer`.
        whiten_rewards: See `SequenceRolloutBuffer`.
        reference: The frozen model that KL is measured against; None: KL is 0.
        actor: The policy's backbone, for `kl_reward="full"`.
        engine: How the models are held; its ranks each shape the rewards of their own texts, with the numbers of all.

    Raises:
        ValueError: `kl_reward` is none of the three.
    """

    controller: KLController
    score_scale: ScoreScale
    vocab_size: int
    kl_reward: KLReward = "k1"
    whiten_rewards: bool = False
    reference: Backbone | None = None
    actor: Backbone | None = None
    engine: Engine = field(default_factory=lambda: Engine(Ranks()))

    def __post_init__(self) -> None:
        if self.kl_reward not in ("k1", "full", "none"):
            raise ValueError(f"kl_reward={self.kl_reward!r}: must be 'k1', 'full' or 'none'")

    def __call__(self, rewards: np.ndarray, scores: np.ndarray, tokens: RecordedTokens) -> ShapedRewards:
        """Shape the rewards of a rollout.

        Args:
            rewards: What the environment paid at each token, shape (N,), float32.
            scores: Their sum over each text, shape (S,).
            tokens: What was written.

        Raises:
            ValueError: `kl_reward="full"`, and there is no actor.
        """
        began = perf_counter()
        beta = self.controller.beta
        ranks = self.engine.ranks
        rewards = self.score_scale(rewards, scores, ranks)
        kl, reference_log_probs = np.zeros(len(rewards), np.float32), None
        if self.reference is not None:
            reference_log_probs = self.reference_log_probs(tokens)
            kl = tokens.log_probs - reference_log_probs
            if self.kl_reward != "none":
                rewards = rewards - beta * (kl if self.kl_reward == "k1" else self._full_kl(tokens))
        if self.whiten_rewards:
            rewards = whiten_returns(rewards, tokens.offsets, ranks).astype(np.float32)
        precise = kl.astype(np.float64)  # k3 is a small difference of numbers near 1; NumPy's pairwise sum suffices for k1
        own = [kl.sum(), (np.expm1(-precise) + precise).sum(), scores.sum(), rewards.sum(dtype=np.float64)]
        own += [tokens.log_probs.sum(dtype=np.float64), len(rewards), len(scores)]
        kl_sum, k3_sum, score_sum, reward_sum, log_prob_sum, num_tokens, num_sequences = ranks.sums(own).tolist()
        stats = RolloutStats(
            kl_per_sequence=kl_sum / num_sequences,
            kl_per_token=kl_sum / num_tokens,
            kl_per_token_k3=k3_sum / num_tokens,
            beta=beta,
            score=score_sum / num_sequences,
            shaped_return=reward_sum / num_sequences,
            entropy=-log_prob_sum / num_tokens,
            num_tokens=int(num_tokens),
            num_sequences=int(num_sequences),
            reference_seconds=perf_counter() - began,
        )
        self.controller.update(stats.kl_per_sequence, stats.num_sequences)
        return ShapedRewards(rewards, kl, reference_log_probs, stats)

    def reference_log_probs(self, tokens: RecordedTokens) -> np.ndarray:
        """Return the reference's log-probability of every action under the policy's sampling rules, shape (N,), float32."""
        reference = self.reference
        assert reference is not None
        reference.autocast = tokens.autocast  # or the difference to the policy would be one of rounding

        def score(batch: SequenceBatch, actions: torch.Tensor) -> torch.Tensor:
            return action_log_probs(reference, reference.hidden(batch), batch, actions, tokens.sampler, self.vocab_size)[0]  # (n,)

        with self.engine.whole(reference.lm):
            return tokens.for_each(score)

    def _full_kl(self, tokens: RecordedTokens) -> np.ndarray:
        """Return KL(pi || pi_ref) of every step's distribution in nats, shape (N,), float32."""
        actor, reference = self.actor, self.reference
        if actor is None:
            raise ValueError("kl_reward='full' compares whole distributions, and only TextPolicyGradient hands its policy to the buffer")
        assert reference is not None
        with self.engine.whole(actor.lm, reference.lm):
            return tokens.for_each(lambda batch, _: full_kl(actor, reference, batch, tokens.sampler, self.vocab_size))  # (n,)
