"""The runner on a local Ray with two workers, one of which is killed."""

import csv

import pytest

from agents.benchmark.results import read_results
from agents.cli.main import main

from .test_bench_kill import TIME_AND_MEMORY

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
OWN = "tests.agents.benchmark.own_agents"


def bench(out, agents, *more):
    sizes = ["--tasks", "recall-4,lock-4", "--seeds", "2", "--tokens", "1500", "--texts", "32", "--limit", "60"]
    return main(["bench", *sizes, "--agents", agents, "--out", str(out), *more])


def table(out):
    rows = csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in row.items() if key not in TIME_AND_MEMORY} for row in rows]


@pytest.mark.filterwarnings("default")
def test_a_killed_worker_leaves_no_trace(tmp_path):
    agents = f"random,ppo,{OWN}:DiesOnce:log={tmp_path / 'died'}"
    assert bench(tmp_path / "ray", agents, "--ray", "local") == 0
    assert (tmp_path / "died").is_file()
    assert bench(tmp_path / "here", agents) == 0  # nobody dies any more
    assert len(table(tmp_path / "ray")) == 12 and table(tmp_path / "ray") == table(tmp_path / "here")


@pytest.mark.filterwarnings("default")
def test_failures_and_hangs_are_results(tmp_path):
    agents = f"random,{OWN}:Crashes,{OWN}:Dies,{OWN}:Hangs"
    sizes = ["--tasks", "recall-4", "--seeds", "1", "--tokens", "500", "--texts", "32", "--limit", "20"]
    assert main(["bench", *sizes, "--agents", agents, "--out", str(tmp_path), "--ray", "local"]) == 0
    status = {cell.agent: cell.status for cell in read_results(tmp_path)}
    assert status == {"random": "done", f"{OWN}:Crashes": "crashed", f"{OWN}:Dies": "crashed", f"{OWN}:Hangs": "timeout"}
