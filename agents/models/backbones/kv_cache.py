"""A model's cache for the texts in its rows: keys and values by position, or recurrent states."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

BLOCK = 32  # columns by which buffers grow


class Plan(NamedTuple):
    """Where one pass of the model reads and writes.

    Attributes:
        slots: Slots of the rows in this pass, shape (r,); None: all slots, in order.
        positions: Column that each token's key goes to, shape (r, k).
        width: Columns that are in use once these tokens are in.
        fresh: Whether nothing came before, so that the pass need only look at itself.
    """

    slots: torch.Tensor | None
    positions: torch.Tensor
    width: int
    fresh: bool


class States:
    """The states of all layers, for S slots.

    The key of a row's token at position p lies in column p of the row's slot.  So a row looks at the columns up to its own
    position, whatever the other rows do; what lies beyond is never read before it is written anew.

    Attributes:
        plan: Of the pass under way.
        generation: Grows when buffers move; 0 before the first pass has made them.
        num_slots: S, the slots in use.
        capacity: Slots of the buffers; those in use are the first ones.
        columns: Columns of the buffers.
        source_columns: The same of the buffers of cross-attention.
        cache: What a transformers model is given.
        sources: Cross-attention's layers; empty without an encoder.
    """

    def __init__(self, recurrent: list[bool] | None = None) -> None:
        """Args: `recurrent`: which layers carry a recurrent state; None: none does, and layers are made when first used."""
        self.plan: Plan
        self.rows: torch.Tensor
        self.num_slots = self.capacity = self.columns = self.source_columns = self.generation = 0
        self.recurrent = bool(recurrent and any(recurrent))
        if recurrent is None:
            self.cache = Cache(layer_class_to_replicate=lambda: KeysAndValues(self))  # type: ignore[arg-type]  # it is only called
        else:
            self.cache = Cache(layers=[RecurrentState(self) if kind else KeysAndValues(self) for kind in recurrent])
        self.cross = Cache(layer_class_to_replicate=lambda: SourceKeysAndValues(self))  # type: ignore[arg-type]

    def begin(self, plan: Plan) -> None:
        """Prepare for a pass of the model, where `plan` says."""
        self.plan = plan
        slots = torch.arange(len(plan.positions), device=plan.positions.device) if plan.slots is None else plan.slots
        self.rows = slots[:, None]  # (r, 1)
        for layer in (*self.cache.layers, *self.cross.layers):
            if isinstance(layer, (RecurrentState, SourceKeysAndValues)):
                layer.open()

    def end(self) -> None:
        """Write back what the pass changed in copies."""
        self.generation = max(self.generation, 1)
        for layer in self.cache.layers:
            if isinstance(layer, RecurrentState):
                layer.close()

    def lay_out(self, num_slots: int, columns: int, source_columns: int) -> None:
        """Use the first `num_slots` slots, in new buffers of the given size if those there are do not fit."""
        fits = num_slots <= self.capacity <= 2 * num_slots and (columns, source_columns) == (self.columns, self.source_columns)
        kept, self.num_slots = min(self.num_slots, num_slots), num_slots
        if fits:
            return
        self.capacity, self.columns, self.source_columns = num_slots, columns, source_columns
        self.generation += 1 if self.cache.layers else 0
        for layer in (*self.cache.layers, *self.cross.layers):
            layer.lay_out(kept)  # type: ignore[union-attr]  # every layer here is one of ours

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy the states of slots `source` to slots `target`, shape (n,) each."""
        for layer in (*self.cache.layers, *self.cross.layers):
            layer.copy_slots(source, target)  # type: ignore[union-attr]

    @property
    def memory(self) -> int:
        """Bytes of all buffers."""
        buffers = [b for layer in (*self.cache.layers, *self.cross.layers) for b in layer.buffers()]  # type: ignore[union-attr]
        return sum(b.numel() * b.element_size() for b in buffers)


class KeysAndValues(CacheLayerMixin):
    """Keys and values of one layer in buffers of shape (S, H, C, Dh), written in place."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, states: States) -> None:
        super().__init__()
        self.states = states

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers."""
        slots, columns = self.states.capacity, self._columns()
        self.keys = key_states.new_zeros(slots, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(slots, value_states.shape[1], columns, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values of shape (r, H, k, Dh) to their columns; return all that the rows may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots, positions, width, fresh = self.states.plan
        self.keys[self.states.rows, :, positions] = key_states.transpose(1, 2)  # (r, k, H, Dh)
        self.values[self.states.rows, :, positions] = value_states.transpose(1, 2)
        if fresh:
            return key_states, value_states
        if slots is None:
            used = len(positions)
            return self.keys[:used, :, :width], self.values[:used, :, :width]
        return self.keys[slots, :, :width], self.values[slots, :, :width]

    def _columns(self) -> int:
        return self.states.columns

    def lay_out(self, kept: int) -> None:
        """Move the first `kept` slots into buffers of the size that `states` names."""
        if self.is_initialized:
            self.keys, self.values = (_laid_out(b, kept, self.states.capacity, self._columns()) for b in self.buffers())

    def copy_slots(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy whole slots."""
        for buffer in self.buffers():
            buffer[target] = buffer[source]

    def buffers(self) -> list[torch.Tensor]:
        """Return keys and values; nothing before the first pass."""
        return [self.keys, self.values] if self.is_initialized else []

    def get_seq_length(self) -> int:
        """Return how many columns lie before the tokens of this pass."""
        return 0 if self.states.plan.fresh else self.states.plan.width - self.states.plan.positions.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the tokens of this pass look at, and where they begin."""
        return (query_length if self.states.plan.fresh else self.states.plan.width), 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class SourceKeysAndValues(KeysAndValues):
    """Keys and values that cross-attention reads: computed from an encoder's output once, when a text begins."""

    stored: tuple[torch.Tensor, torch.Tensor]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values of shape (r, H, P, Dh)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.stored = (self.keys, self.values)
        slots = self.states.plan.slots
        rows = slice(self.states.num_slots) if slots is None else slots
        for buffer, new in zip(self.stored, (key_states, value_states), strict=True):
            buffer[rows, :, : new.shape[2]] = new
        return key_states, value_states

    def open(self) -> None:
        """Point `keys` and `values`, which transformers reads by name, to the rows of this pass."""
        if self.is_initialized and not self.states.plan.fresh:
            slots = self.states.plan.slots
            rows = slice(self.states.num_slots) if slots is None else slots
            self.keys, self.values = self.stored[0][rows], self.stored[1][rows]

    def _columns(self) -> int:
        return self.states.source_columns

    def lay_out(self, kept: int) -> None:
        """Move the first `kept` slots."""
        if self.is_initialized:
            keys, values = (_laid_out(b, kept, self.states.capacity, self._columns()) for b in self.stored)
            self.stored = (keys, values)

    def buffers(self) -> list[torch.Tensor]:
        """Return keys and values; nothing before the first pass."""
        return list(self.stored) if self.is_initialized else []


class RecurrentState(LinearAttentionLayer):
    """State of one layer that folds the past into a vector (Mamba, linear attention): no positions, nothing to mask.

    transformers changes states in place.  A pass over all slots works on the store itself, any other on copies that `close`
    writes back.
    """

    def __init__(self, states: States) -> None:
        super().__init__()
        self.states = states
        self.store: dict[str, torch.Tensor] = {}

    def open(self) -> None:
        """Put the rows of this pass where transformers reads them."""
        fresh = self.states.plan.fresh
        for name in ("conv", "recurrent"):
            known = not fresh and name in self.store
            getattr(self, f"is_{name}_states_initialized")[0] = known
            getattr(self, f"{name}_states")[0] = self.store[name][self._rows()] if known else None
        self.has_previous_state[0] = not fresh and bool(self.store)

    def close(self) -> None:
        """Write the copies of this pass back to the store."""
        for name in ("conv", "recurrent"):
            state: Any = getattr(self, f"{name}_states")[0]
            if state is None:
                continue
            if name not in self.store:
                self.store[name] = state.new_zeros(self.states.capacity, *state.shape[1:])
            if state.data_ptr() != self.store[name].data_ptr():
                self.store[name][self._rows()] = state

    def _rows(self) -> Any:
        slots = self.states.plan.slots
        return slice(self.states.num_slots) if slots is None else slots

    def lay_out(self, kept: int) -> None:
        """Move the first `kept` slots."""
        for name, buffer in self.store.items():
            self.store[name] = buffer.new_zeros(self.states.capacity, *buffer.shape[1:])
            self.store[name][:kept] = buffer[:kept]

    def copy_slots(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy whole slots."""
        for buffer in self.store.values():
            buffer[target] = buffer[source]

    def buffers(self) -> list[torch.Tensor]:
        """Return all states."""
        return list(self.store.values())


def _laid_out(buffer: torch.Tensor, kept: int, slots: int, columns: int) -> torch.Tensor:
    new = buffer.new_zeros(slots, buffer.shape[1], columns, buffer.shape[3])
    shared = min(columns, buffer.shape[2])
    new[:kept, :, :shared] = buffer[:kept, :, :shared]
    return new
