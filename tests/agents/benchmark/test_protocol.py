"""What the version of the benchmark's protocol stands for."""

import numpy as np

from agents.benchmark import protocol
from agents.benchmark.bench import jobs_of
from agents.benchmark.flags import Bench
from agents.hyperparameter_search.flags import TuneAgents
from agents.hyperparameter_search.search_space import SPACE
from agents.utils.run_folder import fingerprint

HASHES = {2: "25836d6da0007da7", 3: "3e3172d192ff4876"}


def test_a_change_of_the_protocol_has_a_new_version():
    """Once results of a version are out, its settings stay: whoever changes one writes a new version, and adds its hash here."""
    spaces = {name: SPACE[name] for name in protocol.FULL if name in SPACE}
    assert fingerprint([protocol.settings(), spaces]) == HASHES[protocol.PROTOCOL_VERSION], "the settings changed: raise PROTOCOL_VERSION"
    assert max(HASHES) == protocol.PROTOCOL_VERSION


def test_settings_are_those_that_agents_get(monkeypatch):
    before = protocol.settings_hash()
    monkeypatch.setitem(protocol.ON_POLICY, "learning_rate", 2e-3)
    assert protocol.settings_hash() != before
    monkeypatch.undo()
    monkeypatch.setitem(protocol.PRESETS, "full", 2.0)
    assert protocol.settings_hash() != before


def test_flags_default_to_the_protocol():
    assert (Bench().texts, TuneAgents().trials) == (protocol.TEXTS, protocol.TUNING["trials"])


def test_no_two_runs_and_no_search_start_from_neighbouring_seeds():
    """Rows of SB3's environments have the seeds s, s + 1, ...: with s and s + 1 two runs would have all prompts but one in common."""
    jobs = {(job.task, job.seed): job for job in jobs_of(Bench(preset="full"))}.values()
    by_task = {task: [job for job in jobs if job.task == task] for task in {job.task for job in jobs}}
    for own in by_task.values():
        starts = np.sort([*(job.drawn_seed("learn") for job in own), *range(protocol.TUNING["seeds"])])
        assert len(starts) == 11 and np.diff(starts).min() > 128  # no environment has more rows
    assert len({job.drawn_seed(purpose) for job in jobs for purpose in ("learn", "test")}) == 2 * len(jobs)
