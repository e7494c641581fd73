"""Ray clusters for our commands: connecting to one or starting one, and running each task in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from textrl_env.utils.optional_imports import optional_import

LOCAL = "local"


@contextmanager
def cluster(address: str, processes: int | None = None) -> Iterator[Any]:
    """Yield the package `ray`, connected; a cluster that was started here ends with the block.

    Args:
        address: Of the cluster, such as `auto` or `ray://host:10001`; `local` starts one on this machine.
        processes: Cores of a local cluster; None: those of the machine.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: No cluster answers at the address.
    """
    ray = _ray()
    quiet = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": False}
    own = {"num_cpus": processes, "include_dashboard": False} if address == LOCAL else {"address": address}
    ray.init(**own, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def room(ray: Any) -> int:
    """Return how many tasks run at a time: the number of the cluster's cores."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def alone(ray: Any, work: Callable[..., Any], device: str = "auto") -> Any:
    """Return `work` as a remote function with a core and a process of its own, which ends with it and is not tried again.

    Where the cluster has GPUs, as many of these run on each as there are cores for a GPU; Ray hides all others from them.

    Args:
        ray: The package, connected.
        work: What each process does.
        device: Where its models compute; without need of a GPU, such as `"cpu"`, work goes to nodes that have none too.
    """
    gpus = ray.cluster_resources().get("GPU", 0) if device.partition(":")[0] in ("auto", "cuda") else 0
    share = min(1.0, int(1000 * gpus / room(ray)) / 1000)
    return ray.remote(num_cpus=1, num_gpus=share, max_calls=1, max_retries=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(work)


def lost(ray: Any) -> tuple[type[Exception], ...]:
    """Return what `ray.get` raises where a worker was killed, or its node."""
    return ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError


def _ray() -> Any:
    with optional_import("ray", "--ray needs Ray"):
        import ray
        import ray.exceptions
    return ray
