"""Jobs in processes of their own, several at a time: one that dies, hangs or leaks memory harms no other."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from time import monotonic
from typing import Any

from ..utils.fresh_processes import fresh_processes
from .run_job import BUSY, DONE, Job, record_failure, work

RECHECK = 2.0  # seconds until a job that another runner holds is looked at again


def run_jobs(jobs: Sequence[Job], processes: int, limit: float, on_done: Callable[[Job], None]) -> None:
    """Run all jobs, each in a fresh process.

    A process that is killed gets a second chance, so that stopping the whole run leaves no false failure behind; then it is
    recorded as crashed.  Several runners may share a folder: a job that another one holds is waited for.

    Args:
        jobs: What to run, in this order.
        processes: How many at a time.
        limit: Seconds after which a process is killed, and recorded as timed out.
        on_done: Called when the result of a job is there.
    """
    context = fresh_processes()
    queue, later = deque(jobs), deque[tuple[float, Job]]()
    killed: set[Job] = set()
    running: dict[int, tuple[Any, Job, float]] = {}
    try:
        while queue or later or running:
            while later and later[0][0] <= monotonic():
                queue.append(later.popleft()[1])
            while queue and len(running) < processes:
                job = queue.popleft()
                process = context.Process(target=_child, args=(job,), name=job.name)
                process.start()
                running[process.sentinel] = (process, job, monotonic())
            for sentinel in wait(list(running), timeout=0.2) if running else []:
                process, job, began = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                settle(process.exitcode, job, monotonic() - began, killed, queue, later, on_done)
            if not running and later and not queue:
                wait([], timeout=0.2)
            for sentinel, (process, job, began) in list(running.items()):
                if monotonic() - began > limit:
                    process.kill()
                    process.join()
                    del running[sentinel]
                    fail(job, "timeout", f"no result after {limit:.0f} s; raise --limit if that is too short", limit)
                    on_done(job)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def settle(
    status: int,
    job: Job,
    seconds: float,
    killed: set[Job],
    queue: deque[Job],
    later: deque[tuple[float, Job]],
    on_done: Callable[[Job], None],
) -> None:
    """Handle a job whose process ended: it is done, held by another runner, killed for the first time, or failed for good."""
    if status == DONE:
        on_done(job)
    elif status == BUSY:
        later.append((monotonic() + RECHECK, job))
    elif status < 0 and job not in killed:
        killed.add(job)
        queue.appendleft(job)
    else:
        died = (
            f"its process was killed by {signal.Signals(-status).name}, twice" if status < 0 else f"its process ended with status {status}"
        )
        fail(job, "crashed", f"{died}; was there enough memory?", seconds)
        on_done(job)


def fail(job: Job, status: str, error: str, seconds: float) -> None:
    """Record that a job failed.

    Raises:
        ValueError: The job prepares a task, and without it no agent can be run on the task.
    """
    if not job.agent:
        raise ValueError(f"task {job.task!r} could not be prepared: {error}; what went wrong is above")
    record_failure(job, status, error, seconds)


def _child(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the runner decides what ends
    sys.exit(work(job))
