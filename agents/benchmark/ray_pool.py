"""Jobs on a Ray cluster: each in a worker process of its own that ends with it.

The results folder must be one that all nodes see under the same path: each cell reads and writes files there.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from ..distributed.ray_cluster import alone, cluster, lost, room
from .process_pool import RECHECK, fail, settle
from .run_job import Job, work

_KILLED = -9  # exit status of a worker that is gone


def run_jobs_on_ray(jobs: Sequence[Job], address: str, processes: int, limit: float, on_done: Callable[[Job], None]) -> None:
    """Run all jobs, as many at a time as the cluster has cores, by the rules of `process_pool.run_jobs`.

    Args:
        jobs: What to run, in this order.
        address: Of the cluster, such as `auto` or `ray://host:10001`; `local` starts one on this machine.
        processes: Cores of a local cluster.
        limit: Seconds after which a worker is killed, and its job recorded as timed out.
        on_done: Called when the result of a job is there.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: No cluster answers at the address.
        FileNotFoundError: A node wrote a result that is not seen here: the folder is not shared.
    """
    with cluster(address, processes) as ray:
        _run(ray, jobs, limit, on_done)


def _run(ray: Any, jobs: Sequence[Job], limit: float, on_done: Callable[[Job], None]) -> None:
    cell, at_once = alone(ray, work, jobs[0].device), room(ray)
    queue, later = deque(jobs), deque[tuple[float, Job]]()
    killed: set[Job] = set()
    running: dict[Any, tuple[Job, float]] = {}

    def done(job: Job) -> None:
        if not job.path.is_file():
            raise FileNotFoundError(f"{job.path}: a worker wrote it and it is not here; --out must be a folder that all nodes share")
        on_done(job)

    while queue or later or running:
        while later and later[0][0] <= monotonic():
            queue.append(later.popleft()[1])
        while queue and len(running) < at_once:
            job = queue.popleft()
            running[cell.remote(dataclasses.replace(job, out=str(Path(job.out).resolve())))] = (job, monotonic())
        ready = ray.wait(list(running), timeout=RECHECK)[0] if running else []
        for reference in ready:
            job, began = running.pop(reference)
            try:
                status = ray.get(reference)
            except lost(ray):
                status = _KILLED
            settle(status, job, monotonic() - began, killed, queue, later, done)
        for reference, (job, began) in list(running.items()):
            if monotonic() - began > limit:
                ray.cancel(reference, force=True)
                del running[reference]
                fail(job, "timeout", f"no result after {limit:.0f} s; raise --limit if that is too short", limit)
                on_done(job)
