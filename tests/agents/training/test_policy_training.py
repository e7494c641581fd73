"""Training into a run folder: what it depends on, more tokens, interrupts, damage, full disks."""

import csv
import itertools
import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from agents import Reinforce, TextA2C, TextPPO, TextTRPO
from agents.models.loading import load_lm, save_lm
from agents.training.policy_training import train_policy
from agents.training.settings import PolicyTraining
from agents.utils.run_folder import RunFolder
from tests.slow_cases import slow_but

from ..conftest import LLAMA

SMALL = {"n_episodes": 8, "batch_size": 8, "learning_rate": 3e-3, "seed": 3, "beta": 0.1}


@pytest.fixture
def train(tmp_path, make_env):
    def run(tokens, folder="run", model=LLAMA, depends_on=(), watch=None, arguments=None, **settings):
        torch.manual_seed(99)  # nothing may depend on it
        config = PolicyTraining(total_tokens=tokens, **(SMALL | settings))
        train_policy(RunFolder(tmp_path / folder), "ppo", model, make_env(8), config, dict(depends_on), watch=watch, arguments=arguments)
        return tmp_path / folder / "ppo"

    return run


class At(BaseCallback):
    """Does something once, at a step of a rollout or at the first optimizer step after it."""

    def __init__(self, rollout, act, in_update=False):
        super().__init__()
        self.rollout, self.act, self.in_update, self.alarms = rollout, act, in_update, {}

    def _once(self, *_):
        act, self.act = self.act, lambda: None
        act()

    def _on_rollout_end(self):
        if self.in_update and self.model.num_rollouts == self.rollout:
            self.model.policy.optimizer.register_step_post_hook(self._once)

    def _on_step(self):
        if not self.in_update and self.model.num_rollouts == self.rollout:
            self._once()
        return True


def weights(folder):
    return TextPPO.load(folder / "policy.zip", device="cpu").policy.state_dict()


def curve(folder):
    return list(csv.DictReader((folder / "curve.csv").read_text().splitlines()))


def points(folder):
    """All (tag, step) of all event files."""
    files = sorted(folder.glob("log-*/events.*"))
    return [(v.tag, event.step) for file in files for event in EventFileLoader(str(file)).Load() for v in event.summary.value]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))


INTERRUPTS = itertools.product([signal.SIGINT, signal.SIGTERM], [False, True])  # which signal, and whether it comes in an update


@pytest.mark.reports("Ctrl-C and SIGTERM, in a rollout or in an update, save a checkpoint; the run goes on from there bit by bit")
@pytest.mark.parametrize("case", slow_but([(signal.SIGINT, False), (signal.SIGTERM, True)], INTERRUPTS), ids=str)
def test_an_interrupt_saves_and_the_run_goes_on_bit_by_bit(train, case):
    number, in_update = case
    whole = train(500, "whole")
    assert len(curve(whole)) > 5
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(500, watch=At(3, lambda: os.kill(os.getpid(), number), in_update))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    broken = Path(whole.parent.parent / "run" / "ppo")
    saved = int(curve(broken)[2]["tokens"])
    assert str(stopped.value) == f"Stopped at {saved} of 500 tokens, saved in {broken / 'policy.zip'}."
    assert TextPPO.load(broken / "policy.zip", device="cpu").num_timesteps == saved and len(curve(broken)) == 3
    assert "ppo" not in json.loads((broken.parent / "stages.json").read_text())
    train(500)
    assert same(whole, broken) and curve(whole) == curve(broken)
    assert "ppo" in json.loads((broken.parent / "stages.json").read_text())


@pytest.mark.reports("A second Ctrl-C stops at once and leaves the file that was saved before whole")
def test_a_second_interrupt_stops_at_once(train, monkeypatch):
    folder = train(100)
    before = (folder / "policy.zip").read_bytes()
    save = torch.save

    def twice(*arguments, **keywords):
        save(*arguments, **keywords)  # in the middle of a checkpoint
        os.kill(os.getpid(), signal.SIGINT)

    def first():
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(torch, "save", twice)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(300, watch=At(len(curve(folder)) + 1, first))
    monkeypatch.setattr(torch, "save", save)
    assert (folder / "policy.zip").read_bytes() == before and not list(folder.glob(".policy*"))
    train(300)


@pytest.mark.reports("More tokens for a finished run: it goes on from its last checkpoint; fewer are refused")
def test_more_tokens_go_on_from_the_end(train, monkeypatch):
    folder = train(200)
    first = curve(folder)
    for name in ("evaluation-ppo.json", "groups-ppo.json", "evaluation-other.json"):
        (folder.parent / name).touch()
    train(400)
    rows = curve(folder)
    assert rows[: len(first)] == first and int(rows[-1]["tokens"]) >= 400 > int(rows[-2]["tokens"])
    assert [int(row["iteration"]) for row in rows] == list(range(1, len(rows) + 1))
    assert [path.name for path in folder.parent.glob("*-*.json")] == ["evaluation-other.json"]  # the others were of the policy before
    before = (folder / "policy.zip").stat().st_mtime_ns
    with pytest.raises(ValueError, match="trains for 400 tokens, and total_tokens=300 are fewer"):
        train(300)
    train(400)
    assert (folder / "policy.zip").stat().st_mtime_ns == before and curve(folder) == rows


@pytest.mark.reports("Another model at the same path, another reward, task or setting is refused for a finished run, and nothing is lost")
def test_what_a_training_depends_on(train, tmp_path):
    torch.manual_seed(0)
    save_lm(load_lm(LLAMA), tmp_path / "base")
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "w").write_text("1")
    given = {"model": str(tmp_path / "base"), "depends_on": {"reward": tmp_path / "reward", "task": "a"}}
    folder = train(60, **given)
    before = (folder / "policy.zip").read_bytes()
    with pytest.raises(ValueError, match="task: a then, b now"):
        train(60, **{**given, "depends_on": {"reward": tmp_path / "reward", "task": "b"}})
    with pytest.raises(ValueError, match="seed: 3 then, 4 now"):
        train(60, **given, seed=4)
    (tmp_path / "reward" / "w").write_text("-1")
    with pytest.raises(ValueError, match=r"\(reward: contents \w+ then, contents \w+ now\)"):
        train(60, **given)
    (tmp_path / "reward" / "w").write_text("1")
    train(60, **given)  # as it was: done
    save_lm(load_lm(LLAMA), tmp_path / "base")
    with pytest.raises(ValueError, match=r"\(model: contents \w+ then, contents \w+ now\)"):
        train(60, **given)
    assert (folder / "policy.zip").read_bytes() == before


def test_further_arguments_of_the_algorithm_are_used_and_remembered(train):
    folder = train(80, arguments={"n_epochs": 2, "gae_lambda": 0.5})
    made = TextPPO.load(folder / "policy.zip")
    assert (made.n_epochs, made.gae_lambda, made.batch_size) == (2, 0.5, 8)
    with pytest.raises(ValueError, match=r"arguments: .*0\.5.* then, .*0\.9.* now"):
        train(80, arguments={"n_epochs": 2, "gae_lambda": 0.9})
    with pytest.raises(ValueError, match=r"arguments: .*0\.5.* then, none now"):
        train(80)


@pytest.mark.reports("After a resume every metric has one value at each step, in TensorBoard, CSV and JSON")
def test_logs_hold_each_step_once(train):
    def stop():
        raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="gone"):
        train(500, watch=At(7, stop))  # the last checkpoint is of the fifth rollout
    folder = train(500)
    seen = points(folder)
    assert len(seen) == len(set(seen)) > 0
    steps = [int(row["tokens"]) for row in curve(folder)]
    assert sorted(step for tag, step in seen if tag == "objective/score") == steps
    rows = [row for file in sorted(folder.glob("log-*/progress.csv")) for row in csv.DictReader(file.read_text().splitlines())]
    assert sorted(int(float(row["time/total_timesteps"])) for row in rows) == steps
    lines = [json.loads(line) for file in folder.glob("log-*/progress.json") for line in file.read_text().splitlines()]
    assert sorted(line["time/total_timesteps"] for line in lines) == steps


class LastRate(BaseCallback):
    """Remembers the rate of the last update."""

    def _on_step(self):
        return True

    def _on_training_end(self):
        self.tokens, self.rate = self.model.num_timesteps, self.model.policy.optimizer.param_groups[0]["lr"]


def test_the_learning_rate_ends_at_zero(train):
    """The last rollout goes beyond the budget, where SB3's progress is negative; a rate below 0 would make the objective worse."""
    last = LastRate()
    train(100, learning_rate=0.01, watch=last)
    assert last.tokens > 100 and last.rate == 0


@pytest.mark.parametrize("made", [TextPPO, TextA2C, TextTRPO, Reinforce])
def test_no_schedule_is_asked_beyond_its_end(made, make_env):
    """A schedule of the user's own is a function of the progress, from 1 to 0: below 0 a clip range of it would be the wrong way round."""
    asked = []
    agent = made(
        "TransformerPolicy",
        make_env(8),
        n_episodes=8,
        policy_kwargs={"model": LLAMA},
        learning_rate=lambda left: asked.append(left) or 1e-3,
    )
    agent.learn(100)
    assert agent.num_timesteps > 100 and min(asked) == 0


@pytest.mark.reports("A damaged checkpoint, curve or sample file stops a resume with its name and what to do, and stays as it is")
@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("policy.zip", lambda data: b"", "is a damaged checkpoint .*restore it from a copy, or delete it"),
        ("policy.zip", lambda data: data[: len(data) // 2], "is a damaged checkpoint"),
        ("policy.zip", lambda data: data[:9000] + bytes(200) + data[9200:], "is a damaged checkpoint"),
        ("curve.csv", lambda data: b"", "is empty or damaged .*restore it, or delete it to go on from the checkpoint"),
        ("curve.csv", lambda data: b"a,b\n1,2\n", "is empty or damaged"),
        ("samples.jsonl", lambda data: b"{]}\n" + data, "is empty or damaged"),
    ],
)
def test_damage_is_named(train, name, damage, says):
    folder = train(60)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=f"{folder / name} {says}"):
        train(120)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.reports("A disk that is full while a checkpoint is saved leaves the old one whole and says so; with room the run goes on")
def test_a_full_disk_leaves_the_old_checkpoint(train):
    folder = train(60)
    before = (folder / "policy.zip").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # the system's own refusal, with the error of a file too large
    try:
        with pytest.raises(OSError, match=f"{folder / 'policy.zip'} could not be written, what was there before is unchanged; make room"):
            train(120)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "policy.zip").read_bytes() == before and not list(folder.glob(".policy*"))
    train(120)
    assert int(curve(folder)[-1]["tokens"]) >= 120


@pytest.mark.reports("The bar of a training ends at what was really written, never beyond it")
def test_the_bar_ends_at_what_was_written(train, monkeypatch, capsys):
    folder = train(60, n_episodes=16, batch_size=16)
    written = int(curve(folder)[-1]["tokens"])
    assert written > 60 and f"{written}/{written}" in capsys.readouterr().out
