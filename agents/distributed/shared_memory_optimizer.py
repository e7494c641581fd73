"""Optimizer steps that the processes of one machine take together, in memory that all of them see.

Summing gradients, clipping and Adam read and write weights, gradients and moments many times over.  If every rank does all of it, none of
that is divided, and 6 million parameters take a fifth of an update of `agents.benchmark.performance.data_parallel`.  Here each
parameter belongs to one rank, which alone sums its gradients and steps it (the partition is that of ZeRO, Rajbhandari
et al. 2020), and weights, gradients and moments lie in shared memory, so that nothing is sent.
"""

from __future__ import annotations

import math
import shutil
import socket
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from .ranks import Ranks

MEMORY = Path("/dev/shm")  # files that are never on a disk; Linux only


class _Shared(NamedTuple):
    """A parameter that all ranks share.

    Attributes:
        owner: The rank that steps it.
        weight: Its numbers.
        gradients: Each rank's, shape (R, ...).
    """

    owner: int
    weight: torch.Tensor
    gradients: torch.Tensor


class SharedStep:
    """Steps an optimizer of all ranks; they must have the same weights before the first step, and the same parameters in each.

    The weights move to shared memory at the first step, and the optimizer's state when it appears.  Whatever replaces them (another
    dtype, a checkpoint) is moved there at the next step.

    Args:
        ranks: Those that step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters: dict[nn.Parameter, _Shared] = {}
        self._states: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
        self._load = [0] * ranks.size  # numbers that belong to each rank
        self._board = torch.empty(0)  # what ranks tell each other in a step, shape (R, 2 + P): faster than messages

    def __call__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Sum all ranks' gradients, clip their norm, and step.

        Args:
            optimizer: Holds the parameters; those that are not among `parameters` must have no gradient.
            parameters: The same on all ranks.
            max_norm: Largest norm of the summed gradients.

        Returns:
            Their norm before clipping.  A rank is left with the clipped gradients of its own parameters only.

        Raises:
            ValueError: The optimizer's state is more than tensors.
        """
        self._share([p for p in parameters if p not in self._parameters or self._parameters[p].weight.data_ptr() != p.data_ptr()])
        rank = self._ranks.rank
        if self._board.shape != (self._ranks.size, 2 + len(parameters)):
            (self._board,) = self._allocate([torch.empty(2 + len(parameters), dtype=torch.float64, device="meta")], (self._ranks.size,))
        self._board[rank, 2:] = torch.tensor([p.grad is not None for p in parameters])
        for parameter in parameters:
            if parameter.grad is not None:
                self._parameters[parameter].gradients[rank].copy_(parameter.grad)
        self._ranks.wait()
        mine = []
        for parameter, there in zip(parameters, self._board[:, 2:].T.tolist(), strict=True):
            parameter.grad = None  # the optimizer leaves it alone
            shared = self._parameters[parameter]
            if shared.owner == rank and any(there):
                parameter.grad = _sum(shared.gradients, there)
                mine.append(parameter)
        norm = self._clip(mine, max_norm)
        optimizer.step()
        new = [p for p in mine if not _same(optimizer.state[p], self._states.get(p, {}))]
        self._board[rank, 1] = len(new)
        self._ranks.wait()
        if self._board[:, 1].any():
            self._share_states(optimizer, parameters, new)
        return norm

    def _clip(self, mine: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
        gradients = [p.grad for p in mine if p.grad is not None]
        self._board[self._ranks.rank, 0] = sum((float(torch.linalg.vector_norm(g)) ** 2 for g in gradients), 0.0)
        self._ranks.wait()
        norm = math.sqrt(math.fsum(self._board[:, 0].tolist()))
        factor = max_norm / (norm + 1e-6)  # as clip_grad_norm_ has it; NaN stays NaN
        if not factor >= 1:
            for gradient in gradients:
                gradient.mul_(factor)
        return torch.tensor(norm)

    @torch.no_grad()
    def _share(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move weights to shared memory, and decide whose they are."""
        if not parameters:
            return
        weights = self._allocate(parameters)
        gradients = self._allocate(parameters, (self._ranks.size,))
        for i in sorted(range(len(parameters)), key=lambda i: -parameters[i].numel()):
            parameter = parameters[i]
            if self._ranks.is_main:
                weights[i].copy_(parameter)
            owner = self._load.index(min(self._load))
            self._load[owner] += parameter.numel()
            self._parameters[parameter] = _Shared(owner, weights[i], gradients[i])
        self._ranks.wait()
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.data = weight

    def _share_states(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], new: Sequence[nn.Parameter]) -> None:
        """Move what the optimizer has begun to keep of `new`, parameters of this rank, to shared memory."""
        index = {p: i for i, p in enumerate(parameters)}
        own = [(index[p], name, _empty(value)) for p in new for name, value in optimizer.state[p].items()]
        told = [row for rows in self._ranks.gather(own) for row in rows]
        for _, name, like in told:
            if isinstance(like, str):
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {name}={like} of a parameter, and several processes share tensors only: choose "
                    "an optimizer whose state is tensors (AdamW), or train in one process"
                )
        tensors = self._allocate([like for _, _, like in told])
        states: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
        for (i, name, _), tensor in zip(told, tensors, strict=True):
            states.setdefault(parameters[i], {})[name] = tensor
            if self._parameters[parameters[i]].owner == self._ranks.rank:
                tensor.copy_(optimizer.state[parameters[i]][name])
        self._ranks.wait()
        for parameter, state in states.items():
            optimizer.state[parameter] = dict(state)
        self._states |= states

    def _allocate(self, like: Iterable[torch.Tensor], more: tuple[int, ...] = ()) -> list[torch.Tensor]:
        """Return tensors of these shapes and types, with `more` dimensions in front, in memory that all ranks see.

        A file each, for what is saved of one tensor must not hold the others; they are gone when all have opened them.
        """
        name = self._ranks.broadcast(f"textrl-{uuid.uuid4().hex}")
        files, tensors = [], []
        for number, one in enumerate(like):
            shape = (*more, *one.shape)
            files.append(MEMORY / f"{name}-{number}")
            tensors.append(torch.from_file(str(files[-1]), shared=True, size=math.prod(shape), dtype=one.dtype).view(shape))
        self._ranks.wait()
        if self._ranks.is_main:
            for file in files:
                file.unlink()
        return tensors


def _sum(gradients: torch.Tensor, there: Sequence[float]) -> torch.Tensor:
    """Add up the gradients of the ranks that have one, in their order; the first of them is overwritten."""
    first, *others = (gradient for gradient, given in zip(gradients, there, strict=True) if given)
    for other in others:
        first += other
    return first


def _same(state: dict[str, Any], shared: dict[str, torch.Tensor]) -> bool:
    return state.keys() == shared.keys() and all(value is shared[name] for name, value in state.items())


def _empty(value: Any) -> torch.Tensor | str:
    """Return a tensor of the same shape and type without numbers, or what is no tensor as text."""
    return torch.empty_like(value, device="meta") if torch.is_tensor(value) else repr(value)


def shared_step(ranks: Ranks, parameters: Sequence[nn.Parameter]) -> SharedStep | None:
    """Return steps in shared memory; None where the ranks are on several machines or on GPUs, or memory is short."""
    numbers = sum(p.numel() * p.element_size() for p in parameters)
    need = (ranks.size + 4) * numbers  # gradients of all, weights, Adam's moments, and as much to spare
    here = all(p.device.type == "cpu" for p in parameters) and MEMORY.is_dir()
    room = here and shutil.disk_usage(MEMORY).free > need  # what is not there ends a process without an exception
    hosts, roomy = zip(*ranks.gather((socket.gethostname(), room)), strict=True)
    return SharedStep(ranks) if len(set(hosts)) == 1 and all(roomy) else None
