"""Log-probabilities of actions and entropies of their distributions under a model, within bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .backbones import Backbone
from .lm_head import LOGITS_AT_ONCE, LOGITS_IN_CACHE, head_log_probs
from .sampler import Sampler, restrict, unpack_kept
from .sequences import SequenceBatch

TOKENS_AT_LEAST = 128  # fewer would read the head's weights too often: 8 at a time made a reference pass 2.4 times as slow


def action_logits(backbone: Backbone, hidden: torch.Tensor, batch: SequenceBatch, sampler: Sampler, vocab_size: int) -> torch.Tensor:
    """Return the logits of the distribution that the actions were drawn from, shape (N, V)."""
    logits = backbone.logits(hidden)[:, :vocab_size]  # (N, V)
    kept = None if batch.kept is None else unpack_kept(batch.kept, vocab_size)
    return restrict(sampler.apply_rules(logits, batch.withheld), kept)


def action_log_probs(
    backbone: Backbone, hidden: torch.Tensor, batch: SequenceBatch, actions: torch.Tensor, sampler: Sampler, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies in nats of the actions, shape (N,) each.

    Logits are N * V numbers, with a large vocabulary more than everything else.  Where the head is one matrix, they are made
    a block of the vocabulary at a time, see `agents.models.lm_head`.  Other heads (capped logits, adapters, a module of one's own) are
    called for chunks of tokens: beyond `LOGITS_AT_ONCE` logits, a chunk's are dropped at once and computed again in the
    backward pass.  Either way memory does not grow with N beyond a limit.
    """
    if (head := backbone.head) is not None:
        return head_log_probs(head, hidden, actions, vocab_size, batch.withheld, sampler.banned_tokens, batch.kept, sampler.temperature)

    def score(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return log_prob_and_entropy(action_logits(backbone, hidden[rows], batch.only(rows), sampler, vocab_size), actions[rows])

    size = logits_at_once(vocab_size, torch.is_grad_enabled(), hidden.device.type == "cpu") // vocab_size
    log_probs, entropies = in_parts(score, _chunks(len(actions), size))
    return log_probs, entropies


def in_parts(score: Callable[..., tuple[torch.Tensor, ...]], parts: Sequence[tuple[Any, ...]]) -> tuple[torch.Tensor, ...]:
    """Call `score` with the arguments of each part, and join what it returns.

    Of several parts, each one's intermediate results are dropped at once and computed again in the backward pass.
    """
    if len(parts) == 1:
        return score(*parts[0])
    again = torch.is_grad_enabled()
    scored = [checkpoint(score, *part, use_reentrant=False) if again else score(*part) for part in parts]
    return tuple(torch.cat(column) for column in zip(*scored, strict=True))


def _chunks(number: int, size: int) -> list[tuple[slice]]:
    """Cut `number` actions into ranges of at most `size`."""
    return [(slice(None),)] if number <= size else [(slice(start, min(start + size, number)),) for start in range(0, number, size)]


def logits_at_once(vocab_size: int, backward: bool, on_cpu: bool) -> int:
    """Return how many logits `action_log_probs` computes at once, with or without a backward pass to come."""
    small = LOGITS_AT_ONCE if backward or not on_cpu else max(LOGITS_IN_CACHE, TOKENS_AT_LEAST * vocab_size)
    return max(vocab_size, min(LOGITS_AT_ONCE, small))


def full_kl(policy: Backbone, reference: Backbone, batch: SequenceBatch, sampler: Sampler, vocab_size: int) -> torch.Tensor:
    """Return KL(policy || reference) over the whole vocabulary at each action, in nats, shape (N,).

    Both are taken under the rules and the kept tokens of the actions.  Gradients flow into the policy; chunks as in
    `action_log_probs`.
    """
    own = policy.hidden(batch)  # (N, D)
    with torch.no_grad():
        other = reference.hidden(batch)

    def compare(rows: slice) -> tuple[torch.Tensor]:
        part = batch.only(rows)
        log_p = action_logits(policy, own[rows], part, sampler, vocab_size).float().log_softmax(-1)  # (n, V)
        with torch.no_grad():
            log_q = action_logits(reference, other[rows], part, sampler, vocab_size).float().log_softmax(-1)  # (n, V)
        possible = log_p > -torch.inf  # 0 * (-inf - -inf) is not a number, neither is its gradient
        difference = log_p.masked_fill(~possible, 0.0) - log_q.masked_fill(~possible, 0.0)
        return ((log_p.exp() * difference).sum(-1),)  # (n,)

    (kl,) = in_parts(compare, _chunks(len(own), max(1, LOGITS_AT_ONCE // vocab_size)))
    return kl


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
    """One exponential for both numbers and their gradients, and one (N, V) tensor kept; autograd's own graph takes three of each."""

    @staticmethod
    def forward(ctx, logits, actions):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)  # whether the loss knows the entropy need not be asked of the device then
        shifted = logits - logits.amax(-1, keepdim=True)  # (N, V)
        mass = shifted.exp()  # (N, V): p times its row's total
        total = mass.sum(-1)  # (N,)
        log_total = total.log()
        # H = log(total) - sum_v p_v shifted_v; a product of matrices adds up without another (N, V)
        entropy = log_total - torch.bmm(mass[:, None], shifted[:, :, None]).flatten() / total
        ctx.save_for_backward(mass, total, log_total - entropy, actions)
        return shifted.gather(-1, actions[:, None]).squeeze(-1) - log_total, entropy

    @staticmethod
    def backward(ctx, grad_log_prob, grad_entropy):  # type: ignore[no-untyped-def]
        mass, total, mean, actions = ctx.saved_tensors  # mean: sum_v p_v shifted_v
        # d log p(a) / dz = onehot(a) - p;  dH / dz = -p (log p + H) = -p (shifted - mean)
        if grad_log_prob is None:
            grad_log_prob = torch.zeros_like(total)
        grad = mass * (-grad_log_prob / total)[:, None]
        grad.scatter_add_(-1, actions[:, None], grad_log_prob[:, None])
        if grad_entropy is not None and grad_entropy.any():  # SB3 multiplies the entropy by ent_coef, mostly 0
            weight = (grad_entropy / total)[:, None]
            grad.addcmul_(torch.xlogy(mass, mass), weight, value=-1)  # mass * shifted; 0 where the mass is
            grad.addcmul_(mass, weight * mean[:, None])
        return grad, None
