"""Every test on the pretend GPU, a file at a time in a process of its own: the device changes torch for as long as a process lives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .device import missing

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("file", sorted(FOLDER.glob("check_*.py")), ids=lambda path: path.stem)
def test_on_the_device(file):
    if (reason := missing()) is not None:
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
