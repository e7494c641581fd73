"""Checkpoints that all ranks write together and any number of ranks reads: tensors as safetensors, all else as JSON.

torch.distributed.checkpoint writes them, each rank its part of a sharded tensor and its share of those that all hold.  Its storage in
the format of Hugging Face is taken, for the other one describes the files in a pickle, which runs code when it is read.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from textrl_env.utils.files import new_folder

from .process_group import ranks
from .ranks import RankError

_FACTS = "training.json"


def save_sharded(
    folder: str | Path,
    module: nn.Module,
    optimizer: Optimizer | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all; all ranks call it together, and the folder is one that all of them see.

    Args:
        folder: What it replaces, if it is there.
        module: Its weights, plain or sharded; parameters that do not learn are left out.
        optimizer: Of its parameters.
        tensors: More of them, the same on all ranks; of names other than `model....` and `optimizer....`.
        facts: What else `load_sharded` is to return, as plain data.

    Raises:
        OSError: There is no room on the disk, or another rank is gone; what was there before is unchanged.
    """
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    together, stated = ranks(), dict(facts or {})
    state = {**(tensors or {}), **_apart(_weights(module))}
    if optimizer is not None:
        own = optimizer.state_dict()
        state |= {f"optimizer.{i}.{part}": value for i, parts in own["state"].items() for part, value in parts.items()}
        stated["groups"] = own["param_groups"]
    with new_folder(folder) if together.is_main else nullcontext() as made:
        made = together.broadcast(made)
        writer = HuggingFaceStorageWriter(str(made), save_distributed=True)
        writer.per_thread_copy_ahead = 0  # copying ahead asks for streams, which not every device has
        with together.together(), _own_errors():
            save(state, storage_writer=writer, no_dist=together.size == 1)
        if together.is_main:
            (made / _FACTS).write_text(json.dumps(stated), encoding="utf-8")
    together.wait()  # until it has its name


def load_sharded(
    folder: str | Path, module: nn.Module, optimizer: Optimizer | None = None, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Any] | None:
    """Restore in place what any number of ranks saved with `save_sharded`; all ranks call it together.

    Returns:
        The facts; None if there is no checkpoint.

    Raises:
        ValueError: It is damaged, or of another model.
    """
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    folder = Path(folder)
    if not folder.is_dir():
        return None
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        with ranks().together(), _own_errors():
            saved = _whole(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
            state = {**(tensors or {}), **_weights(module)}
            of_model = {name for name in saved if name.startswith("model.")}
            if wrong := sorted(name.removeprefix("model.") for name in of_model.symmetric_difference(_weights(module))):
                raise ValueError(f"{len(wrong)} names are not in both, {wrong[0]} among them")
            steps = {} if optimizer is None else _room_for(optimizer, saved)
            state |= {f"optimizer.{i}.{part}": value for i, parts in steps.items() for part, value in parts.items()}
            load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=ranks().size == 1)
        if optimizer is not None:
            optimizer.load_state_dict({"state": steps, "param_groups": facts.pop("groups")})
    except RankError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} is no checkpoint of this training ({error}): delete it to start over") from error
    return facts


def copy_with(module: nn.Module, weight_of: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """Return a copy of a module with other weights: none, on the device "meta", before it is cut into shards, or whole ones afterwards.

    Torch copies no module that is in shards.  Tied weights stay tied.
    """
    parameters = {id(p): nn.Parameter(weight_of(name, p), p.requires_grad) for name, p in module.named_parameters()}
    return copy.deepcopy(module, dict(parameters))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters that learn, and buffers, by name."""
    frozen = {name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {f"model.{name}": value for name, value in module.state_dict(keep_vars=True).items() if name not in frozen}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tied weights, which are two names of one tensor: safetensors refuses those."""
    first = {id(value): name for name, value in reversed(list(tensors.items()))}
    return {name: value if first[id(value)] == name else value.detach().clone() for name, value in tensors.items()}


def _whole(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Insist that no part of a tensor is missing: what no file holds would stay as it was, in silence."""
    for name, tensor in saved.items():
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
            raise ValueError(f"a file is missing that holds a part of {name}")
    return saved


def _room_for(optimizer: Optimizer, saved: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
    """Return tensors for what was saved of each parameter's state, sharded as the parameter where it has its shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        if name.startswith("optimizer."):
            _, index, part = name.split(".", 2)
            parameter, dtype = parameters[int(index)], tensor.properties.dtype
            same = parameter.shape == tensor.size
            states.setdefault(int(index), {})[part] = (
                torch.zeros_like(parameter, dtype=dtype, requires_grad=False) if same else torch.zeros(tensor.size, dtype=dtype)
            )
    return states


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the exception itself that torch wraps in one which is no `Exception`; with one process it warns that there is one."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
