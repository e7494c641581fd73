"""A key-value cache for texts that begin, end and restart at different times."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from .sequences import trunk_of


class _Layer(CacheLayerMixin):
    """Keys and values of one layer in a buffer that grows in steps, so that decoding copies nothing.

    Column `end - 1` holds the newest token of every row; a row's older tokens lie in the columns before it.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.end = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: `place` makes the buffers."""

    def place(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        """Take over keys and values of shape (R, H, C, Dh), with room for `capacity` columns."""
        self.end = keys.shape[2]
        rows, heads, _, size = keys.shape
        self.keys = keys.new_zeros(rows, heads, max(capacity, self.end), size)
        self.values = values.new_zeros(rows, heads, max(capacity, self.end), values.shape[3])
        self.keys[:, :, : self.end] = keys
        self.values[:, :, : self.end] = values
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append one column, and return views of all columns in use."""
        new = self.end + key_states.shape[2]
        if new > self.keys.shape[2]:
            self.place(self.keys[:, :, : self.end], self.values[:, :, : self.end], 2 * new)
        self.keys[:, :, self.end : new] = key_states
        self.values[:, :, self.end : new] = value_states
        self.end = new
        return self.keys[:, :, :new], self.values[:, :, :new]

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the next `query_length` tokens look at, and where they begin."""
        return self.end + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class CachedDecoder:
    """Hidden states of the newest token of many texts, at the price of one token each.

    The cache is keyed by content: a row's entry is used only if the text asked for is the cached text plus one token;
    anything else is computed afresh, so an entry can never belong to another text.  Only a change of the weights is
    invisible: call `drop` after one.

    Rows whose text is empty (idle rows) cost nothing and are left out of the result.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forget everything."""
        self._cache: Cache | None = None
        self._layers: list[_Layer] = []  # the cache's own
        self._rows = np.zeros(0, np.int64)  # row of the caller in each slot of the cache
        self._texts = np.zeros((0, 0), np.int64)  # (B, W) cached ids by row of the caller, -1 beyond the text
        self._lengths = np.zeros(0, np.int64)  # (B,) cached tokens by row of the caller

    @torch.no_grad()
    def last_hidden(self, lm: nn.Module, texts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        """Return the hidden state of the last token of every row that has one.

        Args:
            lm: A Hugging Face causal language model.
            texts: Token ids packed to the left, shape (B, W), int64, -1 beyond the text.
            lengths: Tokens in each row, shape (B,).

        Returns:
            Shape (number of rows with lengths > 0, D), in the order of the rows.
        """
        live = np.flatnonzero(lengths)
        if not self._usable(texts, live):
            self.drop()
            self._lengths = np.zeros(len(texts), np.int64)
            self._texts = np.full_like(texts, -1)
        self._leave(live)
        extended = self._extends(texts, lengths)
        fresh = np.asarray([r for r in live if not extended[r]], np.int64)
        if 2 * len(fresh) >= len(live) and self._cache is not None:
            self._cache, self._rows = None, np.zeros(0, np.int64)  # mostly new texts: lay the cache out anew
            fresh = live
        hidden: dict[int, torch.Tensor] = {}
        if self._cache is not None:
            hidden.update(self._decode(lm, texts, lengths))
        if len(fresh):
            hidden.update(self._prefill(lm, texts, lengths, fresh))
        self._texts, self._lengths = texts.copy(), lengths.copy()
        return torch.stack([hidden[int(r)] for r in live])

    def _usable(self, texts: np.ndarray, live: np.ndarray) -> bool:
        return self._cache is not None and texts.shape == self._texts.shape and bool(np.isin(live, self._rows).all())

    def _extends(self, texts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return which rows are their cached text plus one token, shape (B,), bool."""
        before = np.arange(texts.shape[1])[None] < self._lengths[:, None]  # (B, W)
        same = ((texts == self._texts) | ~before).all(1)
        return same & (lengths == self._lengths + 1) & (self._lengths > 0)

    def _leave(self, live: np.ndarray) -> None:
        """Take rows that ended out of the cache once they are a quarter of it: each time costs a copy."""
        staying = np.flatnonzero(np.isin(self._rows, live))
        if self._cache is None or len(staying) > 0.75 * len(self._rows):
            return
        index = torch.as_tensor(staying)
        for layer in self._layers:
            index = index.to(layer.keys.device)
            end = layer.end
            layer.place(layer.keys[index, :, :end], layer.values[index, :, :end], layer.keys.shape[2])
        self._rows = self._rows[staying]

    def _decode(self, lm: nn.Module, texts: np.ndarray, lengths: np.ndarray) -> dict[int, torch.Tensor]:
        """Feed the newest token of every slot; slots that are about to be overwritten get a meaningless one."""
        assert self._cache is not None
        rows = self._rows
        self._trim(int(self._lengths[rows].max()))
        columns = self._layers[0].end + 1
        device = self._layers[0].keys.device
        newest = np.maximum(lengths[rows] - 1, 0)
        mask = np.arange(columns)[None] >= columns - 1 - self._lengths[rows][:, None]  # (R, columns)
        out = trunk_of(lm)(
            input_ids=torch.as_tensor(np.maximum(texts[rows, newest], 0), device=device)[:, None],  # (R, 1)
            attention_mask=None if mask.all() else torch.as_tensor(mask, device=device).long(),
            position_ids=torch.as_tensor(newest, device=device)[:, None],  # (R, 1)
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state[:, -1]  # (R, D)
        return dict(zip(rows.tolist(), hidden, strict=True))

    def _trim(self, longest: int) -> None:
        """Drop leading columns that no row uses, when there are as many of them as used ones."""
        assert self._cache is not None
        for layer in self._layers:
            if layer.end > 2 * longest:
                start = layer.end - longest
                layer.place(layer.keys[:, :, start : layer.end], layer.values[:, :, start : layer.end], layer.keys.shape[2])

    def _prefill(self, lm: nn.Module, texts: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> dict[int, torch.Tensor]:
        """Read whole texts, and write their keys and values into the last columns of their slots."""
        device = next(lm.parameters()).device
        width = int(lengths[rows].max())
        ids = torch.as_tensor(np.maximum(texts[rows, :width], 0), device=device)  # (F, width)
        out = trunk_of(lm)(input_ids=ids, past_key_values=DynamicCache(), use_cache=True)
        ends = torch.as_tensor(lengths[rows], device=device)  # (F,)
        hidden = out.last_hidden_state[torch.arange(len(rows), device=device), ends - 1]  # (F, D)
        self._store(out.past_key_values, rows, lengths[rows], texts.shape[1])
        return dict(zip(rows.tolist(), hidden, strict=True))

    def _store(self, prefilled: Cache, rows: np.ndarray, lengths: np.ndarray, capacity: int) -> None:
        width = int(lengths.max())
        if self._cache is None:
            self._rows = rows.copy()
            self._layers = [_Layer() for _ in prefilled.layers]
            self._cache = Cache(layers=list(self._layers))
        read: list[Any] = list(prefilled.layers)  # transformers' layers may hold nothing; these do
        slot_of = {int(row): slot for slot, row in enumerate(self._rows)}
        for layer, new in zip(self._layers, read, strict=True):
            if not layer.is_initialized:
                shape = (len(self._rows), new.keys.shape[1], width)
                layer.place(new.keys.new_zeros(*shape, new.keys.shape[3]), new.values.new_zeros(*shape, new.values.shape[3]), capacity)
            if layer.end < width:  # a new text is longer than every text so far: make room in front
                room = (0, 0, width - layer.end, 0)
                keys, values = layer.keys[:, :, : layer.end], layer.values[:, :, : layer.end]
                layer.place(nn.functional.pad(keys, room), nn.functional.pad(values, room), capacity)
            for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                slot, columns = slot_of[int(row)], slice(layer.end - int(length), layer.end)
                layer.keys[slot, :, columns] = new.keys[index, :, : int(length)]
                layer.values[slot, :, columns] = new.values[index, :, : int(length)]
