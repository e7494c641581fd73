"""Log-probabilities straight from hidden states, a block of the vocabulary at a time.

Logits are N * V numbers, with a large vocabulary more than everything else, and walking over them in memory takes longer than making
them.  Where they are nothing but a matrix product, they need not be there all at once: a block of columns stays in the cache, and the
softmax is put together from the maxima and sums of blocks (Milakov & Gimelshein 2018).  The backward pass takes the blocks up again,
and writes each part of the weights' gradient once (for cross-entropy: Wijmans et al. 2024).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .sampler import LOG_ZERO, ids_on, unpack_kept

KEPT_AT_MOST = 1 << 26  # logits (256 MiB) that are kept for the backward pass; more are computed again
LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32: few kernels
LOGITS_IN_CACHE = 1 << 20  # 4 MiB, what a CPU need not fetch from memory between softmax and sum
_NARROWEST = 512  # columns, a multiple of 8


def block_width(rows: int, vocab_size: int, on_cpu: bool) -> int:
    """Return the columns of a block for so many rows."""
    width = max(_NARROWEST, (LOGITS_IN_CACHE if on_cpu else LOGITS_AT_ONCE) // max(rows, 1) // 8 * 8)
    return min(width, vocab_size)


def logits_alive(rows: int, vocab_size: int, backward: bool, on_cpu: bool) -> int:
    """Return how many numbers of the size of logits `head_log_probs` holds at once."""
    logits = rows * vocab_size
    return 2 * rows * block_width(rows, vocab_size, on_cpu) + (logits if backward and logits <= KEPT_AT_MOST else 0)


def head_log_probs(
    head: nn.Linear,
    hidden: torch.Tensor,
    actions: torch.Tensor,
    vocab_size: int,
    withheld: torch.Tensor | None = None,
    banned: Sequence[int] = (),
    kept: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(action) and the exact entropy in nats of each row's distribution, shape (N,) each; both differentiable.

    Args:
        head: Makes the logits.
        hidden: What it reads, shape (N, D), in its precision.
        actions: Shape (N,), int64, below `vocab_size`.
        vocab_size: V; outputs of the head beyond it are left out.
        withheld: Pairs (row, token id) of probability 0, shape (2, M), int64.
        banned: Token ids of probability 0 in every row.
        kept: Packed set of token ids that have a probability, shape (N, ceil(V / 8)), uint8; None: all.
        temperature: Logits are divided by it.
    """
    bias: torch.Tensor | None = head.bias
    if temperature != 1:  # the two together have fewer numbers than the logits
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    width = block_width(len(hidden), vocab_size, hidden.device.type == "cpu")
    blocks = _Blocks(actions, withheld, banned, kept, vocab_size, width)
    learns = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    keeps = learns and len(hidden) * vocab_size <= KEPT_AT_MOST
    with torch.autocast(hidden.device.type, enabled=False):
        return _HeadLogProbs.apply(hidden, head.weight, bias, blocks, keeps)


class _Blocks:
    """Which part of actions and rules falls into which block of columns."""

    def __init__(
        self,
        actions: torch.Tensor,
        withheld: torch.Tensor | None,
        banned: Sequence[int],
        kept: torch.Tensor | None,
        vocab_size: int,
        width: int,
    ) -> None:
        self.starts = list(range(0, vocab_size, width))
        self.vocab_size, self.width, self.kept = vocab_size, width, kept
        sorted_ = sorted(banned)
        self.banned = ids_on(tuple(sorted_), actions.device) if banned else None
        self.banned_edges = [bisect_left(sorted_, edge) for edge in (*self.starts, vocab_size)]
        pairs = [(torch.arange(len(actions), device=actions.device), actions)]
        pairs += [] if withheld is None else [(withheld[0], withheld[1])]
        (self.order, self.columns, self.edges), *rules = self._by_column(pairs)
        self.rules = rules[0] if rules else None

    def _by_column(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor, list[int]]]:
        """Sort pairs of rows and columns by column, and return where each block begins; only of several the host must ask the device."""
        if len(self.starts) == 1:
            return [(rows, columns, [0, len(columns)]) for rows, columns in pairs]
        edges = torch.arange(len(self.starts) + 1, device=pairs[0][1].device).mul_(self.width).clamp_(max=self.vocab_size)
        ordered = [columns.sort(stable=True) for _, columns in pairs]
        bounds = torch.stack([torch.searchsorted(columns, edges) for columns, _ in ordered]).tolist()
        return [(rows[order], columns, edge) for (rows, _), (columns, order), edge in zip(pairs, ordered, bounds, strict=True)]

    def span(self, number: int) -> slice:
        """Return the columns of a block."""
        return slice(self.starts[number], min(self.starts[number] + self.width, self.vocab_size))

    def chosen(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows whose action is in a block, and its column there."""
        part = slice(self.edges[number], self.edges[number + 1])
        return self.order[part], self.columns[part] - self.starts[number]

    def room(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return memory for a block; what is allocated anew for each leaves holes that the next does not fit into."""
        return hidden.new_empty(len(hidden) * self.width)

    def part(self, memory: torch.Tensor, number: int) -> torch.Tensor:
        """Return the beginning of `memory` as a block, shape (N, width)."""
        span = self.span(number)
        columns = span.stop - span.start
        return memory[: len(self.order) * columns].view(-1, columns)

    def logits(
        self, number: int, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, memory: torch.Tensor
    ) -> torch.Tensor:
        """Put a block of logits under the rules into `memory`, and return it, shape (N, width)."""
        span = self.span(number)
        logits = torch.mm(hidden, weight[span].t(), out=self.part(memory, number))  # (N, width)
        if bias is not None:
            logits += bias[span]
        if self.rules is not None:
            rows, columns, edges = self.rules
            part = slice(edges[number], edges[number + 1])
            logits[rows[part], columns[part] - span.start] = LOG_ZERO
        if self.banned is not None:
            part = slice(self.banned_edges[number], self.banned_edges[number + 1])
            logits.index_fill_(1, self.banned[part] - span.start, LOG_ZERO)
        if self.kept is not None:
            bits = self.kept[:, span.start // 8 : -(-span.stop // 8)]  # blocks begin at multiples of 8
            logits.masked_fill_(~unpack_kept(bits, span.stop - span.start), LOG_ZERO)
        return logits


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, blocks: _Blocks, keeps: bool):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)  # whether the loss knows the entropy need not be asked of the device then
        picked = hidden.new_empty(len(hidden))  # (N,) logits of the actions
        memory = blocks.room(hidden)
        masses = hidden.new_empty(len(hidden) * blocks.vocab_size) if keeps else blocks.room(hidden)
        tops, totals, products = [], [], []
        for number, start in enumerate(blocks.starts):
            logits = blocks.logits(number, hidden, weight, bias, memory)
            rows, columns = blocks.chosen(number)
            picked[rows] = logits[rows, columns]
            top = logits.amax(-1, keepdim=True)  # (N, 1)
            shifted = logits.sub_(top)
            mass = torch.exp(shifted, out=blocks.part(masses[start * len(hidden) :] if keeps else masses, number))  # (N, width)
            tops.append(top.squeeze(-1))
            totals.append(mass.sum(-1))
            products.append(torch.bmm(mass[:, None], shifted[:, :, None]).flatten())  # sum_v mass_v shifted_v
        top, total, product = (torch.stack(column, 1) for column in (tops, totals, products))  # (N, blocks)
        highest = top.amax(-1, keepdim=True)
        lag = top - highest
        scale = lag.exp()
        whole = (scale * total).sum(-1)  # (N,) sum_v exp(logit_v - highest)
        log_whole = whole.log()
        # H = -sum_v p_v log p_v, with log p_v = shifted_v + lag - log(whole)
        entropy = log_whole - (scale * (product + total * lag)).sum(-1) / whole
        ctx.blocks = blocks
        ctx.save_for_backward(
            hidden, weight, bias, highest.squeeze(-1) + log_whole, entropy, scale / whole[:, None], masses if keeps else None
        )
        return picked - highest.squeeze(-1) - log_whole, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_prob, grad_entropy):  # type: ignore[no-untyped-def]
        hidden, weight, bias, log_total, entropy, scale, masses = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for whole in (grad_weight, grad_bias):
            if whole is not None:
                whole[blocks.vocab_size :] = 0
        if grad_log_prob is None:
            grad_log_prob = torch.zeros_like(entropy)
        bonus = grad_entropy is not None and bool(grad_entropy.any())  # SB3 multiplies the entropy by ent_coef, mostly 0
        # d log p(a) / dz = onehot(a) - p;  dH / dz = -p (log p + H)
        slope = -(grad_log_prob + grad_entropy * entropy) if bonus else -grad_log_prob  # (N,)
        memory = blocks.room(hidden)
        more = blocks.room(hidden) if bonus else None
        for number, start in enumerate(blocks.starts):
            span = blocks.span(number)
            if masses is not None:
                mass = blocks.part(masses[start * len(hidden) :], number)
                p = torch.mul(mass, scale[:, number, None], out=blocks.part(memory, number))
            else:
                p = blocks.logits(number, hidden, weight, bias, memory).sub_(log_total[:, None]).exp_()
            surprise = None if more is None else torch.xlogy(p, p, out=blocks.part(more, number))  # p log p; 0 where p is
            grad = p.mul_(slope[:, None])
            if surprise is not None:
                grad.addcmul_(surprise, grad_entropy[:, None], value=-1)
            rows, columns = blocks.chosen(number)
            grad[rows, columns] += grad_log_prob[rows]
            if grad_hidden is not None:
                torch.addmm(grad_hidden, grad, weight[span], out=grad_hidden)
            if grad_weight is not None:
                torch.mm(grad.t(), hidden, out=grad_weight[span])
            if grad_bias is not None:
                grad_bias[span] = grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None
