"""The loss of the clipped policy gradient: a surrogate of the objective, KL to the reference, entropy and values.

In the comments on shapes, a minibatch, or a part of it, has B whole texts with N tokens that are actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from ...models.log_probs import full_kl
from ...models.sequences import SequenceBatch
from ...policies.transformer_policy import TransformerPolicy
from ...rollouts.rollout_buffer import SequenceRolloutBuffer
from ...rollouts.rollout_samples import MinibatchSize, SequenceSamples


class Tokens(NamedTuple):
    """What a surrogate sees of a minibatch, shape (N,) each.

    Attributes:
        log_prob: Under the policy that learns.
        log_ratio: To the policy that wrote them.
        ratio: Its exponential.
        advantages: Of each.
    """

    log_prob: torch.Tensor
    log_ratio: torch.Tensor
    ratio: torch.Tensor
    advantages: torch.Tensor


class Clip(NamedTuple):
    """How far a ratio may move.

    Attributes:
        low: How far it may fall below 1.
        high: How far it may rise above 1.
        dual: Largest ratio that counts where the advantage is negative; None: any.
    """

    low: float
    high: float
    dual: float | None = None


def ppo(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """The lesser of ratio * advantage and clipped ratio * advantage, token by token (Schulman et al. 2017)."""
    ratio, advantages = tokens.ratio, tokens.advantages
    gain = torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip.low, 1 + clip.high))  # (N,)
    if clip.dual is not None:
        gain = torch.where(advantages < 0, torch.max(gain, clip.dual * advantages), gain)
    return gain, ratio


# Each returns what is to be maximised, and the ratio that it clips, shape (N,) each.
SURROGATES: dict[str, Callable[[Tokens, Clip], tuple[torch.Tensor, torch.Tensor]]] = {"ppo": ppo}


def estimated_kl(kl_estimator: str, log_prob: torch.Tensor, ratio: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return an estimate per token, k2 or k3, whose gradient is that of KL(pi || pi_ref) in expectation, shape (N,)."""
    difference = log_prob - reference
    if kl_estimator == "k2":
        return 0.5 * difference.square()
    return ratio * ((-difference).exp() - 1 + difference)


def token_weights(aggregation: str, batch: SequenceBatch, whole: MinibatchSize, longest: int) -> torch.Tensor:
    """Return the weight of each token in the sum that is the loss, shape (N,).

    Args:
        aggregation: `loss_aggregation` of `PolicyGradientArguments`.
        batch: The texts.
        whole: Size of the minibatch that they are of.
        longest: Tokens of the longest text allowed.
    """
    if aggregation == "sequence":
        rows, counts = texts_of_tokens(batch)
        return 1 / (whole.texts * counts[rows].float())  # (N,)
    total = whole.tokens if aggregation == "token" else whole.texts * longest
    return torch.full(batch.predictor.shape, 1 / total, device=batch.predictor.device)


def texts_of_tokens(batch: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the text of each token, shape (N,), and the number of tokens of each text, shape (B,)."""
    rows = batch.predictor // batch.input_ids.shape[1]  # (N,)
    return rows, torch.bincount(rows, minlength=len(batch.input_ids))


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of a minibatch, but for ptx, and all that it depends on beside the texts.

    Attributes:
        policy: What learns.
        buffer: Holds beta, the reference and the sampling rules.
        surrogate: A key of `SURROGATES`.
        clip: How far ratios may move in this update.
        aggregation: See `token_weights`.
        longest: See `token_weights`.
        ent_coef: Weight of the entropy.
        vf_coef: Weight of the value loss.
        clip_vf: How far values may move; None: as far as they like.
        kl_estimator: See `PolicyGradientArguments`.
        kl_in_loss: Whether a KL term is part of the loss.
    """

    policy: TransformerPolicy
    buffer: SequenceRolloutBuffer
    surrogate: str
    clip: Clip
    aggregation: str
    longest: int
    ent_coef: float
    vf_coef: float
    clip_vf: float | None
    kl_estimator: str
    kl_in_loss: bool

    def __call__(self, samples: SequenceSamples, whole: MinibatchSize | None = None) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss, and the numbers for the log.

        Args:
            samples: The minibatch, or a part of it.
            whole: Size of the minibatch, if they are a part: the losses of the parts add up to that of the minibatch.
        """
        whole = whole or MinibatchSize(len(samples.observations.input_ids), len(samples.advantages))
        share = len(samples.advantages) / whole.tokens  # 1 in a single process, 0 of texts that do not count
        values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, samples.actions.long())  # (N, 1), (N,), (N,)
        assert entropy is not None
        weights = token_weights(self.aggregation, samples.observations, whole, self.longest)  # (N,)
        corrected = weights if samples.importance_weight is None else weights * samples.importance_weight  # (N,): the advantages have it
        log_ratio = log_prob - samples.old_log_prob  # (N,)
        tokens = Tokens(log_prob, log_ratio, log_ratio.exp(), samples.advantages)
        gain, clipped = SURROGATES[self.surrogate](tokens, self.clip)  # (N,) each
        policy_loss = -(weights * gain).sum()  # ()
        entropy_loss = -(corrected * entropy).sum()  # ()
        loss = policy_loss + self.ent_coef * entropy_loss if self.ent_coef else policy_loss
        notes = {"policy_gradient_loss": policy_loss, "entropy_loss": entropy_loss}
        if self.vf_coef:
            value_loss = share * self._value_loss(values.flatten(), samples)  # of (N,): ()
            loss = loss + self.vf_coef * value_loss
            notes["value_loss"] = value_loss
        if self.kl_in_loss:
            kl_loss = (corrected * self._kl(tokens, samples)).sum()  # of (N,): ()
            loss = loss + self.buffer.beta * kl_loss
            notes["kl_loss"] = kl_loss
        with torch.no_grad():
            notes["ratio_min"], notes["ratio_max"] = clipped.min(), clipped.max()
            notes["approx_kl"] = ((tokens.ratio - 1) - log_ratio).mean()
            notes["clip_fraction"] = ((clipped > 1 + self.clip.high) | (clipped < 1 - self.clip.low)).float().mean()
            notes["loss"] = loss
            told = dict(zip(notes, torch.stack(list(notes.values())).tolist(), strict=True))  # one wait for a GPU
        return loss, {**told, **{name: share * told[name] for name in ("approx_kl", "clip_fraction")}}

    def _kl(self, tokens: Tokens, samples: SequenceSamples) -> torch.Tensor:
        """Return KL(pi || pi_ref) at each token, or an estimate of it, shape (N,)."""
        if self.kl_estimator == "full":
            sampler, reference = self.buffer.sampler, self.buffer.reference
            assert sampler is not None and reference is not None
            return full_kl(self.policy.backbone, reference, samples.observations, sampler, self.buffer.vocab_size)
        assert samples.reference_log_prob is not None
        return estimated_kl(self.kl_estimator, tokens.log_prob, tokens.ratio, samples.reference_log_prob)

    def _value_loss(self, values: torch.Tensor, samples: SequenceSamples) -> torch.Tensor:
        """Return the mean squared error of values, shape (N,), clipped as PPO's if so configured."""
        if self.clip_vf is not None:
            values = samples.old_values + (values - samples.old_values).clamp(-self.clip_vf, self.clip_vf)
        return functional.mse_loss(samples.returns, values)
