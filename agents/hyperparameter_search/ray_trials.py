"""Trials of `textrl tune` on a Ray cluster, several at a time.

The study stays in this process, with its database and its random numbers: workers get plain settings, report plain numbers and
need no folder in common.  A trial that is pruned ends with its worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rewards.utils.devices import auto_device

from ..distributed.ray_cluster import alone, cluster, lost, room
from ..utils.progress import bar
from .flags import Tune
from .search_space import suggest
from .trial import Trial, ended

_LOOK = 0.5  # seconds between two looks at what workers report


@dataclass
class _Running:
    """A trial that a worker has: how many workers had it, and the step of its latest report."""

    trial: Any
    settings: dict[str, Any]
    tries: int = 0
    latest: int = 0


def run_trials_on_ray(config: Tune, study: Any, address: str) -> None:
    """Try settings, as many at a time as the cluster has cores, until the study has the trials it should.

    A trial whose worker is killed goes to another worker once, so that whoever kills workers leaves no trace; then it has failed.

    Args:
        config: The search.
        study: An Optuna study; only this process touches it.
        address: Of the cluster, see `ray_cluster.cluster`.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: No cluster answers at the address.
    """
    with cluster(address) as ray, bar("tune", config.trials, True) as shown:
        shown.advance(len(ended(study)))
        _Driver(ray, config, study, shown).run()


class _Driver:
    """Asks the study for settings, hands them to workers, and tells it what came of them."""

    def __init__(self, ray: Any, config: Tune, study: Any, shown: Any) -> None:
        from ray.util.queue import Queue

        self.ray, self.config, self.study, self.shown = ray, config, study, shown
        self.work, self.room = alone(ray, _work, config.device), room(ray)
        self.reports = Queue(actor_options={"num_cpus": 0})
        self.running: dict[Any, _Running] = {}  # by the reference to their result

    def run(self) -> None:
        while True:
            while len(self.running) < self.room and len(ended(self.study)) + len(self.running) < self.config.trials:
                trial = self.study.ask()
                self._hand_out(_Running(trial, suggest(self.config, trial)))
            if not self.running:
                return
            ready = self.ray.wait(list(self.running), timeout=_LOOK)[0]
            self._read_reports()  # a worker's reports are here before its result is
            for reference in ready:
                if reference in self.running:
                    self._settle(reference)

    def _hand_out(self, one: _Running) -> None:
        one.tries += 1
        self.running[self.work.remote(self.config, one.trial.number, one.settings, self.reports)] = one

    def _read_reports(self) -> None:
        by_number = {one.trial.number: (reference, one) for reference, one in self.running.items()}
        for number, tokens, score in self.reports.get_nowait_batch(self.reports.qsize()):
            if number not in by_number or tokens <= by_number[number][1].latest:  # pruned already, or told by a worker that was killed
                continue
            reference, one = by_number[number]
            one.latest = tokens
            one.trial.report(score, tokens)
            if one.trial.should_prune():
                del by_number[number]
                self.ray.cancel(reference, force=True)
                self._tell(reference, state="PRUNED")

    def _settle(self, reference: Any) -> None:
        one = self.running[reference]
        try:
            values = self.ray.get(reference)
        except lost(self.ray):
            if one.tries == 1:
                self._hand_out(self.running.pop(reference))
            else:
                self._tell(reference, state="FAIL", error="its worker was killed, twice; was there enough memory?")
        except self.ray.exceptions.RayTaskError as error:
            self._tell(reference, state="FAIL", error=repr(error.cause))
        else:
            one.trial.set_user_attr("values", values)
            self._tell(reference, state="COMPLETE", value=float(np.mean(values)))

    def _tell(self, reference: Any, state: str, value: float | None = None, error: str | None = None) -> None:
        import optuna

        trial = self.running.pop(reference).trial
        if error is not None:
            trial.set_user_attr("error", error)
        self.study.tell(trial, value, state=optuna.trial.TrialState[state])
        self.shown.advance(note=f"trial {trial.number}")


def _work(config: Tune, number: int, settings: dict[str, Any], reports: Any) -> list[float]:
    """Try settings in a worker."""
    torch.set_num_threads(1)
    with auto_device(config.device):
        return Trial(config).values(settings, lambda tokens, score: reports.put((number, tokens, score)))
