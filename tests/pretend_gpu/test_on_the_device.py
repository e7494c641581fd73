"""Every test on the pretend GPU, in three processes of their own: the device changes torch for as long as a process lives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .device import missing

FOLDER = Path(__file__).parent


COMMANDS = {FOLDER / "check_commands.py"}  # which take about as long as all others together
TRAINING = {FOLDER / "check_algorithms.py", FOLDER / "check_offline.py"}  # every algorithm


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(sorted(COMMANDS), id="commands", marks=pytest.mark.slow),
        pytest.param(sorted(TRAINING), id="training", marks=pytest.mark.slow),
        pytest.param(sorted({*FOLDER.glob("check_*.py")} - COMMANDS - TRAINING), id="others"),
    ],
)
def test_on_the_device(files):
    if (reason := missing()) is not None:
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
