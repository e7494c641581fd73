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

from ..sequences import SequenceBatch, TextRecord, of_like_length, pack
from ..upload import to_device

_NAME = "textrl_joined"
_ALIKE = 0.75  # of the longest text of a part that attends together, the shortest


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
        attended: The roots, and the branches, in parts of like length.
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
    """Put the tokens of a batch into one row, equal prompts once; tokens that no action comes after are left out.

    Each text consists of a root and a branch: a prompt that several share and its response, or all of it and nothing.
    """
    # Names: `place` is that of a token in its text, `where` that in the row of all tokens.
    ids, predictor, prompts = batch.on_host()
    lengths = batch.lengths()  # (B,)
    prompts = np.minimum(prompts, lengths)
    place = np.arange(lengths.max())  # (L,)
    ids, real = ids[:, : len(place)], place < lengths[:, None]  # (B, L) each
    opening = np.where(place < prompts[:, None], ids, -1)  # (B, L)
    _, first, twin, sharing = np.unique(opening, axis=0, return_index=True, return_inverse=True, return_counts=True)
    twin = twin.ravel()
    roots = np.where(sharing > 1, prompts[first], lengths[first])  # (U,)
    split = roots[twin][:, None]  # (B, 1): where the branch begins
    ends = np.cumsum(np.concatenate([roots, lengths - split[:, 0]]))  # (U + B,): the roots, then the branches
    starts = np.concatenate([[0], ends[:-1]])
    where = np.where(place < split, starts[twin, None], starts[len(first) :, None] - split) + place  # (B, L)
    where[~real] = 0
    flat_ids, positions = np.zeros((2, ends[-1]), np.int64)  # (M,) each
    flat_ids[where[real]], positions[where[real]] = ids[real], np.broadcast_to(place, real.shape)[real]

    arrays: list[np.ndarray] = []  # of each part: queries, keys, and what is seen
    outputs, number = np.zeros(ends[-1], np.int64), 0
    for rows in of_like_length(roots, _ALIKE):
        own = place[None, : roots[rows].max()]  # (1, q)
        arrays += [where[first[rows]][:, : own.shape[1]]] * 2 + [np.zeros(0)]  # (b, q) each
        inside = own < roots[rows, None]
        outputs[arrays[-2][inside]] = number + np.flatnonzero(inside)
        number += inside.size
    for rows in of_like_length(lengths - split[:, 0], _ALIKE):
        own = np.arange((lengths - split[:, 0])[rows].max()) + split[rows]  # (b, q)
        keys = where[rows][:, : lengths[rows].max()]  # (b, k)
        queries = np.take_along_axis(keys, np.minimum(own, keys.shape[1] - 1), 1)
        arrays += [queries, keys, place[: keys.shape[1]] <= own[:, None, :, None]]  # the last (b, 1, q, k)
        inside = own < lengths[rows, None]
        outputs[queries[inside]] = number + np.flatnonzero(inside)
        number += inside.size

    rows, columns = np.divmod(predictor, batch.input_ids.shape[1])  # (N,) each
    fixed = (flat_ids[None], positions[None], where[rows, columns], outputs)
    ids_, positions_, predictor_, outputs_, *parts = to_device(batch.input_ids.device, (*fixed, *arrays))
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    attended = [Attended(queries, keys, seen if seen.numel() else None) for queries, keys, seen in triples]
    return JoinedTexts(ids_, positions_, predictor_, attended, outputs_)


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
