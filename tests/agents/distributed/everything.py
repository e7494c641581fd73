"""What two processes do for all tests: `torchrun --nproc-per-node 2 -m tests.agents.distributed.everything FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import torch

from . import engines, offline, parts, ranked

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for task in (engines.main, *offline.TASKS, *ranked.TASKS, parts.loaded, parts.trained):
        torch.seed()  # what the last task made equal on all ranks
        np.random.seed()
        task(folder / "parts" if task.__module__ == parts.__name__ else folder)
