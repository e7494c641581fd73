"""How next-token logits become the distribution that tokens are drawn from.

The sampler is part of the policy: log-probabilities that leave it out are those of another distribution, and the KL they
give can even be negative.  *Static rules* (temperature, minimum length, bans) are functions of the text: they are recomputed
wherever the distribution is needed, by the acting policy, in training and by the reference.  *Cuts* (top-k, top-p, min-p)
depend on the model: the acting policy makes them once, and the set of tokens it kept travels with the action.  So do the
environment's action masks, which only it can compute.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from rewards.utils.devices import has_float64

# Not -inf: a row may lose all its probability to underflow but never turns into NaN, and 0 * log(0) stays 0.
LOG_ZERO = -1e9
_BLOCK = 512  # columns that a draw sums up at once
STATIC_RULES = ("min_new_tokens", "banned_tokens", "no_repeat_ngram")  # those that take tokens away


@dataclass(frozen=True)
class Sampler:
    """Sampling rules, in the order in which they apply.

    Attributes:
        temperature: Logits are divided by it, > 0.
        min_new_tokens: No end-of-text token can be drawn before this many tokens were.
        banned_tokens: Tokens that are never drawn.
        no_repeat_ngram: No token may complete a sequence of this many tokens that the response already has; 1 bans every token
            that was used, 0 nothing.  End-of-text tokens are free.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens with at least this probability; 1 keeps all.
        min_p: Keep tokens with at least this share of the likeliest one's probability; 0 keeps all.
        eos_token_id: The token that ends a text, or several: what `min_new_tokens` withholds.

    Raises:
        ValueError: A rule is out of range, or `min_new_tokens` is set without `eos_token_id`.
    """

    temperature: float = 1.0
    min_new_tokens: int = 0
    banned_tokens: tuple[int, ...] = ()
    no_repeat_ngram: int = 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    eos_token_id: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be > 0; for greedy texts use predict(deterministic=True)")
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(
                f"top_k={self.top_k}, top_p={self.top_p}, min_p={self.min_p}: need top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1"
            )
        if self.min_new_tokens < 0 or self.no_repeat_ngram < 0 or min(self.banned_tokens, default=0) < 0:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}, no_repeat_ngram={self.no_repeat_ngram}, banned_tokens={self.banned_tokens}: "
                "all must be at least 0"
            )
        if self.min_new_tokens and not self.ends:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} needs to know the end-of-text token: pass eos_token_id")

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a text; none if they are not known."""
        return ids_of(self.eos_token_id)

    @property
    def cuts(self) -> bool:
        """Whether some rule depends on the model that acts."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def repeats(self, responses: Sequence[np.ndarray], steps: Sequence[np.ndarray]) -> np.ndarray:
        """Return what `no_repeat_ngram` bans, if it is not 0.

        Args:
            responses: Token ids of each response, as far as they are known.
            steps: Of each response, the numbers of tokens before its actions.

        Returns:
            Pairs (index of the action, token), shape (2, M).
        """
        n = self.no_repeat_ngram
        repeats, offset = [np.zeros((2, 0), np.int64)], 0
        for response, before in zip(responses, steps, strict=True):
            if len(response) >= n and len(response) and before.max() >= n:
                grams = np.lib.stride_tricks.sliding_window_view(response, n - 1) if n > 1 else np.zeros((len(response) + 1, 0))
                _, names = np.unique(grams, axis=0, return_inverse=True)  # equal n-1-grams have equal names
                names = names.reshape(-1)
                latest = before - n + 1  # (actions,) where the n-1-gram before each begins
                earlier = np.arange(len(response) - n + 1)
                same = (earlier < latest[:, None]) & (names[earlier] == names[np.maximum(latest, 0)][:, None])  # (actions, n-grams)
                action, start = same.nonzero()
                repeats.append(np.stack([action + offset, response[start + n - 1]]))
            offset += len(before)
        pairs = np.concatenate(repeats, 1)  # (2, M)
        return pairs[:, ~np.isin(pairs[1], self.ends)]

    def withheld(self, responses: Sequence[np.ndarray], steps: Sequence[np.ndarray]) -> np.ndarray | None:
        """Return what the static rules take out of single distributions; `banned_tokens` are out of all.

        They follow from the texts, so that the host need not ask a device for them.

        Args:
            responses: Token ids of each response, as far as they are known; only `no_repeat_ngram` reads them.
            steps: Of each response, the numbers of tokens before its actions.

        Returns:
            Pairs (index of the action, token), shape (2, M); None if there are no such rules.
        """
        pairs = [self.repeats(responses, steps)] if self.no_repeat_ngram else []
        if self.min_new_tokens:
            short = np.flatnonzero(np.concatenate(steps) < self.min_new_tokens)  # (S,) actions that may not end a text yet
            pairs += [np.stack([short, np.full_like(short, end)]) for end in self.ends]
        return np.concatenate(pairs, 1) if pairs else None

    def apply_rules(self, logits: torch.Tensor, withheld: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the static rules.

        Args:
            logits: Raw logits, shape (N, V).
            withheld: What `withheld` returned for these N actions, shape (2, M).

        Returns:
            Logits, shape (N, V), float32.
        """
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        if withheld is not None:
            # Adding costs the backward pass nothing; filling would copy the whole gradient.
            logits = logits.index_put((withheld[0], withheld[1]), logits.new_full((), LOG_ZERO), accumulate=True)
        if self.banned_tokens:
            banned = ids_on(self.banned_tokens, logits.device)
            logits = logits + logits.new_zeros(logits.shape[-1]).index_fill_(0, banned, LOG_ZERO)
        return logits

    def check_choice(self, logits: torch.Tensor, steps: np.ndarray, legal: torch.Tensor | None = None) -> None:
        """Insist on a token to draw in every row, as `leaves_choice` asks: of none, all would be drawn alike.

        Args:
            logits: Under the static rules, and masked if there is a mask, shape (N, V).
            steps: Number of response tokens already written, shape (N,).
            legal: The environment's action masks, shape (N, V), bool; None: there are none.

        Raises:
            ValueError: Rules and mask leave no token to some row.
        """
        left = leaves_choice(logits)  # (N,)
        if left.all():
            return
        row = int((~left).nonzero()[0])
        rules = ", ".join(f"{name}={value}" for name in STATIC_RULES if (value := getattr(self, name)))
        if legal is None:
            what = f"{rules} leave no token to draw"
        elif tokens := legal[row].nonzero().flatten().tolist():
            shown = f"{str(tokens[:8])[:-1]}, ...]" if len(tokens) > 8 else str(tokens)
            what = f"{rules} leave none of the {len(tokens)} tokens {shown} that the action mask (the task's constraint) allows"
        else:
            what = "the action mask allows no token"
        raise ValueError(f"step {int(steps[row])} of a text: {what}; loosen the policy's rule or the constraint")

    def cut(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return which tokens top-k, top-p and min-p keep, shape (N, V), bool; None if they keep all.

        The likeliest token is always kept.  Equal logits at the border of top-k are all kept.
        """
        if not self.cuts:
            return None
        kept = torch.ones_like(logits, dtype=torch.bool)
        if 0 < self.top_k < logits.shape[-1]:
            kept &= logits >= logits.topk(self.top_k, dim=-1).values[:, -1:]
        if self.top_p < 1:
            ordered, order = logits.masked_fill(~kept, LOG_ZERO).sort(dim=-1, descending=True)  # (N, V) each
            probability = ordered.softmax(-1)  # (N, V)
            before = probability.cumsum(-1) - probability  # (N, V): mass of the tokens that are likelier
            kept &= torch.zeros_like(kept).scatter(-1, order, before < self.top_p)
        if self.min_p > 0:
            kept &= logits >= logits.amax(-1, keepdim=True) + math.log(self.min_p)
        return kept


@functools.lru_cache(maxsize=16)
def ids_on(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return token ids as a tensor on a device, copied there once, shape (n,)."""
    with torch.inference_mode(False):
        return torch.tensor(ids, dtype=torch.int64, device=device)


def ids_of(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return one id, several or none, as configurations name them, as a tuple."""
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(map(int, ids))


def leaves_choice(logits: torch.Tensor) -> torch.Tensor:
    """Return of each row whether some token has a probability, shape (N,), bool."""
    return logits.amax(-1) > LOG_ZERO / 2


def restrict(logits: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Take the tokens that are not `kept` out of the distribution; softmax renormalises over the rest."""
    return logits if kept is None else logits.masked_fill(~kept, LOG_ZERO)


def draw(logits: torch.Tensor) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution; 3x faster on a CPU than `torch.multinomial`.

    In float32 the sum would lose the tail: a device that has no other draws by `torch.multinomial`, which makes no sum.

    Args:
        logits: Shape (N, V), float32.

    Returns:
        Shape (N,), int64.
    """
    if not has_float64(logits.device):
        return logits.softmax(-1).multinomial(1).squeeze(-1)
    u = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device)  # (N, 1)
    return invert(logits.softmax(-1), u).squeeze(-1)


def invert(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return the first column up to which each row has more than the share u of its sum, shape (N, 1); never one that is 0.

    Of many columns the sums of blocks are searched, and then one block: a running sum over all would take most of a draw's time.

    Args:
        p: Shape (N, V), not negative.
        u: Shape (N, 1), float64, in [0, 1).
    """
    columns = p.shape[-1]
    if columns <= 8 * _BLOCK:
        # (N, V); summed in float64, because in float32 the tail of a large vocabulary would round away
        mass = p.cumsum(-1, dtype=torch.float64)
        # right=True: the first whose mass exceeds u, which is never one of probability 0
        return torch.searchsorted(mass, u * mass[:, -1:], right=True).clamp_(max=columns - 1)
    whole = columns // _BLOCK
    blocks, rest = p[:, : whole * _BLOCK].unflatten(1, (whole, _BLOCK)), p[:, None, whole * _BLOCK :]  # (N, blocks, columns) each
    # The numbers of one block may be added up in float32, whose rounding they have; as float64 torch would copy all of them first
    sums = [part.sum(-1).double() for part in (blocks, rest)]
    mass = torch.cat(sums, 1).cumsum(-1)  # (N, V / block)
    u = u * mass[:, -1:]
    block = torch.searchsorted(mass, u, right=True).clamp_(max=whole)  # (N, 1)
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp(min=0)), 0.0)  # (N, 1)
    inside = block * _BLOCK + torch.arange(_BLOCK, device=p.device)  # (N, block)
    part = p.gather(1, inside.clamp(max=columns - 1)).masked_fill_(inside >= columns, 0.0)
    mass = before + part.cumsum(-1, dtype=torch.float64)  # (N, block)
    # The two sums round differently: what is left of u may reach the block's end.
    u = torch.minimum(u, mass[:, -1:] * (1 - 2.0**-53))
    # Where p is NaN, which who draws reports, no block holds it: an index beyond the last column would bring a GPU down
    return (block * _BLOCK + torch.searchsorted(mass, u, right=True)).clamp_(max=columns - 1)


def pack_kept(kept: torch.Tensor) -> torch.Tensor:
    """Pack which tokens were kept, shape (N, V), bool, to one bit a token, on the same device, shape (N, ceil(V / 8)), uint8."""
    if kept.device.type == "cpu":  # 20 times as fast
        return torch.from_numpy(np.packbits(kept.numpy(), axis=-1))
    bits = functional.pad(kept.byte(), (0, -kept.shape[-1] % 8)).unflatten(-1, (-1, 8))  # (N, ceil(V / 8), 8)
    return (bits << _shifts(kept.device)).sum(-1, dtype=torch.uint8)


def unpack_kept(kept: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Undo `pack_kept`, on the device of `kept`; shape (N, V), bool."""
    bits = (kept[:, :, None] >> _shifts(kept.device)) & 1  # (N, ceil(V / 8), 8)
    return bits.flatten(1)[:, :vocab_size].bool()  # (N, V)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, device=device, dtype=torch.uint8)  # (8,)
