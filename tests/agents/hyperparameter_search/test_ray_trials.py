"""`textrl tune` on a local Ray: the same trials as without it, though workers are killed."""

import csv
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from agents.hyperparameter_search.flags import Tune
from agents.hyperparameter_search.tune import run_tune

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SIZES = {"task": "exact-smooth", "algo": "a2c", "texts": 32, "seeds": 1, "sampler": "random"}


def tune(out, **more):
    run_tune(Tune(**{"total_tokens": 800, **SIZES, **more}, out=out))
    return list(csv.DictReader((out / "trials.csv").read_text(encoding="utf-8").splitlines()))


def descendants(pid):
    """Yield the processes that a process started, and those that they did."""
    children = [c for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]
    for child in children:
        yield int(child)
        yield from descendants(child)


def at_work():
    found = []
    for pid in descendants(os.getpid()):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_work"):
                found.append(pid)
        except FileNotFoundError:
            pass
    return found


class Killer(threading.Thread):
    """Kills workers, so many times, once there were so many side by side."""

    def __init__(self, times, beside):
        super().__init__(daemon=True)
        self.times, self.beside, self.killed, self.seen = times, beside, [], 0

    def run(self):
        while len(self.killed) < self.times:
            found = [pid for pid in at_work() if pid not in self.killed]
            self.seen = max(self.seen, len(found))
            if found and self.seen >= self.beside:
                os.kill(found[0], signal.SIGKILL)
                self.killed.append(found[0])
            time.sleep(0.05)


def test_a_killed_worker_leaves_no_trace(tmp_path):
    killer = Killer(times=1, beside=2)
    killer.start()
    rows = tune(tmp_path / "ray", trials=4, pruner="none", ray="local")
    assert len(killer.killed) == 1 and killer.seen == 2
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert rows == tune(tmp_path / "here", trials=4, pruner="none")  # numbers, settings and values
    best = [yaml.safe_load((tmp_path / where / "best.yaml").read_text()) for where in ("ray", "here")]
    assert best[0] == best[1]


def test_a_trial_that_is_killed_twice_has_failed(tmp_path):
    Killer(times=2, beside=1).start()
    with pytest.raises(ValueError, match="none of 1 trials was completed"):
        tune(tmp_path, trials=1, ray="local")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["state"], row["error"]) for row in rows] == [("fail", "its worker was killed, twice; was there enough memory?")]


def test_a_bad_trial_is_pruned(tmp_path):
    """The ninth setting is worse than the median of the others: without Ray it is pruned, too."""
    rows = tune(tmp_path / "ray", trials=9, total_tokens=4000, ray="local")
    here = tune(tmp_path / "here", trials=9, total_tokens=4000)
    assert [row["state"] for row in rows] == [row["state"] for row in here] == ["complete"] * 8 + ["pruned"]
    assert rows[:8] == here[:8]
