"""Where the host waits for a device, and where it copies to it, counted by line of the source."""

import sys
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .device import NAME

# Operators whose result, or its shape, the host must know before it goes on
WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::equal": "equal",
    "aten::is_nonzero": "bool",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::bincount": "bincount",
    "aten::repeat_interleave": "repeat_interleave",
    "aten::multinomial": "multinomial",
}
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
OUR_OWN = ("/agents/", "/rewards/", "/textrl_env/")
SOURCES = (*OUR_OWN, "/stable_baselines3/", "/sb3_contrib/")


def on_device(value):
    return isinstance(value, torch.Tensor) and value.device.type == NAME


class WaitCounter(TorchDispatchMode):
    """Counts, inside `with`, what stops the host: waits for the device and copies to it, which wait too from pageable memory.

    Attributes:
        waits: How often the host waited, by (what for, line of the source).
        copies: How often it copied to the device, by line of the source.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.copies = Counter(), Counter()

    @property
    def total(self):
        return self.waits.total() + self.copies.total()

    @property
    def own(self):
        """Waits and copies of this project, without those of stable_baselines3 and sb3_contrib."""
        lines = [*((line, n) for (_, line), n in self.waits.items()), *self.copies.items()]
        return sum(n for line, n in lines if line.startswith(tuple(folder[1:] for folder in OUR_OWN)))

    def table(self, per=1):
        """Return lines of text: how often, divided by `per`, what, and where."""
        rows = [
            *((n, f"waits for {what}", line) for (what, line), n in self.waits.items()),
            *((n, "copies", line) for line, n in self.copies.items()),
        ]
        return "\n".join(f"{n / per:8.2f} {what:22} {line}" for n, what, line in sorted(rows, key=lambda row: -row[0]))

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(map(on_device, tree_leaves((args, kwargs, result)))):
            self._count(function._schema.name, args, result)
        return result

    def _count(self, name, args, result):
        if name in COPIES:
            source, target = (args[1], args[0]) if name == "aten::copy_" else (args[0], result)
            if not on_device(target):
                self.waits["a copy to the host", line()] += 1
            elif not on_device(source):
                self.copies[line()] += 1
        elif name in INDEXED:
            indices = [index for index in args[1] if index is not None]
            filled = name != "aten::index" and args[2].numel() == 1  # CUDA fills by a mask without asking where it holds
            if any(index.dtype == torch.bool for index in indices) and not filled:
                self.waits["a boolean index", line()] += 1
            elif not all(map(on_device, indices)):
                self.copies[line()] += 1
        elif name == "aten::lift_fresh":  # `torch.tensor` and `torch.as_tensor` of what lies on the host; their copy itself is not shown
            self.copies[line()] += 1
        elif name in WAITING:
            self.waits[WAITING[name], line()] += 1


def line():
    """Return "folder/file.py:number" of the innermost line of this project or of stable_baselines3, or else of any but torch."""
    frame, other = sys._getframe(1), None
    while frame is not None:
        path = frame.f_code.co_filename
        for folder in SOURCES:
            if folder in path:
                return f"{path[path.rindex(folder) + 1 :]}:{frame.f_lineno}"
        if other is None and "/torch/" not in path and path != __file__:
            other = f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return other
