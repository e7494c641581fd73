"""Packed texts: how sequences of different lengths go through a causal language model in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from .sampler import Sampler, log_prob_and_entropy, restrict

if TYPE_CHECKING:
    from .backbones import Backbone

LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32
LOGITS_IN_CACHE = 1 << 20  # 4 MiB, what a CPU need not fetch from memory between softmax and sum
TOKENS_AT_LEAST = 128  # fewer would read the head's weights too often: 8 at a time made a reference pass 2.4 times as slow


class SequenceBatch(NamedTuple):
    """B texts and the N tokens in them that are actions.

    Texts are packed to the left and padded on the right.  A causal model never looks at what comes after a token, so no
    mask is needed, and positions are 0, 1, 2, ... in every row.

    Attributes:
        input_ids: Shape (B, L), int64; padding is 0 and is never read.
        predictor: Index into the B * L positions of the newest token before each action, shape (N,).
        steps: Number of response tokens written before each action, shape (N,).
        prompt_lengths: Tokens of each text's prompt, shape (B,).
        kept: Packed set of tokens that the acting policy's masks and cuts kept, shape (N, ceil(V / 8)), uint8; None: all.
        repeats: Pairs (action, token) that `no_repeat_ngram` bans, shape (2, M), int64; None: none.
    """

    input_ids: torch.Tensor
    predictor: torch.Tensor
    steps: torch.Tensor
    prompt_lengths: torch.Tensor
    kept: torch.Tensor | None = None
    repeats: torch.Tensor | None = None

    def split(self, size: int) -> list[tuple[SequenceBatch, slice]]:
        """Cut the batch into parts of at most `size` texts; return each with the range of its actions."""
        rows = self.predictor // self.input_ids.shape[1]  # (N,), ascending
        edges = list(range(0, len(self.input_ids), size))
        bounds = torch.searchsorted(rows, torch.tensor([*edges, len(self.input_ids)], device=rows.device)).tolist()
        parts = []
        for start, first, last in zip(edges, bounds[:-1], bounds[1:], strict=True):
            part = self.only(slice(first, last))
            texts = slice(start, start + size)
            offset = start * self.input_ids.shape[1]
            part = part._replace(
                input_ids=self.input_ids[texts], prompt_lengths=self.prompt_lengths[texts], predictor=part.predictor - offset
            )
            parts.append((part, slice(first, last)))
        return parts

    def only(self, actions: slice) -> SequenceBatch:
        """Return the batch with these actions only."""
        repeats = self.repeats
        if repeats is not None and actions != slice(None):
            inside = (repeats[0] >= actions.start) & (repeats[0] < actions.stop)
            repeats = repeats[:, inside] - repeats.new_tensor([[actions.start], [0]])
        kept = None if self.kept is None else self.kept[actions]
        return self._replace(predictor=self.predictor[actions], steps=self.steps[actions], kept=kept, repeats=repeats)


class Texts(NamedTuple):
    """B unfinished texts, prompt and response in one.

    Attributes:
        ids: Packed to the left, shape (B, W), int64, -1 beyond each text.
        lengths: Tokens in each, shape (B,); 0 for idle rows.
        prompt_lengths: How many of them are the prompt, shape (B,).
    """

    ids: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Response tokens in each, shape (B,)."""
        return self.lengths - self.prompt_lengths


class Written(NamedTuple):
    """One text as a buffer knows it.

    Attributes:
        context: Tokens before the first action, at least one.
        actions: Tokens that are actions, at least one.
        first_step: Number of response tokens in `context`.
        replies: Tokens of the environment between actions: the number of actions before them, and their ids.
    """

    context: np.ndarray
    actions: np.ndarray
    first_step: int
    replies: Sequence[tuple[int, np.ndarray]] = ()


def pack(
    texts: Sequence[Written], device: torch.device | str, kept: np.ndarray | None = None, sampler: Sampler | None = None
) -> SequenceBatch:
    """Lay out texts side by side.

    Args:
        texts: At least one.
        device: Where the tensors go.
        kept: Packed kept sets in the order of the actions.
        sampler: Whose rules look at the texts; None: there are no such rules.
    """
    # The last action is predicted but never read, so it needs no position of its own.
    lengths = [len(t.context) + len(t.actions) + sum(len(ids) for _, ids in t.replies) - 1 for t in texts]
    width = max(lengths)
    ids = np.zeros((len(texts), width), np.int64)
    predictor, steps, responses = [], [], []
    for row, text in enumerate(texts):
        offsets = np.arange(len(text.actions))  # of each action among the tokens after the context
        after = text.actions
        for number, reply in reversed(text.replies):
            offsets[number:] += len(reply)
            after = np.concatenate([after[:number], reply, after[number:]])
        ids[row, : len(text.context)] = text.context
        ids[row, len(text.context) : lengths[row]] = after[:-1]
        responses.append(np.concatenate([text.context[len(text.context) - text.first_step :], after]))
        predictor.append(row * width + len(text.context) - 1 + offsets)
        steps.append(text.first_step + offsets)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    prompts = np.asarray([len(text.context) - text.first_step for text in texts])
    columns = (ids, np.concatenate(predictor), np.concatenate(steps), prompts)
    repeats = None if sampler is None else sampler.repeats(responses, steps)
    return SequenceBatch(*(None if column is None else tensor(column) for column in (*columns, kept, repeats)))  # type: ignore[arg-type]


def texts_of(obs: Any) -> Texts:
    """Pack observations to the left.

    Args:
        obs: `prompt` (B, P) and `response` (B, T) tensors, -1 beyond each.
    """
    prompt, response = (obs[key].long().cpu().numpy() for key in ("prompt", "response"))
    prompt_length, response_length = (prompt >= 0).sum(1), (response >= 0).sum(1)
    texts = np.full((len(prompt), prompt.shape[1] + response.shape[1]), -1, np.int64)
    texts[:, : prompt.shape[1]] = prompt
    columns = prompt_length[:, None] + np.arange(response.shape[1])  # (B, T): where each response token goes
    np.put_along_axis(texts, columns, response, axis=1)
    return Texts(texts, prompt_length + response_length, prompt_length)


def one_action_each(texts: Texts, device: torch.device | str, sampler: Sampler | None = None) -> SequenceBatch:
    """Lay out texts with one action after each."""
    width = max(int(texts.lengths.max()), 1)
    last = np.arange(len(texts.ids)) * width + np.maximum(texts.lengths - 1, 0)
    ids = np.maximum(texts.ids[:, :width], 0)
    repeats = None if sampler is None else repeats_after(texts, sampler)
    columns = (ids, last, texts.steps, texts.prompt_lengths, None, repeats)
    return SequenceBatch(*(None if c is None else torch.from_numpy(c).to(device) for c in columns))  # type: ignore[arg-type]


def repeats_after(texts: Texts, sampler: Sampler) -> np.ndarray | None:
    """Return which tokens may not come next, see `Sampler.repeats`; the index is that of the text."""
    if not sampler.no_repeat_ngram:
        return None
    rows = zip(texts.ids, texts.prompt_lengths, texts.lengths, strict=True)
    return sampler.repeats([ids[start:end] for ids, start, end in rows], [np.array([n]) for n in texts.steps])


def action_logits(backbone: Backbone, hidden: torch.Tensor, batch: SequenceBatch, sampler: Sampler, vocab_size: int) -> torch.Tensor:
    """Return the logits of the distribution that the actions were drawn from, shape (N, V)."""
    logits = backbone.logits(hidden)[:, :vocab_size]
    kept = None if batch.kept is None else unpack_kept(batch.kept, vocab_size)
    return restrict(sampler.apply_rules(logits, batch.steps, batch.repeats), kept)


def action_log_probs(
    backbone: Backbone, hidden: torch.Tensor, batch: SequenceBatch, actions: torch.Tensor, sampler: Sampler, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies in nats of the actions, shape (N,) each.

    Logits are N * V numbers, with a large vocabulary more than everything else.  Beyond `LOGITS_AT_ONCE` of them, tokens go
    through the head in chunks whose logits are dropped at once and computed again in the backward pass: memory no longer
    grows with N.  Without a backward pass chunks cost nothing, and on a CPU they are small enough for its cache.
    """

    def score(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return log_prob_and_entropy(action_logits(backbone, hidden[rows], batch.only(rows), sampler, vocab_size), actions[rows])

    size = logits_at_once(vocab_size, torch.is_grad_enabled(), hidden.device.type == "cpu") // vocab_size
    if len(actions) <= size:
        return score(slice(None))
    chunks = [slice(start, min(start + size, len(actions))) for start in range(0, len(actions), size)]
    scored = [checkpoint(score, rows, use_reentrant=False) if torch.is_grad_enabled() else score(rows) for rows in chunks]
    log_probs, entropies = zip(*scored, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


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

    def compare(rows: slice) -> torch.Tensor:
        part = batch.only(rows)
        log_p = action_logits(policy, own[rows], part, sampler, vocab_size).float().log_softmax(-1)  # (n, V)
        with torch.no_grad():
            log_q = action_logits(reference, other[rows], part, sampler, vocab_size).float().log_softmax(-1)
        possible = log_p > -torch.inf  # 0 * (-inf - -inf) is not a number, neither is its gradient
        difference = log_p.masked_fill(~possible, 0.0) - log_q.masked_fill(~possible, 0.0)
        return (log_p.exp() * difference).sum(-1)  # (n,)

    number, size = len(own), max(1, LOGITS_AT_ONCE // vocab_size)
    if number <= size:
        return compare(slice(None))
    chunks = [slice(start, min(start + size, number)) for start in range(0, number, size)]
    again = torch.is_grad_enabled()
    return torch.cat([checkpoint(compare, rows, use_reentrant=False) if again else compare(rows) for rows in chunks])


def pack_kept(kept: torch.Tensor) -> np.ndarray:
    """Pack a boolean (N, V) tensor to bits, shape (N, ceil(V / 8)), uint8."""
    return np.packbits(kept.cpu().numpy(), axis=-1)


def unpack_kept(kept: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Undo `pack_kept`, on the device of `kept`."""
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept[:, :, None] >> shifts) & 1  # (N, ceil(V / 8), 8)
    return bits.flatten(1)[:, :vocab_size].bool()
