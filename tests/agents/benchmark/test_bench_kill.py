"""A benchmark that is killed again and again ends with the table of one that was not."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TIME_AND_MEMORY = ("seconds", "tokens_per_second", "seconds_to_threshold", "write_tokens_per_second", "peak_memory_mib")


def command(out):
    return [
        sys.executable, "-m", "agents.cli", "bench", "--tasks", "exact-smooth,recall-4", "--agents", "random,best-of-n:n=2,dpo,ppo,rloo",
        "--seeds", "2", "--tokens", "3000", "--texts", "64", "--out", str(out),
    ]  # fmt: skip


def table(out):
    rows = csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in row.items() if key not in TIME_AND_MEMORY} for row in rows]


def test_ten_kills_leave_no_trace(tmp_path):
    root = Path(__file__).parents[3]
    subprocess.run(command(tmp_path / "whole"), cwd=root, check=True, capture_output=True)
    rng, kills = np.random.default_rng(0), 0
    while kills < 10:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        runner = subprocess.Popen(command(tmp_path / "killed"), cwd=root, start_new_session=True, **quiet)
        time.sleep(float(rng.uniform(4, 14)))
        if runner.poll() is None:
            os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
        kills += 1
    subprocess.run(command(tmp_path / "killed"), cwd=root, check=True, capture_output=True)
    assert len(table(tmp_path / "whole")) == 20
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
