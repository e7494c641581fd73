"""What the version of the benchmark's protocol stands for."""

from agents.benchmark import protocol
from agents.benchmark.bench import jobs_of
from agents.benchmark.flags import Bench
from agents.hyperparameter_search.flags import TuneAgents
from agents.hyperparameter_search.search_space import SPACE
from agents.utils.run_folder import fingerprint

HASHES = {2: "25836d6da0007da7", 3: "097712017e621864"}


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


def test_no_agent_is_judged_with_a_seed_of_its_tuning():
    """A setting may be chosen for its luck with the seeds that trials train with: those are 0, 1, ... of `textrl tune`."""
    judged = {job.seed for job in jobs_of(Bench(preset="full"))}
    assert len(judged) == protocol.SEEDS["full"] and not judged & set(range(protocol.TUNING["seeds"]))
