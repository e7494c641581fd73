"""How the processes of a training hold the weights that they train: one process alone, all of them in each (DDP), a part in each (FSDP2).

The engines are torch's: `DistributedDataParallel`, and `fully_shard` on the layers of the transformer.  Whoever trains hands each pass that
needs gradients to `run` or `add_gradients`, as a function: the gradients of all ranks are added up behind it.
"""

from __future__ import annotations

import copy
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from .ranks import Ranks
from .sharded_checkpoint import file_tensors, read_tensors


class Passes(nn.Module):
    """Calls functions that run a model: what the engines hook, for they know of a module's `forward` only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns."""
        return function(*arguments)


class Engine:
    """A training in one process: nothing is sent.  With several, `DDPEngine` or `FSDPEngine` stands in its place.

    Attributes:
        ranks: The processes that train together.
        sharded: Whether each holds a part of the weights only.  Whatever runs the model must then be run by all ranks as often, in `run`,
            `add_gradients`, `read` or `whole`.
        dtype: In which shards of the layers are sent and used; None: as they are.
    """

    sharded = False
    dtype: torch.dtype | None = None

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over a model whose weights are the same on all ranks; the module stays what it is, and trains from now on.

        Args:
            model: Holds all that `optimizer` steps.
            optimizer: Steps them from now on, in whatever form they are held, with the state that it has.
        """

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that runs the model, and return what it returns; a backward pass through that adds up all ranks' gradients.

        Torch's engines take the mean of gradients: multiply a summand of the ranks' loss by `ranks.size`.
        """
        return function(*arguments)

    def read(self, model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that runs a model, which no backward pass follows, and return what it returns; all ranks call it as often."""
        return function(*arguments)

    def add_gradients(self, loss_of: Callable[..., tuple[torch.Tensor, Any]], *arguments: Any, last: bool = True) -> Any:
        """Add the gradients of a summand of the loss to what the parameters have; the sum is over the ranks and over calls.

        Args:
            loss_of: Returns this rank's summand, and notes; called by all ranks as often, with a summand of 0 if need be.
            *arguments: Its own.
            last: Whether the step comes next; gradients that others wait for are sent then.

        Returns:
            The notes.
        """
        with self._adding(last):
            loss, notes = self.run(loss_of, *arguments)
            if loss.requires_grad:  # a trunk that stands still while its critic warms up
                (loss * self.ranks.size).backward()
        return notes

    def _adding(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Clip the norm of all gradients, and return what it was, on their device."""
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def shard(self, model: nn.Module) -> None:
        """Keep a part only of a model that does not train, if there are shards; `whole` makes it readable."""

    def whole(self, *models: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which all weights of models that were wrapped or sharded are here; others rest as shards meanwhile."""
        return nullcontext()

    def rest(self) -> None:
        """Drop what a pass left whole that no backward pass followed."""

    def gathered(self, state: Any) -> Any:
        """Return a state with whole tensors, on the CPU of rank 0, where it was in shards; all ranks must ask.  Others get no numbers."""
        return state

    def copied(self, module: nn.Module) -> nn.Module:
        """Return a module that can be saved, to rank 0: itself, or a copy with whole weights on the CPU; all ranks must ask."""
        return module


class DDPEngine(Engine):
    """All weights on each rank; each adds up its own gradients, and DDP sums them over the ranks during the backward pass."""

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put torch's DDP around the model."""
        passes = Passes(model)
        passes.unused = nn.Parameter(next(model.parameters()).new_zeros(1))  # or DDP warns, on all ranks, where it finds all in use
        with self.ranks.together():
            # Unused are a value head whose loss does not count, and all but the critic while it warms up
            self._ddp = DistributedDataParallel(passes, find_unused_parameters=True, gradient_as_bucket_view=True)
        self._ddp.broadcast_buffers = False  # buffers do not train; the argument's name depends on torch's version

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Engine`."""
        return self._ddp(function, *arguments)

    def _adding(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._ddp.no_sync()


class FSDPEngine(Engine):
    """A part of the weights, gradients and optimizer on each rank; layers are put together when they are needed, and dropped at once.

    Args:
        ranks: Those that train together.
        dtype: In which weights of the layers are sent and used; None: as they are.  Gradients are summed in float32.
    """

    sharded = True

    def __init__(self, ranks: Ranks, dtype: torch.dtype | None = None) -> None:
        super().__init__(ranks)
        self.dtype = dtype
        self._precision = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
        self._roots: list[Any] = []  # of each model: what fully_shard was called on last
        self._present: list[Any] = []  # those that are whole
        self._empty: dict[nn.Module, nn.Module] = {}  # layers as they were before they were cut, without weights: torch copies no shards
        if ranks.device.type == "cpu":
            _give_back_large_blocks()

    def load(self, lm: nn.Module, folder: Path) -> bool:
        """Cut a model of transformers whose parameters lie on the device "meta", and read this rank's part from files of safetensors.

        No process ever holds more than its part of the layers, and the weights outside of them.

        Returns:
            Whether that was done; the model is left as it is where the files do not hold each parameter as it is, see `file_tensors`.
        """
        if (tensors := file_tensors(lm, folder)) is None:
            return False
        device = self.ranks.device
        with self.ranks.together():
            self._cut(lm)
        lm._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
        lm.tie_weights()  # type: ignore[operator]
        read_tensors(lm, folder, tensors)
        return True

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Cut model and optimizer into shards."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.shard(model)
        self._trained, sharded = self._roots[-1], dict(model.named_parameters())
        for group in optimizer.param_groups:
            before, group["params"] = group["params"], [sharded[names[parameter]] for parameter in group["params"]]
            for old, new in zip(before, group["params"], strict=True):
                if state := optimizer.state.pop(old, None):
                    optimizer.state[new] = {name: _like(value, new) for name, value in state.items()}

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Engine`."""
        return self._trained(function, *arguments)

    def read(self, model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `Engine`."""
        root = next((root for root in self._roots if model in set(root.modules())), None)
        if root is None:  # not cut yet
            return function(*arguments)
        try:
            return root(function, *arguments)
        finally:
            _reshard(root)

    def shard(self, model: nn.Module) -> None:
        """Cut a model into shards."""
        root: Any = Passes(model)
        with self.ranks.together():
            self._cut(model)
            fully_shard(root)
            root(lambda: None)  # the first that runs is the root to torch
            root.reshard()
        self._roots.append(root)

    def _cut(self, model: nn.Module) -> None:
        for layer in layers_of(model):
            if layer not in self._empty:
                self._empty[layer] = copy_with(layer, lambda _, parameter: torch.empty_like(parameter, device="meta"))
                fully_shard(layer, mp_policy=self._precision)

    @contextmanager
    def whole(self, *models: nn.Module) -> Iterator[None]:
        """See `Engine`: it takes the memory of the models' weights in the precision in which they are sent."""
        before = self._present
        self._hold([root for root in self._roots if any(part in models for part in root.modules())])
        try:
            yield
        finally:
            self._hold(before)

    def _hold(self, roots: list[Any]) -> None:
        with self.ranks.together():
            for root in (root for root in self._present if root not in roots):
                for part in _parts(root):
                    part.set_reshard_after_forward(part is not root, recurse=False)
                    part.reshard()
            for root in (root for root in roots if root not in self._present):
                for part in _parts(root):
                    part.set_reshard_after_forward(False, recurse=False)
                    part.unshard()
        self._present = roots

    def rest(self) -> None:
        """See `Engine`."""
        _reshard(self._trained)

    def gathered(self, state: Any) -> Any:
        """See `Engine`."""

        def here(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            whole = value.full_tensor()
            return whole.cpu() if self.ranks.is_main else whole.new_empty(0)

        with self.ranks.together():
            return tree_map(here, state)

    def copied(self, module: nn.Module) -> nn.Module:
        """See `Engine`."""
        state = self.gathered(module.state_dict())
        if not self.ranks.is_main:
            return module
        names = {part: name for name, part in module.named_modules() if part in self._empty}
        layers = {id(part): copy_with(self._empty[part], partial(_of, state, name)) for part, name in names.items()}
        return copy_with(module, lambda name, _: state[name], layers)


def _give_back_large_blocks() -> None:
    """Keep glibc from raising the size from which it returns freed blocks: between layers its heap grew to ten times the model."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD


def _of(state: Mapping[str, torch.Tensor], part: str, name: str, _: nn.Parameter) -> torch.Tensor:
    return state[f"{part}.{name}"]


def copy_with(
    module: nn.Module, weight_of: Callable[[str, nn.Parameter], torch.Tensor], parts: Mapping[int, nn.Module] | None = None
) -> nn.Module:
    """Return a copy of a module with other weights; `parts` stand for those of its modules whose `id` they have.  Ties stay."""
    parameters = {id(p): nn.Parameter(weight_of(name, p), p.requires_grad) for name, p in module.named_parameters()}
    return copy.deepcopy(module, {**parameters, **(parts or {})})


def _like(value: Any, parameter: nn.Parameter) -> Any:
    """Return what an optimizer keeps of a parameter, in shards as the parameter is if it has its shape."""
    sharded = isinstance(parameter, DTensor) and torch.is_tensor(value) and value.shape == parameter.shape
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None) if sharded else value  # type: ignore[attr-defined]


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers: the members of the outermost module lists, in whatever part of the model they are."""
    for part in model.children():
        if isinstance(part, nn.ModuleList):
            yield from part
        else:
            yield from layers_of(part)


def _parts(root: nn.Module) -> list[Any]:
    return [part for part in root.modules() if isinstance(part, FSDPModule)]


def _reshard(root: nn.Module) -> None:
    for part in _parts(root):
        part.reshard()


def shards_by_launcher() -> bool:
    """Return whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def engine_of(ranks: Ranks, shard: bool = False, dtype: torch.dtype | None = None) -> Engine:
    """Return the engine of these processes.

    Args:
        ranks: Those that train together.
        shard: Each of several is to hold a part of the weights only; `accelerate launch --use_fsdp` asks for it too.
        dtype: See `FSDPEngine`.

    Raises:
        ValueError: Shards in one process.
    """
    if ranks.size > 1:
        return FSDPEngine(ranks, dtype) if shard or shards_by_launcher() else DDPEngine(ranks)
    if shard:
        raise ValueError("shard=True in one process: there is nobody to hold the other parts; start several with torchrun")
    return Engine(ranks)
