"""Stages of a run: recorded when they end well, refused when what they depend on changes; one process at a time in a folder."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.utils.contents import contents_hash, with_contents
from agents.utils.run_folder import RunFolder, fingerprint, folder_beside

ROOT = Path(__file__).parents[3]


def finish(run, name, depends_on, **facts):
    with run.stage(name, depends_on) as stage:
        assert stage.needed
        stage.facts = facts


def test_a_stage_is_needed_until_it_ends_well(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.stage("fit", {"seed": 1}) as stage:
        stage.facts["accuracy"] = 0.1
        raise KeyboardInterrupt
    assert not (tmp_path / "stages.json").exists()
    finish(run, "fit", {"seed": 1}, accuracy=0.7)
    for again in (run, RunFolder(tmp_path)):
        with again.stage("fit", {"seed": 1}) as stage:
            assert not stage.needed and stage.facts == {"accuracy": 0.7}
        assert again.facts("fit") == {"accuracy": 0.7}
    assert run.facts("judge") == {}


@pytest.mark.reports("A finished stage whose inputs changed is refused, and the message says which input it was and what it is now")
def test_a_finished_stage_with_other_inputs_is_refused_by_name(tmp_path):
    run = RunFolder(tmp_path)
    finish(run, "fit", {"seed": 1, "task": "review", "rate": 0.1})
    before = (tmp_path / "stages.json").read_bytes()
    line = f"{tmp_path} holds a run with other inputs (seed: 1 then, none now; task: review then, recall now): use another folder (--out)"
    with pytest.raises(ValueError, match=re.escape(line)), run.stage("fit", {"task": "recall", "rate": 0.1}):
        pass
    assert (tmp_path / "stages.json").read_bytes() == before
    with run.begin("train", overwrite=True):
        finish(run, "fit", {"task": "recall", "rate": 0.1})


@pytest.mark.reports("Inputs of a run that are files or folders count by their contents, also source code and paths inside JSON")
def test_files_and_folders_stand_for_their_contents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "model.bin").write_bytes(b"one")
    (tmp_path / "mine.py").write_text("def score(): return 1\n")
    (tmp_path / "words.txt").write_text("good\n")
    terms = {"a": {"name": "preference", "path": "reward"}, "b": {"name": "known_words", "file": "words.txt"}}
    inputs = {
        "reward": {"name": "sum", "terms": terms},
        "own": "mine.py:score", "corpus": [tmp_path / "words.txt"],
    }  # fmt: skip
    first = with_contents(inputs)
    assert with_contents(inputs) == first and first["reward"]["name"] == "sum"
    for name, text in (("reward/model.bin", "two"), ("mine.py", "def score(): return 2\n"), ("words.txt", "bad\n")):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (0, 0))  # the time is no evidence
        assert with_contents(inputs) != first, name
        (tmp_path / name).write_bytes(kept)
    assert with_contents(inputs) == first
    (tmp_path / "reward" / "another.bin").write_bytes(b"")
    assert with_contents(inputs) != first
    assert with_contents({"keywords": ["reward", ".", "x" * 5000, "\0"], "cache": "words.txt", "n": 1}) == {
        "keywords": ["reward", ".", "x" * 5000, "\0"], "cache": "words.txt", "n": 1,
    }  # fmt: skip
    assert contents_hash(tmp_path / "words.txt") != contents_hash(tmp_path / "mine.py")


def test_a_class_of_ones_own_counts_by_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_lm_of_a_test.py").write_text("class Mine: pass\n")
    model = {"class": "own_lm_of_a_test:Mine", "width": 3}
    first = with_contents(model)
    assert first["width"] == 3
    (tmp_path / "own_lm_of_a_test.py").write_text("class Mine: wide = True\n")
    assert with_contents(model) != first
    assert with_contents({"class": "no.such_module:Mine"}) == {"class": "no.such_module:Mine"}


def test_records_of_several_stages_and_of_older_versions(tmp_path):
    """One entry a stage: the fingerprint of its inputs, the inputs to be read, and its facts beside them."""
    (tmp_path / "stages.json").write_text(json.dumps({"compare": {"fingerprint": fingerprint(["base", 3000]), "seconds": 2.5}}))
    run = RunFolder(tmp_path)
    with run.stage("compare", ["base", 3000]) as outer:
        assert not outer.needed
    with pytest.raises(ValueError, match="an older version did not note which"), run.stage("compare", {"pairs": 3000}):
        pass
    with run.stage("train", {"n": 1}) as outer:
        with run.stage("train began", {"n": 1}):
            pass
        outer.facts["seconds"] = 1.0
    one = {"fingerprint": fingerprint({"n": 1}), "inputs": {"n": "1"}}
    assert json.loads((tmp_path / "stages.json").read_text()) == {
        "compare": {"fingerprint": fingerprint(["base", 3000]), "seconds": 2.5}, "train began": one, "train": {**one, "seconds": 1.0},
    }  # fmt: skip


def test_of_several_processes_one_writes_the_record(tmp_path):
    with RunFolder(tmp_path).stage("train", 1, record=False) as stage:
        assert stage.needed
    assert not (tmp_path / "stages.json").exists()


def test_a_stage_whose_files_are_gone_is_needed(tmp_path):
    run = RunFolder(tmp_path)
    for _ in range(2):
        with run.stage("fit", {"n": 1}, makes=["model"]) as stage:
            assert stage.needed
            (tmp_path / "model").touch()
        with run.stage("fit", {"n": 1}, makes=["model"]) as stage:
            assert not stage.needed
        (tmp_path / "model").unlink()


@pytest.mark.reports("A damaged record of a run's stages is named, with what to do, and stays as it is")
@pytest.mark.parametrize("text", ["", '{"fit": {"finger', "[]", '{"fit": 3}', '{"fit": {}}'])
def test_a_damaged_record_is_named(tmp_path, text):
    file = tmp_path / "stages.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{file} is damaged .*restore it, or use another folder"), RunFolder(tmp_path).stage("fit", 1):
        pass
    assert file.read_text() == text


@dataclass
class Settings:
    seed: int = 0
    overwrite: bool = False


def test_a_folder_belongs_to_the_command_that_began_in_it(tmp_path):
    run = RunFolder(tmp_path)
    run.config = Settings(seed=3)
    with run.begin("demo", made=["results.json"]):
        finish(run, "kl", {"n": 1})
    assert (tmp_path / "config.yaml").read_text() == "# textrl demo\nseed: 3\n"
    for name in ("kl", "mine"):
        (tmp_path / name).mkdir()
    for name in ("results.json", "evaluation-kl.json", "groups-kl.json", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="holds a run of textrl demo, not of textrl train"), run.begin("train"):
        pass
    with run.begin("train", overwrite=True, made=["results.json"]):
        left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"mine", "notes.txt"}  # what no textrl wrote


HOLD = "import sys, pathlib\nfrom agents.utils.folder_lock import only_process_in\nwith only_process_in(pathlib.Path(sys.argv[1])):\n    "


@pytest.mark.reports("A second process on a run folder is refused with the first one's number and machine; its lock ends with it")
def test_a_folder_that_is_in_use_is_refused_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        line = f"{tmp_path} is in use by process {other.pid} on {re.escape(socket.gethostname())}, since 20.*: wait until it ends"
        with pytest.raises(ValueError, match=line), RunFolder(tmp_path).begin("train"):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    with RunFolder(tmp_path).begin("train"):
        assert json.loads((tmp_path / ".lock.holder").read_text())["pid"] == os.getpid()


def test_the_folder_of_a_changed_run_has_the_changes_in_its_name():
    assert folder_beside(Path("runs/vader"), {}) == Path("runs/vader")
    assert folder_beside(Path("runs/vader"), {"seed": 1, "total_tokens": 9}) == Path("runs/vader-seed-1-total-tokens-9")
    one, two = (folder_beside(Path("runs/train"), {"reward": f'{{"name": "{name}"}}'}) for name in ("a/b", "a_b"))
    assert one != two and one.parent == two.parent == Path("runs")
    assert len(folder_beside(Path("x"), {"reward": "y" * 500}).name) < 130
