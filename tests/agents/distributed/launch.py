"""Starting several processes, and reading what they found."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def torchrun(*arguments, size=2):
    """Return the command that starts `python -m arguments` as often."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "-m", *map(str, arguments)]


def run(command, timeout=240, check=True, **environment):
    """Run a command to its end."""
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": timeout, "start_new_session": True}
    done = subprocess.run(command, env={**os.environ, **QUIET, **environment}, **settings)
    assert not check or done.returncode == 0, done.stderr
    return done


def found_by(folder, name, size=2):
    """Return what each rank wrote into `NAME-RANK.pickle`."""
    return [pickle.loads((folder / f"{name}-{rank}.pickle").read_bytes()) for rank in range(size)]
