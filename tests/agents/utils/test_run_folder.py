"""Stages of a run: recorded when they end well, repeated when what they depend on changes."""

import json

import pytest

from agents.utils.run_folder import RunFolder, fingerprint


def test_a_stage_is_needed_until_it_ends_well_and_again_when_its_inputs_change(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.stage("fit", [1]) as stage:
        stage.facts["accuracy"] = 0.1
        raise KeyboardInterrupt
    assert not (tmp_path / "stages.json").exists()
    with run.stage("fit", [1]) as stage:
        assert stage.needed
        stage.facts["accuracy"] = 0.7
    for again in (run, RunFolder(tmp_path)):
        with again.stage("fit", [1]) as stage:
            assert not stage.needed
        assert again.facts("fit") == {"accuracy": 0.7}
    with run.stage("fit", [2]) as stage:
        assert stage.needed
        stage.facts = {"accuracy": 0.8}
    assert run.facts("fit") == {"accuracy": 0.8}


def test_the_record_of_older_runs_is_read_and_written(tmp_path):
    """One entry a stage: the fingerprint of its inputs, and its facts beside it."""
    (tmp_path / "stages.json").write_text(json.dumps({"compare": {"fingerprint": fingerprint(["base", 3000]), "seconds": 2.5}}))
    run = RunFolder(tmp_path)
    with run.stage("compare", ["base", 3000]) as outer:
        assert not outer.needed
    with run.stage("train", 1) as outer:
        with run.stage("train began", 1):
            pass
        outer.facts["seconds"] = 1.0
    assert json.loads((tmp_path / "stages.json").read_text()) == {
        "compare": {"fingerprint": fingerprint(["base", 3000]), "seconds": 2.5},
        "train began": {"fingerprint": fingerprint(1)},
        "train": {"fingerprint": fingerprint(1), "seconds": 1.0},
    }
    assert fingerprint({"b": 1, "a": tmp_path}) == fingerprint({"a": str(tmp_path), "b": 1})


def test_of_several_processes_one_writes_the_record(tmp_path):
    with RunFolder(tmp_path).stage("train", 1, record=False) as stage:
        assert stage.needed
    assert not (tmp_path / "stages.json").exists()
