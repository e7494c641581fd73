"""Texts as one row of tokens: a prompt that several share is in it once, and nothing is padded.

All but attention looks at each token by itself, and most of a model's work is there: a group's prompt, which a batch repeats for every
text, is as much work as its responses if it is as long.  Attention goes back to a text a row for a moment, through the function that
transformers lets one put in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface

from ..sequences import SequenceBatch, TextRecord, pack
from ..upload import to_device

_NAME = "textrl_joined"


class Attended(NamedTuple):
    """Tokens that attend together, each row for itself; what stands for padding is any token.

    Attributes:
        queries: Where they are in the row of all tokens, shape (b, q).
        keys: Where those are that they may look at, shape (b, k).
        seen: Which of these each does look at, shape (b, 1, q, k), bool; None: those up to its own.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    seen: torch.Tensor | None


class JoinedTexts(NamedTuple):
    """The M tokens of a batch.

    Attributes:
        ids: Shape (1, M), int64.
        positions: Of each in its text, shape (1, M).
        predictor: Index of the newest token before each action, shape (N,).
        attended: The prompts, and the responses.
        outputs: Index of each token among the queries of `attended`, one after another, shape (M,).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predictor: torch.Tensor
    attended: list[Attended]
    outputs: torch.Tensor


def probe(vocab_size: int, longest: int, device: torch.device) -> SequenceBatch:
    """Return three texts that show whether a model reads joined texts as it reads others: two share a prompt, and all differ in length."""
    ids = np.random.default_rng(0).integers(vocab_size, size=(3, longest + 1))
    prompt = ids[0, : 1 + longest // 2]
    texts = [TextRecord(prompt, ids[0, len(prompt) :], 0), TextRecord(prompt, ids[1, :2], 0), TextRecord(ids[2, :1], ids[2, 1:4], 0)]
    return pack(texts, device)


def join_texts(batch: SequenceBatch) -> JoinedTexts:
    """Put the tokens of a batch into one row, equal prompts once; tokens that no action comes after are left out."""
    # Names: `place` is that of a token in its text, `where` that in the row of all tokens.
    ids, predictor, prompts = batch.on_host()
    rows, columns = np.divmod(predictor, ids.shape[1])  # (N,) each
    lengths = np.zeros(len(ids), np.int64)  # (B,)
    np.maximum.at(lengths, rows, columns + 1)
    prompts = np.minimum(prompts, lengths)
    place = np.arange(lengths.max())  # (L,)
    _, first, twin = np.unique(np.where(place < prompts[:, None], ids[:, : len(place)], -1), axis=0, return_index=True, return_inverse=True)
    ends = np.cumsum(np.concatenate([prompts[first], lengths - prompts]))  # (U + B,): the prompts, then the responses
    starts = np.concatenate([[0], ends[:-1]])
    where = np.where(place < prompts[:, None], starts[twin.ravel(), None], (starts[len(first) :] - prompts)[:, None]) + place  # (B, L)
    where[place >= lengths[:, None]] = 0
    flat_ids, positions = np.zeros((2, ends[-1]), np.int64)  # (M,) each
    real = place < lengths[:, None]  # (B, L)
    flat_ids[where[real]], positions[where[real]] = ids[:, : len(place)][real], np.broadcast_to(place, real.shape)[real]
    ahead = where[first][:, : prompts.max()]  # (U, P): the prompts' tokens
    own = np.arange((lengths - prompts).max()) + prompts[:, None]  # (B, T)
    behind = np.take_along_axis(where, np.minimum(own, len(place) - 1), 1)  # (B, T): the responses' tokens
    outputs = np.zeros(ends[-1], np.int64)
    inside = own < lengths[:, None]
    outputs[behind[inside]] = ahead.size + np.flatnonzero(inside)
    inside = place[: ahead.shape[1]] < prompts[first, None]
    outputs[ahead[inside]] = np.flatnonzero(inside)

    seen = place <= own[:, None, :, None]  # (B, 1, T, L)
    arrays = (flat_ids[None], positions[None], where[rows, columns], outputs, ahead, behind, where, seen)
    *fields, outputs_, prompts_, responses, texts, attended_to = to_device(batch.input_ids.device, arrays)
    attended = [Attended(prompts_, prompts_, None)]
    if behind.size:
        attended.append(Attended(responses, texts, attended_to))
    return JoinedTexts(*fields, attended, outputs_)


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """Have a model of transformers attend as its argument `joined` says."""
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, joined: JoinedTexts, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Attend within texts; shapes (1, H, M, Dh), or with fewer heads of keys and values."""
    sdpa = AttentionInterface()["sdpa"]
    outs = []
    for part in joined.attended:
        sides = (_rows(query, part.queries), _rows(key, part.keys), _rows(value, part.keys))
        outs.append(sdpa(module, *sides, part.seen, **kwargs)[0].flatten(0, 1))  # (b, q, H, Dh), (b * q, H, Dh)
    out = torch.cat(outs)
    return functional.embedding(joined.outputs, out.flatten(1)).view(1, -1, *out.shape[1:]), None  # (1, M, H, Dh)


def _rows(flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Go from (1, H, M, Dh) to (b, H, n, Dh); an embedding adds the gradients up faster than an index does."""
    heads = flat.shape[1]
    taken = functional.embedding(index, flat[0].transpose(0, 1).flatten(1))  # (M, H * Dh), (b, n, H * Dh)
    return taken.unflatten(-1, (heads, -1)).transpose(1, 2)


AttentionInterface.register(_NAME, _attend)
