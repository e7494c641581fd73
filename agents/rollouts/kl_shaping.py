"""KL shaping: one pass of the frozen reference over a rollout, and what it takes from each token's reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Literal

import numpy as np
import torch

from ..models.backbones import Backbone
from ..models.log_probs import action_log_probs, full_kl
from ..models.sampler import Sampler
from ..models.sequences import SequenceBatch
from .kl_controller import Beta, as_kl_controller

KLReward = Literal["k1", "full", "none"]
Batches = Iterator[tuple[np.ndarray, SequenceBatch]]
Measure = Callable[[SequenceBatch, np.ndarray, Sampler], torch.Tensor]


class KLShaping:
    """Measures the KL of a rollout to the reference, and turns it into penalties.

    Args:
        beta: A number, keyword arguments of `AdaptiveKLController`, or a controller.
        kl_reward: See `SequenceRolloutBuffer`.
        batch_size: Texts in one pass of the reference.
        vocab_size: Tokens of the environment, V.

    Attributes:
        controller: Holds beta.
        reference: The frozen model; None: KL is 0, and rewards stay as they are.
        actor: The policy's backbone, for whole distributions; None: there is only the log-probability of each action.
        kl: log(pi / pi_ref) of each action of the last rollout, shape (N,).
        log_probs: The reference's log-probability of each action, shape (N,); None without a reference.
        seconds: Time of the last pass.

    Raises:
        ValueError: `kl_reward` is none of the three.
    """

    def __init__(self, beta: Beta, kl_reward: KLReward, batch_size: int, vocab_size: int) -> None:
        if kl_reward not in ("k1", "full", "none"):
            raise ValueError(f"kl_reward={kl_reward!r}: must be 'k1', 'full' or 'none'")
        self.controller = as_kl_controller(beta)
        self.kl_reward, self.batch_size, self.vocab_size = kl_reward, batch_size, vocab_size
        self.reference: Backbone | None = None
        self.actor: Backbone | None = None
        self.kl = np.zeros(0, np.float32)
        self.log_probs: np.ndarray | None = None
        self.seconds = 0.0

    @torch.inference_mode()
    def penalties(
        self,
        actions: np.ndarray,
        log_probs: np.ndarray,
        batches: Callable[[], Batches],
        gather: Callable[[np.ndarray], np.ndarray],
        sampler: Sampler | None,
        autocast: torch.dtype | None,
    ) -> np.ndarray | None:
        """Run the reference over a rollout of N tokens.

        Args:
            actions: Token ids, shape (N,).
            log_probs: The acting policy's log-probability of each, shape (N,).
            batches: Yields this rank's texts, each batch with where its n tokens lie among the N.
            gather: Fills in the tokens of other ranks, (N,) to (N,).
            sampler: Whose rules drew the tokens; the reference follows them too.
            autocast: The precision in which the policy acted: another one would make a difference of rounding.

        Returns:
            What to subtract from each token's reward, shape (N,), float32; None: nothing.

        Raises:
            ValueError: `kl_reward="full"` without an actor.
        """
        began = perf_counter()
        self.kl, self.log_probs = np.zeros(len(actions), np.float32), None
        penalties = None
        if self.reference is not None:
            assert sampler is not None
            self.reference.autocast = autocast
            self.log_probs = gather(self._per_token(batches(), len(actions), self._reference_log_probs, actions, sampler))
            self.kl = log_probs - self.log_probs
            if self.kl_reward == "k1":
                penalties = self.controller.beta * self.kl
            elif self.kl_reward == "full":
                if self.actor is None:
                    raise ValueError("kl_reward='full' compares whole distributions, and only TextPolicyGradient hands its policy over")
                full = self._per_token(batches(), len(actions), self._full_kl, actions, sampler)
                penalties = self.controller.beta * gather(full)
        self.seconds = perf_counter() - began
        return penalties

    @staticmethod
    def _per_token(
        batches: Batches,
        num_tokens: int,
        measure: Callable[[SequenceBatch, np.ndarray, Sampler], torch.Tensor],
        actions: np.ndarray,
        sampler: Sampler,
    ) -> np.ndarray:
        out = np.empty(num_tokens, np.float32)  # (N,)
        for tokens, batch in batches:
            out[tokens] = measure(batch, actions[tokens], sampler).cpu().numpy()  # (n,)
        return out

    def _reference_log_probs(self, batch: SequenceBatch, actions: np.ndarray, sampler: Sampler) -> torch.Tensor:
        assert self.reference is not None
        hidden = self.reference.hidden(batch)  # (n, D)
        chosen = torch.as_tensor(actions, device=hidden.device)
        log_probs, _ = action_log_probs(self.reference, hidden, batch, chosen, sampler, self.vocab_size)
        return log_probs  # (n,)

    def _full_kl(self, batch: SequenceBatch, actions: np.ndarray, sampler: Sampler) -> torch.Tensor:
        """Return KL(pi || pi_ref) of every step's distribution in nats, shape (n,)."""
        assert self.actor is not None and self.reference is not None
        return full_kl(self.actor, self.reference, batch, sampler, self.vocab_size)
