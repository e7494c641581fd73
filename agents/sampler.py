"""How next-token logits become the distribution that tokens are drawn from.

The sampler is part of the policy: log-probabilities that leave it out are those of another distribution, and the KL they
give can even be negative.  *Static rules* (temperature, minimum length) are functions of the text: they are recomputed
wherever the distribution is needed, by the acting policy, in training and by the reference.  *Cuts* (top-k, top-p)
depend on the model: the acting policy makes them once, and the set of tokens it kept travels with the action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Not -inf: a row may lose all its probability to underflow but never turns into NaN, and 0 * log(0) stays 0.
LOG_ZERO = -1e9


@dataclass(frozen=True)
class Sampler:
    """Sampling rules, in the order in which they apply.

    Attributes:
        temperature: Logits are divided by it, > 0.
        min_new_tokens: The end-of-text token cannot be drawn before this many tokens were.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens with at least this probability; 1 keeps all.
        eos_token_id: The token that `min_new_tokens` withholds.

    Raises:
        ValueError: A rule is out of range, or `min_new_tokens` is set without `eos_token_id`.
    """

    temperature: float = 1.0
    min_new_tokens: int = 0
    top_k: int = 0
    top_p: float = 1.0
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be > 0; for greedy texts use predict(deterministic=True)")
        if self.top_k < 0 or not 0 < self.top_p <= 1 or self.min_new_tokens < 0:
            raise ValueError(
                f"top_k={self.top_k}, top_p={self.top_p}, min_new_tokens={self.min_new_tokens}: "
                "need top_k >= 0, 0 < top_p <= 1, min_new_tokens >= 0"
            )
        if self.min_new_tokens and self.eos_token_id is None:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} needs to know the end-of-text token: pass eos_token_id")

    @property
    def cuts(self) -> bool:
        """Whether some rule depends on the model that acts."""
        return self.top_k > 0 or self.top_p < 1

    def apply_rules(self, logits: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Apply the static rules.

        Args:
            logits: Raw logits, shape (N, V).
            steps: Number of response tokens already written, shape (N,).

        Returns:
            Logits, shape (N, V), float32.
        """
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.min_new_tokens:
            short = (steps < self.min_new_tokens).nonzero().squeeze(-1)  # (S,) rows that may not end yet
            eos = torch.full_like(short, self.eos_token_id)  # type: ignore[arg-type]  # __post_init__ checks it
            # Adding costs the backward pass nothing; filling would copy the whole gradient.
            logits = logits.index_put((short, eos), logits.new_tensor(LOG_ZERO), accumulate=True)
        return logits

    def cut(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return which tokens top-k and top-p keep, shape (N, V), bool; None if they keep all.

        The likeliest token is always kept.  Equal logits at the border of top-k are all kept.
        """
        if not self.cuts:
            return None
        kept = torch.ones_like(logits, dtype=torch.bool)
        if 0 < self.top_k < logits.shape[-1]:
            kept &= logits >= logits.topk(self.top_k, dim=-1).values[:, -1:]
        if self.top_p < 1:
            ordered, order = logits.masked_fill(~kept, LOG_ZERO).sort(dim=-1, descending=True)
            probability = ordered.softmax(-1)
            before = probability.cumsum(-1) - probability  # (N, V): mass of the tokens that are likelier
            kept &= torch.zeros_like(kept).scatter(-1, order, before < self.top_p)
        return kept


def restrict(logits: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Take the tokens that are not `kept` out of the distribution; softmax renormalises over the rest."""
    return logits if kept is None else logits.masked_fill(~kept, LOG_ZERO)


def draw(logits: torch.Tensor) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution; 3x faster on a CPU than `torch.multinomial`.

    Args:
        logits: Shape (N, V), float32.

    Returns:
        Shape (N,), int64.
    """
    # (N, V); summed in float64, because in float32 the tail of a large vocabulary would round away
    mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    u = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device) * mass[:, -1:]
    # right=True: the first token whose mass exceeds u, which is never one of probability 0
    return torch.searchsorted(mass, u, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def log_prob_and_entropy(logits: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(action) and the exact entropy in nats of each row's categorical distribution.

    Args:
        logits: Shape (N, V), float32.
        actions: Shape (N,), int64.

    Returns:
        Two tensors of shape (N,); both differentiable.
    """
    return _LogProbAndEntropy.apply(logits, actions)


class _LogProbAndEntropy(torch.autograd.Function):
    """One softmax for both numbers; autograd's own graph keeps three (N, V) tensors and walks them back."""

    @staticmethod
    def forward(ctx, logits, actions):  # type: ignore[no-untyped-def]
        log_p = logits.log_softmax(-1)  # (N, V)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)  # (N,)
        ctx.save_for_backward(log_p, p, entropy, actions)
        return log_p.gather(-1, actions[:, None]).squeeze(-1), entropy

    @staticmethod
    def backward(ctx, grad_log_prob, grad_entropy):  # type: ignore[no-untyped-def]
        log_p, p, entropy, actions = ctx.saved_tensors
        # d log p(a) / dz = onehot(a) - p;  dH / dz = -p (log p + H)
        grad = p * -grad_log_prob[:, None]
        grad.scatter_add_(-1, actions[:, None], grad_log_prob[:, None])
        if grad_entropy.any():  # SB3 multiplies the entropy by ent_coef, mostly 0
            grad -= p * (log_p + entropy[:, None]) * grad_entropy[:, None]
        return grad, None
