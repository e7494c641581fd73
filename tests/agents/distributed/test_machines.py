"""Two machines: network namespaces that share a cable between them and the folder of the run, with equal or different host names."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from agents import TextPPO

from .launch import QUIET, ROOT
from .test_ranks import flags, rows_of

pytestmark = pytest.mark.slow
ADDRESS = ("10.213.7.1", "10.213.7.2")


@pytest.fixture(scope="module")
def cable():
    """Two network namespaces with a virtual cable; the names of namespaces and interfaces."""
    if not all(map(shutil.which, ("ip", "unshare"))) or os.geteuid() != 0:
        pytest.skip("needs root, ip and unshare to make two machines of one")
    names = [f"textrl{os.getpid()}{side}" for side in "ab"]
    ends = [f"trl{os.getpid() % 10**6}{side}" for side in "ab"]
    for name in names:
        if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
            pytest.skip("this system lets nobody make network namespaces")
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESS, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(zip(names, ends, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def machine(cable, number, host, arguments, log):
    """Start one machine's torchrun in namespaces of its own: network, host name, processes."""
    name, end = cable[number]
    train = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
    train += ["--master-addr", ADDRESS[0], "--master-port", "29511", "-m", "agents.cli", "train", *arguments]
    inside = [
        "unshare",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        f'hostname {host}; exec "$@"',
        "sh",
        *train,
    ]
    environment = {**os.environ, **QUIET, "GLOO_SOCKET_IFNAME": end}
    with log.open("w") as file:
        return subprocess.Popen(["ip", "netns", "exec", name, *inside], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)


def both(cable, hosts, arguments, folder):
    logs = [folder / f"log-{number}" for number in range(2)]
    return [machine(cable, i, host, arguments[i], logs[i]) for i, host in enumerate(hosts)], logs


@pytest.mark.parametrize("hosts", [("left", "right"), ("same", "same")], ids=["different-names", "one-name"])
def test_two_machines_train_one_policy_and_go_on(cable, hosts, tiny, tmp_path):
    for tokens, texts in ((800, [16, 32]), (1600, [16, 32, 48, 64])):
        processes, logs = both(cable, hosts, [flags(tiny, tmp_path / "run", tokens)] * 2, tmp_path)
        assert [process.wait(180) for process in processes] == [0, 0], [log.read_text() for log in logs]
        assert "2 processes train one policy" in logs[0].read_text()
        assert [int(row["texts"]) for row in rows_of(tmp_path / "run")][: len(texts)] == texts


@pytest.mark.parametrize("hosts", [("left", "right"), ("same", "same")], ids=["different-names", "one-name"])
def test_a_machine_that_dies_ends_the_other_within_a_minute(cable, hosts, tiny, tmp_path):
    processes, logs = both(cable, hosts, [flags(tiny, tmp_path / "run", 90_000)] * 2, tmp_path)
    limit = time.monotonic() + 180
    while len(rows_of(tmp_path / "run")) < 6:
        assert all(process.poll() is None for process in processes) and time.monotonic() < limit, [log.read_text() for log in logs]
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)  # and with it all its processes
    assert processes[1].wait(10) != 0 and processes[0].wait(60) != 0
    said = " ".join(logs[0].read_text().split())
    assert "the same command goes on from the last checkpoint" in said, said
    assert TextPPO.load(tmp_path / "run" / "ppo" / "policy.zip", device="cpu").num_rollouts >= 5
