"""Packed texts: how sequences of different lengths go through a causal language model in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .sampler import Sampler, log_prob_and_entropy, restrict

LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32


class SequenceBatch(NamedTuple):
    """B texts and the N tokens in them that are actions.

    Texts are packed to the left and padded on the right.  A causal model never looks at what comes after a token, so no
    mask is needed, and positions are 0, 1, 2, ... in every row.

    Attributes:
        input_ids: Shape (B, L), int64; padding is 0 and is never read.
        predictor: Index into the B * L positions of the one whose hidden state predicts each action, shape (N,).
        steps: Number of response tokens written before each action, shape (N,).
        kept: Packed set of tokens that the acting policy's cuts kept, shape (N, ceil(V / 8)), uint8; None without cuts.
    """

    input_ids: torch.Tensor
    predictor: torch.Tensor
    steps: torch.Tensor
    kept: torch.Tensor | None = None


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


def pack(texts: Sequence[Written], device: torch.device | str, kept: np.ndarray | None = None) -> SequenceBatch:
    """Lay out texts side by side.

    Args:
        texts: At least one.
        device: Where the tensors go.
        kept: Packed kept sets in the order of the actions.
    """
    # The last action is predicted but never read, so it needs no position of its own.
    lengths = [len(t.context) + len(t.actions) + sum(len(ids) for _, ids in t.replies) - 1 for t in texts]
    width = max(lengths)
    ids = np.zeros((len(texts), width), np.int64)
    predictor, steps = [], []
    for row, text in enumerate(texts):
        offsets = np.arange(len(text.actions))  # of each action among the tokens after the context
        after = text.actions
        for number, reply in reversed(text.replies):
            offsets[number:] += len(reply)
            after = np.concatenate([after[:number], reply, after[number:]])
        ids[row, : len(text.context)] = text.context
        ids[row, len(text.context) : lengths[row]] = after[:-1]
        predictor.append(row * width + len(text.context) - 1 + offsets)
        steps.append(text.first_step + offsets)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return SequenceBatch(
        tensor(ids), tensor(np.concatenate(predictor)), tensor(np.concatenate(steps)), None if kept is None else tensor(kept)
    )


def texts_of(obs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack observations to the left.

    Args:
        obs: `prompt` (B, P) and `response` (B, T) tensors, -1 beyond each.

    Returns:
        Texts (B, P + T), -1 beyond each; their lengths (B,), 0 for idle rows; response lengths (B,).
    """
    prompt, response = (obs[key].long().cpu().numpy() for key in ("prompt", "response"))
    prompt_length, response_length = (prompt >= 0).sum(1), (response >= 0).sum(1)
    texts = np.full((len(prompt), prompt.shape[1] + response.shape[1]), -1, np.int64)
    texts[:, : prompt.shape[1]] = prompt
    columns = prompt_length[:, None] + np.arange(response.shape[1])  # (B, T): where each response token goes
    np.put_along_axis(texts, columns, response, axis=1)
    return texts, prompt_length + response_length, response_length


def trunk_of(lm: nn.Module) -> nn.Module:
    """Return the part of a Hugging Face causal LM that maps ids to hidden states."""
    return lm.base_model  # type: ignore[return-value]


def action_hidden(lm: nn.Module, batch: SequenceBatch) -> torch.Tensor:
    """Return the hidden state that predicts each action, shape (N, D): the head sees no prompt and no padding."""
    hidden = trunk_of(lm)(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # (B, L, D)
    return hidden.flatten(0, 1)[batch.predictor]  # (N, D)


def action_logits(lm: nn.Module, hidden: torch.Tensor, batch: SequenceBatch, sampler: Sampler, vocab_size: int) -> torch.Tensor:
    """Return the logits of the distribution that the actions were drawn from, shape (N, V)."""
    logits = lm_head(lm, hidden)[:, :vocab_size]
    kept = None if batch.kept is None else unpack_kept(batch.kept, vocab_size)
    return restrict(sampler.apply_rules(logits, batch.steps), kept)


def action_log_probs(
    lm: nn.Module, hidden: torch.Tensor, batch: SequenceBatch, actions: torch.Tensor, sampler: Sampler, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies in nats of the actions, shape (N,) each.

    Logits are N * V numbers, with a large vocabulary more than everything else.  Beyond `LOGITS_AT_ONCE` of them, tokens go
    through the head in chunks whose logits are dropped at once and computed again in the backward pass: memory no longer
    grows with N.
    """

    def score(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        kept = None if batch.kept is None else batch.kept[rows]
        chunk = SequenceBatch(batch.input_ids, batch.predictor[rows], batch.steps[rows], kept)
        return log_prob_and_entropy(action_logits(lm, hidden[rows], chunk, sampler, vocab_size), actions[rows])

    size = max(1, LOGITS_AT_ONCE // vocab_size)
    if len(actions) <= size:
        return score(slice(None))
    chunks = [slice(start, start + size) for start in range(0, len(actions), size)]
    scored = [checkpoint(score, rows, use_reentrant=False) if torch.is_grad_enabled() else score(rows) for rows in chunks]
    log_probs, entropies = zip(*scored, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def lm_head(lm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Return raw logits, shape (N, V), of hidden states of shape (N, D)."""
    head: Any = lm.get_output_embeddings()  # type: ignore[operator]
    return head(hidden)


def pack_kept(kept: torch.Tensor) -> np.ndarray:
    """Pack a boolean (N, V) tensor to bits, shape (N, ceil(V / 8)), uint8."""
    return np.packbits(kept.cpu().numpy(), axis=-1)


def unpack_kept(kept: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Undo `pack_kept`, on the device of `kept`."""
    shifts = torch.arange(7, -1, -1, device=kept.device, dtype=torch.uint8)
    bits = (kept[:, :, None] >> shifts) & 1  # (N, ceil(V / 8), 8)
    return bits.flatten(1)[:, :vocab_size].bool()
