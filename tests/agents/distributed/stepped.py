"""Optimizer steps of several processes: `torchrun --nproc-per-node 3 -m tests.agents.distributed.stepped FOLDER`.

Apart from `ranked`, since this needs torch alone: each process is there in half the time.
"""

import copy
import pickle
import sys
from pathlib import Path

import torch

from agents.distributed import shared_memory_optimizer as shared_step
from agents.distributed.process_group import ranks

SHAPES = ((3, 5), (7,), (2,), (4,), (), (6,))


def gradient_of(rank, number, i):
    """Return what a rank's backward pass leaves: nobody reaches the third parameter, and the second only the last rank does."""
    if i == 2 or (i == 1 and rank != ranks().size - 1):
        return None
    rng = torch.Generator().manual_seed(100 * number + 10 * rank + i)
    return torch.randn(SHAPES[i], generator=rng).double() if i == 5 else torch.randn(SHAPES[i], generator=rng)


def parameters_of():
    return [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64 if i == 5 else torch.float32)) for i, shape in enumerate(SHAPES)]


def steps(folder):
    """Step through memory and through gloo."""
    found = {}
    for memory in (shared_step.MEMORY, Path("nowhere")):
        shared_step.MEMORY = memory
        parameters = parameters_of()
        optimizer = torch.optim.Adam(parameters, lr=0.1, fused=True)
        for number in range(4):
            if number == 2:  # as a checkpoint is loaded
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                for parameter in parameters:
                    parameter.data = parameter.data.clone()
            for i, parameter in enumerate(parameters):
                parameter.grad = gradient_of(ranks().rank, number, i)
            norm = ranks().step(optimizer, parameters, 1.5)
            held = [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict()["state"])
            found[memory.name, number] = (float(norm), *held)
            ranks().wait()  # others read what the next step writes
        found[memory.name] = type(ranks()._steps[optimizer]).__name__
    said = ""
    try:
        with_numbers()
    except ValueError as error:
        said = str(error)
    left_over = list(Path("/dev/shm").glob("textrl-*"))
    (folder / f"steps-{ranks().rank}.pickle").write_bytes(pickle.dumps((found, said, left_over)))


def with_numbers():
    """Step an optimizer that counts in plain numbers."""

    class Counts(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["seen"] = 1

    shared_step.MEMORY = Path("/dev/shm")
    parameters = parameters_of()[:2]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    ranks().step(Counts(parameters, lr=0.1), parameters, 1.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    steps(Path(sys.argv[1]))
