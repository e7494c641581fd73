"""Commands that write into a run folder, run again: the same, with other inputs, beside another process, interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agents.algorithms.sft import SFT
from agents.cli.main import main, resolve
from agents.cli.train import _folder
from agents.cli.train_flags import Train
from agents.models.loading import load_lm, save_lm
from agents.pipelines.flags import Demo
from rewards import Preference, fit_preference_model
from textrl_env import Episode, make_task

ROOT = Path(__file__).parents[3]
UNEXAMINED = ["--eval-texts", "0"]  # what a run says at its end has tests of its own
SIZES = ["--total-tokens", "300", "--n-episodes", "16", "--batch-size", "8", *UNEXAMINED]


@pytest.fixture
def lm(tmp_path):
    """Makes the folder of a tiny model that fits a task's tokenizer."""

    def make(seed, task="recall"):
        tokenizer = make_task(task).tokenizer
        config = {
            "model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.3,
        }  # fmt: skip
        torch.manual_seed(seed)
        save_lm(load_lm(config), tmp_path / "lm")
        return str(tmp_path / "lm")

    return make


def err(capsys):
    return " ".join(capsys.readouterr().err.split())


def fit(folder, better, worse):
    words = ("w1", "w2", "w3", "w4")
    pairs = [Preference(word, f" {better} {word}", f" {worse} {word}") for word in words for _ in range(3)]
    model, _ = fit_preference_model(pairs, tokenizer=make_task("review").tokenizer, trunk=None)
    model.normalise([Episode.from_text(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)])
    model.save(folder)


@pytest.mark.reports("textrl train refuses a finished run when its reward folder was refitted, its task or the model at its path changed")
def test_a_finished_run_is_not_done_when_what_it_depends_on_changed(tmp_path, lm, capsys):
    model, out = lm(1), tmp_path / "run"
    fit(tmp_path / "reward", "good", "bad")
    command = ["train", "--task", "recall", "--model", model, "--reward", str(tmp_path / "reward"), "--out", str(out), *SIZES]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (out / "ppo" / "policy.zip", out / "config.yaml", out / "stages.json")}
    capsys.readouterr()
    assert main([*command, "--task", "recall-16"]) == 2
    assert f"error: {out} holds a run with other inputs (task: recall then, recall-16 now): use another folder (--out)" in err(capsys)
    fit(tmp_path / "reward", "bad", "good")
    assert main(command) == 2 and "(reward: {" in err(capsys)
    fit(tmp_path / "reward", "good", "bad")
    lm(2)
    assert main(command) == 2 and "(model: contents " in err(capsys)
    assert {path: path.read_bytes() for path in before} == before
    (out / "evaluation-ppo.json").touch()
    (out / "notes.txt").touch()
    assert main([*command, "--overwrite"]) == 0
    assert (out / "ppo" / "policy.zip").read_bytes() != before[out / "ppo" / "policy.zip"]
    assert not (out / "evaluation-ppo.json").exists() and (out / "notes.txt").exists()
    assert "overwrite" not in (out / "config.yaml").read_text()
    assert main(command) == 0  # done


@pytest.mark.reports("A second algorithm, or another command, in the folder of a run is refused: its config.yaml stays its own")
def test_one_run_a_folder(tmp_path, lm, capsys):
    out = str(tmp_path / "run")
    command = ["train", "--task", "recall", "--model", lm(1), "--reward", "length", "--out", out, *SIZES]
    assert main(command) == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    assert before.startswith(b"# textrl train --algo ppo\n")
    assert main([*command, "--algo", "rloo"]) == 2
    assert f"{out} holds a run of textrl train --algo ppo, not of textrl train --algo rloo" in err(capsys)
    assert main(["demo", "--out", out]) == 2 and "not of textrl demo" in err(capsys)
    assert main(["loop", "--out", out]) == 2 and "not of textrl loop" in err(capsys)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.reports("DPO and SFT runs are refused when their file of preferences changed, and are done when it did not")
@pytest.mark.parametrize("algo", ["dpo", "sft"])
def test_offline_runs_depend_on_their_preferences(tmp_path, lm, capsys, algo):
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "remember sun", "chosen": " sun", "rejected": " fog"}
    file.write_text(json.dumps(pair) + "\n")
    command = ["train", "--algo", algo, "--task", "recall", "--model", lm(1), "--preferences", str(file), "--steps", "2"]
    command += ["--out", str(tmp_path / "run"), *UNEXAMINED]
    assert main(command) == 0 == main(command)
    file.write_text(json.dumps({**pair, "chosen": " fog", "rejected": " sun"}) + "\n")
    capsys.readouterr()
    assert main(command) == 2 and "(preferences: contents " in err(capsys)
    assert main([*command, "--steps", "4"]) == 2 and "steps: 2 then, 4 now" in err(capsys)


@pytest.mark.reports("textrl train without --out has the given flags in its folder's name: different commands do not meet in one folder")
def test_default_folders_differ_by_what_is_given(tmp_path):
    assert _folder(Train()) == Path("runs/train")
    assert _folder(resolve(Train, ["--seed", "1", "--total-tokens", "500", "--overwrite"])) == Path("runs/train-seed-1")
    one = _folder(resolve(Train, ["--corpus", "reviews.txt", "--reward", '{"name": "regex", "pattern": "good"}']))
    assert one != _folder(resolve(Train, ["--reward", "runs/reward/reward"])) and one.parent == Path("runs")
    assert _folder(resolve(Train, ["--out", "mine"])) == Path("mine")


@pytest.mark.reports("A run's own config.yaml with changed flags trains beside the run, not over it")
@pytest.mark.parametrize(("kind", "name"), [(Train, "vader"), (Demo, "demo")])
def test_a_runs_own_configuration_makes_a_run_beside_it(tmp_path, kind, name):
    folder = tmp_path / name
    folder.mkdir()
    file = folder / "config.yaml"
    file.write_text(f"# textrl x\nseed: 0\nlearning_rate: 0.001\nout: {folder}\n")

    def out(*flags):
        return resolve(kind, ["--config", str(file), *flags]).out

    assert out() == folder
    assert out("--seed", "1") == tmp_path / f"{name}-seed-1"
    assert out("--total-tokens", "9") == folder
    assert out("--seed", "1", "--out", str(folder)) == folder  # refused if it is finished
    (tmp_path / "copy.yaml").write_text(file.read_text())
    assert resolve(kind, ["--config", str(tmp_path / "copy.yaml"), "--seed", "1"]).out == folder  # a file of one's own says where


def start(arguments, folder, rows=0):
    """Start `textrl` in a process of its own and wait until its curve has some rows."""
    command = [sys.executable, "-m", "agents.cli", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    curve = folder / "ppo" / "curve.csv"
    while process.poll() is None and not (curve.is_file() and len(curve.read_text().splitlines()) > rows):
        time.sleep(0.02)
    return process


@pytest.mark.reports("A second textrl train on a folder ends with 2 and names the first's process; SIGTERM saves and says how to go on")
def test_two_processes_and_an_interrupt(tmp_path, lm, capsys):
    out = tmp_path / "run"
    command = ["train", "--task", "recall", "--model", lm(1), "--reward", "length", "--out", str(out), *SIZES, "--total-tokens", "200000"]
    process = start(command, out, rows=3)
    try:
        assert main(command) == 2
        assert f"{out} is in use by process {process.pid} on " in err(capsys)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    rows = (out / "ppo" / "curve.csv").read_text().splitlines()
    saved = int(rows[-1].split(",")[2])
    again = " ".join(["textrl", *command])
    assert f"Stopped at {saved:,} of 200,000 tokens, saved in {out / 'ppo' / 'policy.zip'}. To go on: {again}" in " ".join(said.split())


@pytest.mark.reports("Ctrl-C in supervised training saves the step it is at, and the run goes on from there")
def test_an_interrupted_sft_run_goes_on(tmp_path, lm, capsys, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    words = make_task("recall").tokenizer.words[1:9]
    file.write_text("".join(json.dumps({"prompt": f"remember {w}", "chosen": f" {w}", "rejected": " bee"}) + "\n" for w in words))
    base = ["train", "--algo", "sft", "--task", "recall", "--model", lm(1), "--preferences", str(file), "--steps", "7", *UNEXAMINED]
    assert main([*base, "--out", str(tmp_path / "whole")]) == 0
    loss, steps = SFT._mean_loss, []

    def third(self, rows, backward=False):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, rows, backward)

    monkeypatch.setattr(SFT, "_mean_loss", third)
    assert main([*base, "--out", str(tmp_path / "run")]) == 130
    assert f"Stopped at step 3 of 7, saved in {tmp_path / 'run' / 'sft' / 'checkpoint'}. To go on: textrl train --algo sft" in err(capsys)
    assert main([*base, "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == 7
    one, two = ((tmp_path / name / "sft" / "model" / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == two


@pytest.mark.reports("textrl reward report refuses to replace a report of other comparisons, and repeats its result for the same ones")
def test_a_finished_reward_report(tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}) + "\n" for i in range(60)))
    command = ["reward", "report", str(file), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    first, made = capsys.readouterr().out, (tmp_path / "out" / "report.html").stat().st_mtime_ns
    assert main(command) == 0
    assert first[first.index("agrees with") :] == capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").stat().st_mtime_ns == made
    file.write_text(file.read_text().replace("p0", "p00"))
    assert main(command) == 2 and "(file: contents " in err(capsys)
    assert main([*command, "--overwrite"]) == 0
    rows = "".join(json.dumps({"prompt": f"p{i}", "a": f"good {i}", "b": f"bad {i}"}) + "\n" for i in range(60))
    (tmp_path / "ab.jsonl").write_text(rows)
    command = ["reward", "report", str(tmp_path / "ab.jsonl"), "--out", str(tmp_path / "mapped"), "--columns"]
    assert main([*command, "chosen=b,rejected=a"]) == 0
    assert main([*command, "chosen=a,rejected=b"]) == 2
    assert "(columns: chosen=b,rejected=a then, chosen=a,rejected=b now)" in err(capsys)
