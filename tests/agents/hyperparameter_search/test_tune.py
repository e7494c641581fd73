"""`textrl tune`: repeatable, resumable after a kill, and honest about failures."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from agents.benchmark import run_job
from agents.benchmark.agents import TrainedAgent, check, tuned
from agents.benchmark.spec import parse
from agents.cli.main import main
from agents.evaluation.exact_optimum import optimality_gap
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.hyperparameter_search import trial
from agents.hyperparameter_search.flags import Tune
from agents.hyperparameter_search.search_space import SPACE, _space, sampler
from agents.hyperparameter_search.tune import run_tune
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm

FLAGS = ["--task", "exact-smooth", "--algo", "a2c", "--total-tokens", "800", "--texts", "32", "--seeds", "1"]
ROOT = Path(__file__).parents[3]


def tune(out, *more):
    return main(["tune", *FLAGS, "--out", str(out), *more])


def trials(out):
    return list(csv.DictReader((out / "trials.csv").read_text(encoding="utf-8").splitlines()))


def test_best_is_the_largest_of_the_trials_and_is_kept(tmp_path):
    kept = tmp_path / "a2c.yaml"
    kept.write_text("other:\n  settings: {learning_rate: 0.5}\n")
    assert tune(tmp_path / "one", "--trials", "3", "--save", str(kept)) == 0
    rows = trials(tmp_path / "one")
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    best = yaml.safe_load((tmp_path / "one" / "best.yaml").read_text())
    top = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["value"]))
    assert best["provenance"]["value"] == float(top["value"]) and best["provenance"]["trials"] == 3
    assert {name: float(value) for name, value in best["settings"].items()} == {n: float(top[n]) for n in best["settings"]}
    assert "beta" not in best["settings"]  # it belongs to an exact task
    assert best["provenance"]["command"] == "textrl tune --task exact-smooth --algo a2c --trials 3 --total-tokens 800 --seeds 1 --texts 32"
    both = yaml.safe_load(kept.read_text())
    assert both["exact-smooth"] == best and both["other"]["settings"] == {"learning_rate": 0.5}
    assert tune(tmp_path / "two", "--trials", "3") == 0
    assert trials(tmp_path / "two") == rows  # the seed decides everything


def test_trials_beyond_the_number_do_not_count(tmp_path):
    assert tune(tmp_path, "--trials", "3", "--total-tokens", "400") == 0
    three = trials(tmp_path)
    assert tune(tmp_path, "--trials", "2", "--total-tokens", "400") == 0
    assert trials(tmp_path) == three[:2]
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())["provenance"]
    assert best["trials"] == 2 and best["value"] == max(float(row["value"]) for row in three[:2])


def test_other_tasks_try_other_settings():
    rates = {
        task: [sampler(Tune(task, "a2c"), number)._rng.rng.uniform() for number in range(3)]
        for task in ("recall", "recall-64", "textrl/Recall-64-v0", "lock", "exact-wide")
    }
    assert rates["recall"] == rates["recall-64"] == rates["textrl/Recall-64-v0"]  # one family
    assert len({rate for task in ("recall", "lock", "exact-wide") for rate in rates[task]}) == 9


def test_a_search_maximises_what_the_benchmark_judges(monkeypatch):
    """On an exact task the KL-regularised return, by enumeration, not the score alone."""
    contest = trial.Trial(Tune("exact-needle", "a2c", total_tokens=400, texts=32, seeds=1))
    policy = make_policy(contest.judge, contest.base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.lm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    trained = TrainedAgent(lambda task, number, seed: write_texts(policy, task, number, seed=seed), policy)
    monkeypatch.setattr(trial, "train_agent", lambda *_: trained)
    (value,) = contest.values({}, lambda *_: None)
    gap = optimality_gap(policy.backbone, backbone_of(load_lm(contest.base)), "Needle", 0.5)
    assert value == pytest.approx(gap.achieved.score - 0.5 * gap.achieved.kl) and gap.achieved.kl > 0.1


def test_the_seeds_of_a_trial_are_far_apart(monkeypatch):
    seeds = []

    def learned(spec, setup, watch):
        seeds.append(setup.seed)
        policy = make_policy(setup.task, setup.base)
        return TrainedAgent(lambda task, number, seed: write_texts(policy, task, number, seed=seed), policy)

    monkeypatch.setattr(trial, "train_agent", learned)
    trial.Trial(Tune(task="exact-smooth", algo="a2c", total_tokens=100, texts=8, seeds=3)).values({}, print)
    assert seeds[0] == 0 and min(abs(a - b) for a, b in ((seeds[0], seeds[1]), (seeds[1], seeds[2]), (seeds[0], seeds[2]))) > 10**8


def test_a_search_on_review_learns_from_the_fitted_reward(monkeypatch, tmp_path):
    monkeypatch.setattr(run_job, "base_policy", lambda task: tmp_path / "base")
    monkeypatch.setattr(run_job, "learned_reward", lambda task, base: tmp_path / "reward")
    for name in ("review", "textrl/Review-v0"):
        task, judge, base, reward = run_job.given(parse(name), "validation")
        assert task.reward == judge.reward == reward == {"name": "preference", "path": str(tmp_path / "reward")}
        assert base == str(tmp_path / "base") and judge.prompt_order == "sequential"
    assert run_job.given(parse("review:reward=length"), "test")[3] is None
    assert run_job.given(parse("recall:model=mine"), "test")[2] == "mine"


@pytest.mark.reports("textrl tune refuses a folder that holds another search, instead of replacing its best settings")
def test_one_search_a_folder(tmp_path, capsys):
    assert tune(tmp_path, "--trials", "1") == 0
    best = (tmp_path / "best.yaml").read_bytes()
    assert tune(tmp_path, "--trials", "1", "--task", "exact-wide") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds another search (a2c on exact-smooth, 800 tokens, 1 seeds, 32 texts), not a2c on exact-wide" in said
    assert (tmp_path / "best.yaml").read_bytes() == best
    assert tune(tmp_path, "--trials", "1") == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130)], ids=["kill", "terminate"])
@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_keeps_what_it_had(tmp_path, number, status):
    command = [sys.executable, "-m", "agents.cli", "tune", *FLAGS, "--out", str(tmp_path), "--trials", "30", "--pruner", "none"]
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # as a script's `&` starts it: deaf to Ctrl-C
    runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    import sqlite3

    def complete():
        if not (tmp_path / "study.db").is_file():
            return 0
        try:
            with sqlite3.connect(tmp_path / "study.db") as database:
                return database.execute("SELECT COUNT(*) FROM trial_values").fetchone()[0]
        except sqlite3.OperationalError:  # not yet made
            return 0
        finally:
            database.close()

    while complete() < 2:
        assert runner.poll() is None
        time.sleep(0.2)
    os.kill(runner.pid, number)
    assert runner.wait(timeout=30) == status
    had = complete()
    assert 2 <= had < 30
    assert tune(tmp_path, "--trials", str(had + 1), "--pruner", "none") == 0
    done = [row for row in trials(tmp_path) if row["state"] == "complete"]
    assert len(done) == had + 1
    rates = [row["learning_rate"] for row in done]
    assert len(set(rates)) == len(rates)  # nothing was tried twice


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.slow
def test_a_search_that_goes_on_tries_what_one_without_a_break_does(tmp_path, sampler):
    for trials_so_far in ("2", "4"):
        assert tune(tmp_path / "two", "--trials", trials_so_far, "--sampler", sampler, "--total-tokens", "400") == 0
    assert tune(tmp_path / "one", "--trials", "4", "--sampler", sampler, "--total-tokens", "400") == 0
    assert trials(tmp_path / "one") == trials(tmp_path / "two")


def test_a_failed_trial_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    train, calls = trial.train_agent, []

    def second_fails(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise FloatingPointError("the loss is nan")
        return train(*arguments)

    monkeypatch.setattr(trial, "train_agent", second_fails)
    run_tune(Tune("exact-smooth", "a2c", trials=3, total_tokens=500, texts=32, seeds=1, pruner="none", out=tmp_path))
    rows = trials(tmp_path)
    assert [row["state"] for row in rows] == ["complete", "fail", "complete"]


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"textrl-env\[tune\]"):
        run_tune(Tune(out=tmp_path))


def test_settings_out_of_range(tmp_path):
    with pytest.raises(ValueError, match="--algo random: no search space"):
        run_tune(Tune(algo="random", out=tmp_path))
    with pytest.raises(ValueError, match="trials=0"):
        run_tune(Tune(trials=0, out=tmp_path))


def test_every_space_belongs_to_an_agent():
    for name in SPACE:
        check(parse(name))


def test_beta_belongs_to_exact_tasks_however_they_are_written():
    tried = [[row[0] for row in _space(Tune(task, "ppo"))] for task in ("exact-smooth", "textrl/Exact-Smooth-v0", "lock")]
    assert tried[0] == tried[1] == [name for name in tried[2] if name != "beta"] and "beta" in tried[2]


def test_tuned_settings_come_with_the_package():
    settings = tuned("ppo", "recall")
    assert 1e-4 <= settings["learning_rate"] <= 5e-3
    with pytest.raises(ValueError, match="there are: recall"):
        tuned("ppo", "nothing")
