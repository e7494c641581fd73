import os

import pytest
import torch

from .device import missing, register
from .waits import WaitCounter


@pytest.fixture(scope="session")
def pretend_gpu() -> torch.device:
    """The pretend GPU, for tests in files `check_*.py`: it changes torch for the rest of the process."""
    assert "PYTEST_XDIST_WORKER" not in os.environ, "other tests run in this process: put the test into a file check_*.py"
    if (reason := missing()) is not None:
        pytest.skip(reason)
    return register()


@pytest.fixture
def count_waits(pretend_gpu):
    """Return the class of context managers that count waits for the device and copies to it."""
    return WaitCounter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "pretend_gpu" in getattr(item, "fixturenames", ()):  # the CPU's kernels write into results of another shape, and say so
            item.add_marker(pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning"))
