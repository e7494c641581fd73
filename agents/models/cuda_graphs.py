"""Decoding steps as CUDA graphs: recorded once, replayed without Python.

A step of a small model is hundreds of short kernels, and starting them one by one from Python takes longer than they run.  A
graph replays them all at once, on fixed shapes and addresses: all slots of the buffers, all their columns.  What lies behind a
row's position is masked as always, so the numbers are those of the ordinary step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from .backbones import Backbone
from .backbones.base import Fed
from .backbones.kv_cache import Plan, States

Replay = Callable[[], torch.Tensor]


class GraphedSteps:
    """Steps of one cache; a graph is recorded anew when buffers move or precision changes."""

    def __init__(self) -> None:
        self._replay: Replay
        self.usable = True
        self.forget()

    def forget(self) -> None:
        """Record anew: the cache or the weights are no longer where they were."""
        self._key: tuple[object, ...] = ()

    def step(self, backbone: Backbone, states: States, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """Feed one token to every slot in use.

        Args:
            backbone: The model, on a GPU.
            states: Its cache.
            tokens: Shape (S, 1), on the GPU.
            positions: Shape (S, 1).

        Returns:
            Hidden states (S, D), float32; None if a graph cannot be recorded: the caller takes the ordinary way.
        """
        key = (id(states), states.generation, backbone.autocast)
        if not self.usable or not states.generation:
            return None
        if key != self._key:
            self._tokens = torch.zeros(states.capacity, 1, dtype=torch.int64, device=backbone.device)
            self._positions = torch.zeros_like(self._tokens)
        self._tokens[: len(tokens)] = tokens
        self._positions[: len(tokens)] = positions
        if key != self._key:
            try:
                self._replay = record(lambda: self._run(backbone, states))
            except RuntimeError as error:
                self.usable = False
                first = str(error).strip().splitlines()[0]
                warnings.warn(f"no CUDA graph of this model ({first}): decoding goes on without", stacklevel=2)
                return None
            self._key = key
        return self._replay()[: len(tokens)].clone()

    def _run(self, backbone: Backbone, states: States) -> torch.Tensor:
        # Slots that are not in use write their junk to column 0 of their own, which is written anew before it is read.
        states.begin(Plan(None, self._positions, states.columns, False))
        return backbone.feed(Fed(self._tokens, self._positions), states)[:, -1]


def record(run: Callable[[], torch.Tensor]) -> Replay:
    """Record what `run` does on the GPU; return a function that does it again and returns the same tensor, filled anew.

    Raises:
        RuntimeError: There is no GPU, or something in `run` cannot be recorded.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries set themselves up at first calls, which must not be recorded
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay
