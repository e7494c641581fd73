"""Checkpoints that all ranks write together and any number of ranks reads: tensors as safetensors, all else as JSON.

torch.distributed.checkpoint writes them, each rank its part of a sharded tensor and its share of those that all hold.  Its storage in
the format of Hugging Face is taken, for the other one describes the files in a pickle, which runs code when it is read.  So each rank can
read its part of a model in the files of transformers as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
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
_READ = 1 << 24  # bytes of each file of a model that ranks compare


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


def file_tensors(lm: nn.Module, folder: Path) -> dict[str, str] | None:
    """Return the name of each tensor in files of transformers, by the module's name of it.

    Args:
        lm: A model of transformers; its parameters may lie on the device "meta".
        folder: Holds the files.

    Returns:
        The names, tied weights once; None unless each parameter has a tensor of its shape that needs nothing but to be read: files of other
        names, of quantized weights, or of what transformers converts (experts that it stacks) have not.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    config: Any = lm.config
    if getattr(config, "quantization_config", None) or any(isinstance(it, WeightConverter) for it in get_model_conversion_mapping(lm)):  # type: ignore[arg-type]
        return None
    saved: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    names: dict[str, str] = {}
    tied: dict[int, str] = {}
    for name, tensor in lm.state_dict(keep_vars=True).items():
        short = name.removeprefix(f"{lm.base_model_prefix}.")
        found = next((key for key in (name, short) if key in saved and saved[key].size == tensor.shape), None)
        if found and tied.setdefault(id(tensor), name) != name:
            return None  # transformers compares the two, and unties them if they differ
        names |= {name: found} if found else {}
    missing = {id(parameter) for parameter in lm.parameters()} - tied.keys()
    return None if missing else names


def read_tensors(module: nn.Module, folder: Path, names: Mapping[str, str]) -> None:
    """Read tensors of a module in place, of those in shards this process's part, from files of safetensors that all can read.

    Args:
        module: Its parameters, plain or in shards.
        folder: Holds the files.
        names: Theirs by the module's, see `file_tensors`.

    Raises:
        RankError: The folder of another rank holds other files.
    """
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    files = sorted(folder.glob("*.safetensors"))
    ranks().check_equal({f"weights in {folder}": [_beginning(file) for file in files]})
    state = module.state_dict(keep_vars=True)
    with _own_errors():
        load({key: state[name] for name, key in names.items()}, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _beginning(file: Path) -> tuple[int, str]:
    """Return a file's size, and a hash of its first bytes: names, shapes and the first weights."""
    with file.open("rb") as opened:
        return file.stat().st_size, hashlib.sha256(opened.read(_READ)).hexdigest()


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
