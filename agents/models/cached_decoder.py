"""Cached decoding, the work of one token a step, for texts that begin, end and restart at different times."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch

from .backbones import Backbone
from .backbones.base import Fed, example_ids
from .backbones.kv_cache import BLOCK, Plan, States
from .cuda_graphs import GraphedSteps
from .decoding_weights import DecodingWeights
from .sequences import PartialTexts, one_action_each
from .upload import Upload

_PROMPTS, _SHORT = np.array([3, 1, 2]), 8  # of the texts that caches are tried on, in tokens

# Rows of the caller, and what computes the hidden state of the last token of each, shape (r, D)
Pass = tuple[np.ndarray, Callable[[], torch.Tensor]]


class CachedDecoder:
    """Hidden states of the newest token of many texts.

    The cache is keyed by content: of each text only those leading tokens are taken from the cache that are the same as the
    cached text's; the others are computed, one or many.  So an entry can never belong to another text.  Only a change of the
    weights is invisible: call `drop` after one.

    Rows whose text is empty (idle rows) cost nothing and are left out of the result.  Equal texts that begin together (the k
    copies of a prompt in a group) are read once.  Buffers are no longer than the longest live text, rounded up to 32.
    """

    def __init__(self, cuda_graphs: bool = False, weights: DecodingWeights | None = None) -> None:
        """Set what speeds steps up.

        Args:
            cuda_graphs: Replay steps on a GPU, see `GraphedSteps`.
            weights: Copies of the model's to decode with; None: its own.
        """
        self._graphs = GraphedSteps() if cuda_graphs else None
        self._weights, self._made = weights, 0
        self.drop()

    def drop(self) -> None:
        """Forget everything."""
        self._states: States | None = None
        if self._graphs is not None:
            self._graphs.forget()
        self._rows = np.zeros(0, np.int64)  # (S,) row of the caller in each slot
        self._ids = np.zeros((0, 0), np.int64)  # (B, W) cached tokens by row of the caller, -1 beyond
        self._known = np.zeros(0, np.int64)  # (B,) how many of them the states cover
        self._sources: np.ndarray | None = None  # (B, P) or (B, H, W, 3): what the encoder read
        self._source_lengths = np.zeros(0, np.int64)  # (S,) states of each slot's source
        self._source_columns = 0
        self._whole = True  # not while a pass is under way: an error or Ctrl-C there may leave buffers that do not fit each other

    @property
    def memory(self) -> int:
        """Bytes that keys, values and states take."""
        return 0 if self._states is None else self._states.memory

    def last_hidden(self, backbone: Backbone, texts: PartialTexts) -> torch.Tensor:
        """Return the hidden state of the last token of every row that has one, in the order of the rows.

        Args:
            backbone: The model.
            texts: Of all rows, idle ones too.

        Returns:
            Shape (number of rows with tokens, D), float32.
        """
        return self.plan(backbone, texts, Upload(backbone.device))()

    def plan(self, backbone: Backbone, texts: PartialTexts, upload: Upload) -> Callable[[], torch.Tensor]:
        """Lay out on the host what `last_hidden` computes, and return the function that computes it, to be called before the next plan.

        What the passes must know goes into `upload`, so that one copy takes it to the device along with what the caller adds.
        """
        longest = texts.ids.shape[1] - (int(texts.prompt_lengths.max()) - _PROMPTS[0] if backbone.reads_prompt_apart else 0)
        if backbone.cacheable is not False and longest > backbone.tried:
            check_cache(backbone, longest, self._weights if backbone.autocast is None else None)
        live = np.flatnonzero(texts.lengths)  # (R,)
        if self._weights is not None and self._made != (made := self._weights.refresh()):
            self.drop()
            self._made = made
        if not backbone.cacheable:
            chosen = texts.only(live)
            return torch.no_grad()(lambda: backbone.hidden(one_action_each(chosen, backbone.device)))
        ids, lengths, sources = backbone.written(texts)
        if self._states is None or self._ids.shape != ids.shape or not self._whole:
            self.drop()
            self._states = backbone.new_states()
            self._ids, self._known = np.full_like(ids, -1), np.zeros(len(ids), np.int64)
        states = self._states
        start = _before_pictures(backbone, ids, self._common(states, ids, lengths, sources))
        self._whole = False
        make_room = self._seat(backbone, states, live, lengths, sources, upload)
        passes = list(self._passes(backbone, states, ids, lengths, start, sources, upload))
        rows = np.concatenate([r for r, _ in passes])
        order = None if (np.diff(rows) > 0).all() else upload.add(np.argsort(rows))

        @torch.no_grad()
        def run() -> torch.Tensor:
            make_room()
            hidden = torch.cat([one_pass() for _, one_pass in passes])
            self._ids, self._known, self._sources = ids.copy(), lengths.copy(), None if sources is None else sources.copy()
            self._whole = True
            return hidden if order is None else hidden[order()]

        return run

    def _common(self, states: States, ids: np.ndarray, lengths: np.ndarray, sources: np.ndarray | None) -> np.ndarray:
        """Return how many leading tokens of each text need not be computed, shape (B,); never all of them."""
        before = np.arange(ids.shape[1]) < self._known[:, None]  # (B, W)
        common = ((ids == self._ids) & before).cumprod(1).sum(1)  # (B,)
        if states.recurrent:  # a state of the whole past cannot go back
            common[(common != self._known) | (common >= lengths)] = 0
        if sources is not None:
            common[~_same_rows(sources, self._sources)] = 0
        return np.minimum(common, np.maximum(lengths - 1, 0))

    def _seat(
        self, backbone: Backbone, states: States, live: np.ndarray, lengths: np.ndarray, sources: np.ndarray | None, upload: Upload
    ) -> Callable[[], None]:
        """Give every live row a slot; return what gives buffers the size that the longest live text needs."""
        columns = -(-int(lengths[live].max()) // BLOCK) * BLOCK
        stays = lengths[self._rows] > 0
        number = int(stays.sum())
        if sources is not None:
            self._source_columns = max(int(backbone.source_lengths(sources[live]).max()), self._source_columns if number else 0)
        size = len(live), columns, self._source_columns
        if number == len(stays) == len(live) and size == (states.num_slots, states.columns, states.source_columns):
            return lambda: None
        free, moved = np.flatnonzero(~stays[:number]), number + np.flatnonzero(stays[number:])
        self._rows[free] = self._rows[moved]  # the last slots that stay take the places of those that leave
        self._source_lengths[free] = self._source_lengths[moved]
        new = np.setdiff1d(live, self._rows[:number])
        self._rows = np.concatenate([self._rows[:number], new])
        self._source_lengths = np.concatenate([self._source_lengths[:number], np.ones_like(new)])
        where = (upload.add(moved), upload.add(free)) if len(free) else ()

        def make_room() -> None:
            if where:
                states.copy(*(index() for index in where))
            states.lay_out(*size)

        return make_room

    def _passes(
        self,
        backbone: Backbone,
        states: States,
        ids: np.ndarray,
        lengths: np.ndarray,
        start: np.ndarray,
        sources: np.ndarray | None,
        upload: Upload,
    ) -> Iterator[Pass]:
        """Yield what computes that which the cache lacks: one token for all slots at once, then whole stretches for rows that need them."""
        stepped = start[self._rows] > 0  # (S,)
        stepping = self._rows[stepped]
        if 2 * len(stepping) >= len(self._rows):
            hidden = self._step_all(backbone, states, ids, start, upload)  # of (S, D)
            start[stepping] += 1
            ready = np.flatnonzero((start[self._rows] == lengths[self._rows]) & stepped)
            yield self._rows[ready], hidden if len(ready) == len(self._rows) else _some(hidden, upload.add(ready))
        pending = np.flatnonzero(start < lengths)  # rows of the caller, as all below
        for rows in self._stretches(states, pending[start[pending] == 0], lengths):
            yield rows, self._read(backbone, states, ids, lengths, rows, sources, upload)
        goes_on = pending[start[pending] > 0]
        while len(goes_on):
            upto = start + 1 if states.recurrent else lengths
            hidden = self._go_on(backbone, states, ids, start, upto, goes_on, upload)
            start[goes_on] = upto[goes_on]
            ready = start[goes_on] == lengths[goes_on]
            yield goes_on[ready], _some(hidden, upload.add(np.flatnonzero(ready)))
            goes_on = goes_on[~ready]

    def _stretches(self, states: States, rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Split rows that are read from the start: a recurrent state cannot skip padding, so its texts must be equally long."""
        if not len(rows):
            return []
        return [rows[lengths[rows] == n] for n in np.unique(lengths[rows])] if states.recurrent else [rows]

    def _step_all(
        self, backbone: Backbone, states: States, ids: np.ndarray, start: np.ndarray, upload: Upload
    ) -> Callable[[], torch.Tensor]:
        """Feed one token to every slot: hidden states (S, D); slots that are about to be read anew get junk."""
        rows = self._rows
        position = np.where(start[rows] > 0, start[rows], 0)  # (S,)
        tokens = np.maximum(ids[rows, position], 0)  # (S,)
        fed = self._feed(backbone, states, None, tokens[:, None], position[:, None], int(position.max()) + 1, False, upload)
        if self._graphs is None or not backbone.graphable:
            return lambda: fed()[:, -1]
        graphs, where = self._graphs, (upload.add(tokens[:, None]), upload.add(position[:, None]))

        def run() -> torch.Tensor:
            with self._weights or nullcontext():
                hidden = graphs.step(backbone, states, *(column() for column in where))
            return fed()[:, -1] if hidden is None else hidden

        return run

    def _read(
        self,
        backbone: Backbone,
        states: States,
        ids: np.ndarray,
        lengths: np.ndarray,
        rows: np.ndarray,
        sources: np.ndarray | None,
        upload: Upload,
    ) -> Callable[[], torch.Tensor]:
        """Read texts from their start; equal ones once."""
        keys = ids[rows] if sources is None else np.concatenate([ids[rows], sources[rows].reshape(len(rows), -1)], 1)  # (r, W + P)
        _, first, twin = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        twin = twin.reshape(-1)
        chosen = rows[first]
        position = np.tile(np.arange(int(lengths[chosen].max())), (len(chosen), 1))  # padding goes behind the text
        slots = self._slots(rows)
        read = None
        if sources is not None:
            self._source_lengths[slots] = backbone.source_lengths(sources[rows])
            read = sources[chosen]
            if backbone.reads_prompt_apart:
                read = read[:, : int((read >= 0).sum(1).max())]
        tokens = np.maximum(ids[chosen][:, : position.shape[1]], 0)  # (u, k)
        fed = self._feed(backbone, states, slots[first], tokens, position, position.shape[1], True, upload, read)
        others = np.setdiff1d(np.arange(len(rows)), first)
        copied = (upload.add(slots[first][twin[others]]), upload.add(slots[others])) if len(others) else ()
        last = upload.add(twin), upload.add(lengths[rows] - 1)  # (r,) each

        def run() -> torch.Tensor:
            hidden = fed()  # (u, k, D)
            if copied:
                states.copy(*(index() for index in copied))
            return hidden[last[0](), last[1]()]  # (r, D)

        return run

    def _go_on(
        self, backbone: Backbone, states: States, ids: np.ndarray, start: np.ndarray, upto: np.ndarray, rows: np.ndarray, upload: Upload
    ) -> Callable[[], torch.Tensor]:
        """Feed some rows their tokens from `start` up to `upto`: the hidden states of the last ones, (r, D)."""
        many = upto[rows] - start[rows]  # (r,)
        # A row with fewer tokens than the others repeats its last one, which writes the same numbers to the same place.
        position = start[rows][:, None] + np.minimum(np.arange(int(many.max())), many[:, None] - 1)  # (r, k)
        tokens = np.take_along_axis(ids[rows], position, 1)  # (r, k)
        fed = self._feed(backbone, states, self._slots(rows), tokens, position, int(position.max()) + 1, False, upload)
        return lambda: fed()[:, -1]

    def _feed(
        self,
        backbone: Backbone,
        states: States,
        slots: np.ndarray | None,
        tokens: np.ndarray,
        positions: np.ndarray,
        width: int,
        fresh: bool,
        upload: Upload,
        sources: np.ndarray | None = None,
    ) -> Callable[[], torch.Tensor]:
        """Return what runs tokens (r, k) through the model: hidden states (r, k, D)."""
        if slots is not None and np.array_equal(slots, np.arange(len(self._rows))):
            slots = None
        seen = None
        if backbone.reads_prompt_apart and sources is None:
            known = self._source_lengths if slots is None else self._source_lengths[slots]  # (r,)
            seen = np.arange(self._source_columns) < known[:, None]  # (r, P)
        columns = [upload.add(column) for column in (slots, tokens, positions, sources, seen)]

        def run() -> torch.Tensor:
            there, fed, where, read, seen = (column() for column in columns)
            states.begin(Plan(there, where, width, fresh))
            with self._weights or nullcontext():
                hidden = backbone.feed(Fed(fed, where, read, seen), states)
            states.end()
            return hidden

        return run

    def _slots(self, rows: np.ndarray) -> np.ndarray:
        order = np.argsort(self._rows)
        return order[np.searchsorted(self._rows[order], rows)]


def _some(hidden: Callable[[], torch.Tensor], rows: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    return lambda: hidden()[rows()]


def _before_pictures(backbone: Backbone, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return 0 instead of how many tokens are known where a part of the picture is still to come: it is read with its text."""
    for token in backbone.placeholders:
        ahead = (ids == token) & (np.arange(ids.shape[1]) >= known[:, None])  # (B, W)
        known = np.where(ahead.any(1), 0, known)
    return known


def _same_rows(now: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Return which rows hold the same ids, -1 beyond them, or the same picture, shape (B,)."""
    if before is None:
        return np.zeros(len(now), bool)
    if now.ndim > 2:  # pictures
        return (now == before).reshape(len(now), -1).all(1)
    width = max(now.shape[1], before.shape[1])
    one, two = (np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=-1) for a in (now, before))
    return (one == two).all(1)


@torch.no_grad()
def check_cache(backbone: Backbone, longest: int, weights: DecodingWeights | None = None) -> None:
    """Try whether cached decoding gives what full passes give; if not, warn and decode without a cache.

    A model that ignores `position_ids`, attends to a window that the cache does not know, or keeps a state of its own, would
    otherwise write with probabilities that the update does not find again.

    Args:
        backbone: The model.
        longest: Tokens of the longest text to come; windows are met at the end of such a text, if it is not a short one anyway.
        weights: What steps will be computed with.
    """
    backbone.cacheable, backbone.tried = True, max(longest, _SHORT)
    longest = min(longest, backbone.context_length or longest)
    courses = [[_PROMPTS, _PROMPTS + 1, _PROMPTS + np.array([2, 4, 2])]]
    if longest > _SHORT:
        nearly = np.array([longest - 1, longest // 2, _PROMPTS[2]])
        courses.append([nearly, nearly + 1])
    tokens = example_ids(backbone, (3, max(longest, _SHORT)))
    autocast, backbone.autocast = backbone.autocast, None
    try:
        for course in courses:
            decoder = CachedDecoder(weights=weights)
            for lengths in course:
                ids = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, -1)
                texts = PartialTexts(ids, lengths, _PROMPTS, backbone.example_images(len(ids)))
                if not _agrees(decoder, backbone, texts):  # weights that are NaN say nothing; the policy complains of them
                    backbone.cacheable, backbone.tried = None, 0
                    return
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        backbone.cacheable = False
        warnings.warn(
            f"{type(backbone.lm).__name__} decodes without a cache, each token at the price of its whole text: cached passes do not give "
            f"what full ones give ({error}); models that ignore position_ids are such, and some with a sliding window",
            stacklevel=2,
        )
    finally:
        backbone.autocast = autocast


def _agrees(decoder: CachedDecoder, backbone: Backbone, texts: PartialTexts) -> bool:
    """Return whether hidden states with the cache are those of full passes; False if the latter are not finite.

    Raises:
        ValueError: They are not.
    """
    full, alone = (backbone.hidden(one_action_each(part, backbone.device)) for part in (texts, texts.only(slice(1, 2))))
    if not torch.isfinite(full).all():
        return False
    # What rounding does: the same text in a larger batch.  A layer that is wrong differs by thousands of times as much.
    rounding = max(float((full[1] - alone[0]).abs().max()), 1e-6 * float(full.abs().max()))
    worst = float((decoder.last_hidden(backbone, texts) - full).abs().max())
    if not worst < 30 * rounding:
        raise ValueError(f"at {texts.lengths.max()} tokens hidden states differ by {worst:.1g}, rounding alone by {rounding:.1g}")
    return True
