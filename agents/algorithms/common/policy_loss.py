"""The loss of the clipped policy gradient: a surrogate of the objective, KL to the reference, entropy and values.

In the comments on shapes, a minibatch, or a part of it, has B whole texts with N tokens that are actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from ...distributed.ranks import Ranks
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
        batch: Their texts.
        picked: Whether its covariance is among the largest, see `pick_tokens`; None: the surrogate does not ask.
    """

    log_prob: torch.Tensor
    log_ratio: torch.Tensor
    ratio: torch.Tensor
    advantages: torch.Tensor
    batch: SequenceBatch
    picked: torch.Tensor | None = None

    def text_means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over its text of what each token has, shape (N,) to (N,)."""
        rows, counts = texts_of_tokens(self.batch)
        sums = values.new_zeros(len(counts)).index_add(0, rows, values)  # (B,)
        return (sums / counts)[rows]  # (N,)


class Clip(NamedTuple):
    """How far a ratio may move.

    Attributes:
        low: How far it may fall below 1.
        high: How far it may rise above 1.
        dual: Largest ratio that counts where the advantage is negative; None: any.
        kl_cov_coef: What a nat of |log ratio| costs at picked tokens.
    """

    low: float
    high: float
    dual: float | None = None
    kl_cov_coef: float = 0.0


def ppo(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """The lesser of ratio * advantage and clipped ratio * advantage, token by token (Schulman et al. 2017)."""
    gain = _clipped(tokens.ratio, tokens.advantages, clip)
    if clip.dual is not None:
        gain = torch.where(tokens.advantages < 0, torch.max(gain, clip.dual * tokens.advantages), gain)
    return gain, tokens.ratio


def gspo(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with one ratio for each text, the geometric mean of its tokens' ratios (Zheng et al. 2025, equations 5 to 7)."""
    ratio = tokens.text_means(tokens.log_ratio).exp()  # (N,)
    return _clipped(ratio, tokens.advantages, clip), ratio


def gmpo(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantage times the geometric mean of a text's ratios, each of which is clipped before (Zhao et al. 2025, equation 4)."""
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in (1 - clip.low, 1 + clip.high))
    sign = tokens.advantages.sign()
    clipped = sign * torch.min(sign * tokens.log_ratio, sign * tokens.log_ratio.clamp(low, high))  # (N,): 0 where the advantage is
    return tokens.advantages * tokens.text_means(clipped).exp(), tokens.ratio


def cispo(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability times advantage, weighted by the clipped ratio, a constant: every token learns (MiniMax 2025, equation 4)."""
    weight = tokens.ratio.detach().clamp(1 - clip.low, 1 + clip.high)  # (N,)
    return weight * tokens.advantages * tokens.log_prob, tokens.ratio


def clip_cov(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's without the picked tokens (Cui et al. 2025, section 4.2)."""
    assert tokens.picked is not None
    return _clipped(tokens.ratio, tokens.advantages, clip).masked_fill(tokens.picked, 0.0), tokens.ratio


def kl_cov(tokens: Tokens, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Ratio * advantage without clipping, and picked tokens pay for leaving the policy that wrote them (Cui et al. 2025, section 4.2)."""
    assert tokens.picked is not None
    return tokens.ratio * tokens.advantages - clip.kl_cov_coef * tokens.picked * tokens.log_ratio.abs(), tokens.ratio


def _clipped(ratio: torch.Tensor, advantages: torch.Tensor, clip: Clip) -> torch.Tensor:
    return torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip.low, 1 + clip.high))  # (N,)


# Each returns what is to be maximised, and the ratio whose clipping the log tells of, shape (N,) each.
SURROGATES: dict[str, Callable[[Tokens, Clip], tuple[torch.Tensor, torch.Tensor]]] = {
    "ppo": ppo,
    "gspo": gspo,
    "gmpo": gmpo,
    "cispo": cispo,
    "clip-cov": clip_cov,
    "kl-cov": kl_cov,
}
OF_TEXTS = ("gspo", "gmpo")  # take one advantage for all tokens of a text
OF_COVARIANCE = ("clip-cov", "kl-cov")  # ask for picked tokens


def pick_tokens(
    surrogate: str, log_probs: np.ndarray, advantages: np.ndarray, share: float, bounds: tuple[float, float], ranks: Ranks
) -> np.ndarray:
    """Return which tokens of a rollout have the covariances that bring entropy down most, shape (N,).

    A token's is (log-probability - mean) * (advantage - mean), of the policy that wrote it (Cui et al. 2025, equation 10).  KL-Cov takes
    the largest of all ranks, Clip-Cov draws from those within bounds with NumPy's global generator, whose state a checkpoint holds.

    Args:
        surrogate: `"clip-cov"` or `"kl-cov"`.
        log_probs: Shape (N,).
        advantages: Shape (N,).
        share: Of the tokens that are picked; of any, at least one.
        bounds: Between which covariances Clip-Cov draws.
        ranks: Which have tokens of their own.
    """
    parts = ranks.gather((log_probs.astype(np.float64), advantages.astype(np.float64)))
    (log_prob, advantage), starts = map(np.concatenate, zip(*parts, strict=True)), np.cumsum([0, *(len(part[0]) for part in parts)])
    picked = np.zeros(len(log_prob), bool)
    if len(picked):
        covariances = (log_prob - log_prob.mean()) * (advantage - advantage.mean())
        number = max(1, int(share * len(picked)))
        if surrogate == "kl-cov":
            chosen = np.argsort(-covariances, kind="stable")[:number]
        else:
            inside = np.flatnonzero((bounds[0] < covariances) & (covariances < bounds[1]))
            chosen = np.random.default_rng(ranks.broadcast(np.random.randint(2**31))).permutation(inside)[:number]
        picked[chosen] = True
    return picked[starts[ranks.rank] : starts[ranks.rank + 1]]


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
    rows = batch.rows  # (N,)
    return rows, torch.bincount(rows, minlength=len(batch.input_ids))


_MEANS = ("approx_kl", "clip_fraction", "off_policy_masked")  # of the log: over the tokens of the part


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
        off_policy_mask: See `PolicyGradientArguments`.
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
    off_policy_mask: float | None

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
        tokens = Tokens(log_prob, log_ratio, log_ratio.exp(), samples.advantages, samples.observations, samples.picked)
        gain, clipped = SURROGATES[self.surrogate](tokens, self.clip)  # (N,) each
        notes: dict[str, torch.Tensor] = {}
        if self.off_policy_mask is not None:
            left_out = (tokens.advantages < 0) & (tokens.text_means(-log_ratio.detach()) > self.off_policy_mask)  # (N,)
            gain = gain.masked_fill(left_out, 0.0)
            notes["off_policy_masked"] = left_out.float().mean()
        policy_loss = -(weights * gain).sum()  # ()
        entropy_loss = -(corrected * entropy).sum()  # ()
        loss = policy_loss + self.ent_coef * entropy_loss if self.ent_coef else policy_loss
        notes |= {"policy_gradient_loss": policy_loss, "entropy_loss": entropy_loss}
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
        return loss, {name: share * value if name in _MEANS else value for name, value in told.items()}

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
