"""The example's agent takes part in a benchmark, found in the folder where the command is run."""

import subprocess
import sys
from pathlib import Path

import pytest

from agents.benchmark.results import read_results

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_a_parrot_opens_every_lock_unless_it_stutters(tmp_path):
    command = [
        Path(sys.executable).with_name("textrl"), "bench", "--tasks", "lock-4", "--agents", "own_agent:Parrot,own_agent:Parrot:stutter=2",
        "--seeds", "1", "--texts", "32", "--out", tmp_path,
    ]  # fmt: skip
    subprocess.run(command, cwd=EXAMPLES, check=True, capture_output=True, text=True)
    assert [cell.score for cell in read_results(tmp_path)] == [1.0, read_results(tmp_path)[1].score]
    assert read_results(tmp_path)[1].score < 0
