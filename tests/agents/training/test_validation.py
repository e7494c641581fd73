"""`textrl train --eval-every N --keep-best MEASURE`: validation prompts, the same best after a stop, and what the run says of it."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import TextPPO
from agents.cli import train as command
from agents.cli.main import main
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.training.trained_run import open_run
from agents.training.validation import ValidationCallback, validation_task
from textrl_env import make_task

from ..distributed.launch import run as launched
from ..distributed.launch import torchrun

SIZES = ["--total-tokens", "500", "--n-episodes", "16", "--batch-size", "8", "--learning-rate", "3e-2", "--eval-texts", "24"]
BEST = ["--eval-every", "2", "--keep-best", "score"]


@pytest.fixture
def train(recall_lm, tmp_path):
    def run(*flags, out="run", code=0):
        command = ["train", "--task", "recall", "--model", recall_lm, "--reward", "length", "--out", str(tmp_path / out)]
        assert main([*command, *SIZES, *flags]) == code
        return tmp_path / out

    return run


def rows_of(folder):
    return list(csv.DictReader((folder / "ppo" / "validation.csv").read_text().splitlines()))


def weights(file):
    return TextPPO.load(file, device="cpu").policy.state_dict()


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))


class Stop(BaseCallback):
    """Asks to stop in a rollout, as Ctrl-C does."""

    def __init__(self, rollout):
        super().__init__()
        self.rollout = rollout

    def _on_step(self):
        if self.model.num_rollouts == self.rollout:
            os.kill(os.getpid(), signal.SIGINT)
            self.rollout = None
        return True


def test_the_best_of_all_validations_is_kept_and_examined(train, capsys):
    folder = train(*BEST)
    told = " ".join(capsys.readouterr().out.split())
    rows, curve = rows_of(folder), list(csv.DictReader((folder / "ppo" / "curve.csv").read_text().splitlines()))
    tokens, scores = [int(row["tokens"]) for row in rows], [float(row["score"]) for row in rows]
    assert [int(row["iteration"]) for row in rows] == sorted({*range(0, len(curve), 2), len(curve)})
    assert tokens == [0, *(int(curve[int(row["iteration"]) - 1]["tokens"]) for row in rows[1:])] and len(set(scores)) > 2
    best = json.loads((folder / "best" / "best.json").read_text())
    assert best == {"measure": "score", "value": max(scores), "tokens": tokens[int(np.argmax(scores))]}
    # The kept policy scores what was measured, on validation prompts, and none of these is a test prompt
    validation, test = make_task("recall", split="validation"), make_task("recall", split="test")
    assert {p.text for p in validation.prompts[:24]}.isdisjoint(p.text for p in test.prompts)
    run = open_run(folder)
    assert run.name == "best" and run.policy is not None
    task = validation_task({"task": "recall"}, folder, 24)
    assert [p.text for p in task.prompts] == [p.text for p in validation.prompts[:24]]
    assert write_texts(run.policy, task, 24, "length", num_rows=16).scores.mean() == pytest.approx(max(scores))
    # The examination is of this policy, on the test prompts
    found = json.loads((folder / "outcome.json").read_text())
    by_best = write_texts(run.policy, run.task, 24, "length", num_rows=16)
    assert found["after"]["score"] == pytest.approx(by_best.scores.mean())
    assert found["policy"] == (
        f"Training ended after {tokens[-1]} tokens, as --total-tokens 500 asks. The policy is the best of {len(rows)} by score on "
        f"validation prompts: {max(scores):.4g} after {best['tokens']} tokens; the last one has {scores[-1]:.4g} after {tokens[-1]}"
    )
    assert found["policy"] in told and "every 2 rollouts 24 texts to 24 prompts of the validation split are measured" in told
    assert found["policy"] in (folder / "report.html").read_text() and "best/best.json" in told
    assert main(["evaluate", str(folder), "--texts", "20", "--policy", "ppo"]) == main(["evaluate", str(folder), "--texts", "20"]) == 0
    assert {path.name for path in folder.glob("evaluation-*.json")} == {"evaluation-best.json", "evaluation-ppo.json"}
    log = [json.loads(line) for line in (folder / "ppo" / "log-0" / "progress.json").read_text().splitlines()]
    assert [line["validation/score"] for line in log if "validation/score" in line] == scores[: (len(curve) + 1) // 2]


@pytest.mark.parametrize("rollout", [2, 3])
@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_best(train, monkeypatch, capsys, rollout):
    whole, plain = train(*BEST, out="whole"), train(out="plain")
    assert same(whole / "ppo" / "policy.zip", plain / "ppo" / "policy.zip")  # validation draws nothing from the training's generators
    listed = command.CallbackList
    with monkeypatch.context() as patch:
        patch.setattr(command, "CallbackList", lambda callbacks: listed([*callbacks, Stop(rollout)]))
        train(*BEST, code=130)
    assert "To go on: textrl train" in " ".join(capsys.readouterr().err.split())
    broken = whole.with_name("run")
    assert len(rows_of(broken)) < len(rows_of(whole))
    train(*BEST)
    assert rows_of(broken) == rows_of(whole)
    assert (broken / "best" / "best.json").read_text() == (whole / "best" / "best.json").read_text()
    assert same(broken / "best" / "policy.zip", whole / "best" / "policy.zip")
    assert same(broken / "ppo" / "policy.zip", whole / "ppo" / "policy.zip")
    assert (broken / "texts-after.jsonl").read_text() == (whole / "texts-after.jsonl").read_text()


@pytest.mark.slow
def test_more_tokens_go_on_from_the_best_so_far(train, capsys):
    folder = train(*BEST, "--eval-texts", "8")
    first, rows = json.loads((folder / "best" / "best.json").read_text()), rows_of(folder)
    train(*BEST, "--eval-texts", "8", "--total-tokens", "700")
    last, more = json.loads((folder / "best" / "best.json").read_text()), rows_of(folder)
    assert more[: len(rows)] == rows and len(more) > len(rows)
    assert last["value"] == max(float(row["score"]) for row in more) and (last["value"] > first["value"] or last == first)
    train(*BEST, "--eval-texts", "8", "--total-tokens", "700")
    assert rows_of(folder) == more
    train("--eval-every", "3", "--eval-texts", "8", "--overwrite")
    assert not (folder / "best").exists() and len(rows_of(folder)) < len(more)
    capsys.readouterr()


def test_why_it_stopped(train, capsys):
    """The reward counts words, and the policy learns to write more of them: the alarm of length stops it."""
    folder = train("--stop-at-alarm", "--total-tokens", "20000", "--eval-every", "50")
    found = json.loads((folder / "outcome.json").read_text())
    written = json.loads((folder / "stages.json").read_text())["ppo"]["tokens"]
    assert written < 20_000 and (folder / "ppo" / "alarms.txt").exists()
    assert found["policy"] == f"Training ended after {written:,} tokens, before --total-tokens 20,000: an alarm stopped it"
    assert len(rows_of(folder)) == 1 + (int(curve_rows(folder)) - 1) // 50  # none at the end: more tokens may follow
    capsys.readouterr()


def curve_rows(folder):
    return len((folder / "ppo" / "curve.csv").read_text().splitlines()) - 1


def test_what_stands_in_the_way_is_said(train, tmp_path, capsys):
    def told(*flags):
        train(*flags, code=2)
        return " ".join(capsys.readouterr().err.split())

    assert "--keep-best score looks at validations, and there are none: pass --eval-every N" in told("--keep-best", "score")
    every = ("--eval-every", "2", "--keep-best")
    assert "pass --held-out REWARD" in told(*every, "held_out")
    assert "is for --algo distill" in told(*every, "kl_per_sequence")
    assert "--eval-every, which --algo sft does not use" in told("--algo", "sft", *every[:2])
    (tmp_path / "corpus.txt").write_text("\n".join(f"the {word} was good and slow" for word in "abcdefgh"))
    assert main(["train", "--corpus", str(tmp_path / "corpus.txt"), *BEST, "--out", str(tmp_path / "run")]) == 2
    assert "there are no validation prompts, for text files have no splits" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="all 2 validation prompts are test prompts too"):
        validation_task({"task": "exact-smooth"}, tmp_path, 8)
    with pytest.raises(ValueError, match="keep='length': the best policy can be kept by score"):
        ValidationCallback(tmp_path, make_task("recall"), 2, "length")


@pytest.mark.slow
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["ddp", "fsdp"])
def test_the_best_policy_of_two_processes_is_the_one_that_was_measured(train, tmp_path, shard):
    out, task = tmp_path / "two", validation_task({"task": "recall"}, tmp_path, 24)
    settings = ["--task", "recall", "--model", str(tmp_path / "lm"), "--reward", "length", "--out", str(out), *SIZES, *BEST, *shard]
    launched(torchrun("agents.cli", "train", *settings))
    kept = json.loads((out / "best" / "best.json").read_text())
    assert len(rows_of(out)) > 2 and kept["value"] == max(float(row["score"]) for row in rows_of(out))
    policy = make_policy(task, out / "best" / "model", eos_token_id=task.eos_token_ids[0])
    assert write_texts(policy, task, 24, "length", num_rows=16).scores.mean() == pytest.approx(kept["value"])
