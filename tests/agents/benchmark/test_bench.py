"""The runner of the benchmark: what it runs, what it records, and what it never does twice."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from agents.algorithms.registry import ALGORITHMS
from agents.benchmark.agents import NAMES, check, tuned
from agents.benchmark.bench import jobs_of, kept_beside
from agents.benchmark.flags import Bench
from agents.benchmark.protocol import FULL, QUICK
from agents.benchmark.results import read_results
from agents.benchmark.run_job import Job, task_of
from agents.benchmark.spec import parse, parse_all
from agents.benchmark.suites import SUITES, budget, capability, is_exact
from agents.cli.main import main
from agents.evaluation.best_of import kl_bound, kl_of_best
from textrl_env import LADDERS

OWN = "tests.agents.benchmark.own_agents"
ROOT = Path(__file__).parents[3]


def bench(out, **settings):
    arguments = ["bench", "--texts", "32", "--out", str(out)]
    return main(arguments + [text for key, value in settings.items() for text in (f"--{key}", str(value))])


def test_specs():
    spec = parse("ppo:beta=0.1:learning_rate=1e-3:critic=none:clip=null")
    assert (spec.name, spec.settings) == ("ppo", {"beta": 0.1, "learning_rate": 1e-3, "critic": "none", "clip": None})
    assert parse("my_package.agents:Mine:width=64").name == "my_package.agents:Mine"
    assert [s.name for s in parse_all(("a,b", "c"))] == ["a", "b", "c"]
    for wrong, message in (("beta=1", "name first"), ("a:b=1:b=2", "each key once"), ("a:b=1:c", "name first")):
        with pytest.raises(ValueError, match=message):
            parse(wrong)
    with pytest.raises(ValueError, match="more than once"):
        parse_all(("a,b", "a"))


def test_the_reasoning_suite_has_tasks_with_base_policies():
    pytest.importorskip("reasoning_gym")
    for job in jobs_of(Bench(suite="reasoning", agents=("ppo",), seeds=1)):
        train, test = (task_of(parse(job.task), split) for split in ("train", "test"))
        assert train.recipe is not None and train.max_new_tokens == 16 and len(test.prompts) == 512
        assert test.prompt_width < train.recipe.model["max_position_embeddings"] - 16


def test_presets_cover_all_tasks():
    quick, full = jobs_of(Bench()), jobs_of(Bench(preset="full"))
    assert len(quick) == len(SUITES["diagnostic"]) * 6 * 3 and len(QUICK) == 6
    assert len(full) == len(SUITES["diagnostic"]) * len(FULL) * 10 and len(FULL) >= 8
    assert {j.task for j in quick} >= {ladder.name.lower() for ladder in LADDERS} | {"review", "exact-needle"}
    assert all(2 * q.tokens == f.tokens for q in quick for f in full if (q.task, q.agent, q.seed) == (f.task, f.agent, f.seed))
    assert budget("recall-64") == budget("recall") == 40_000
    for name, written in (("exact-smooth", "textrl/Exact-Smooth-v0"), ("recall-64", "textrl/Recall-64-v0"), ("review", "textrl/Review-v0")):
        assert budget(written) == budget(name) and capability(written) == capability(name) and is_exact(written) == is_exact(name)
    assert set(ALGORITHMS) < set(NAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "nothing"}, "--suite nothing: no suite"),
        ({"agents": ("poo",)}, "did you mean 'ppo'"),
        ({"agents": ("no.module:Agent",)}, "cannot be imported"),
        ({"agents": (f"{OWN}:CannotPredict",)}, "no method predict"),
        ({"seeds": 0}, "seeds=0"),
        ({"agents": ("ppo:tuned=true",), "tasks": ("lock",)}, "no tuned settings of ppo for task 'lock'"),
        ({"agents": ("ppo,ppo:tuned=true",), "tasks": ("recall",), "tuned": Path("f.json")}, "ppo:tuned=true --tuned f.json: tuned agents"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        jobs_of(Bench(**settings))


def test_cells_of_a_tuned_agent_depend_on_what_was_found_for_it(tmp_path, monkeypatch):
    jobs = jobs_of(Bench(agents=("ppo", "ppo:tuned=true:n_epochs=3"), tasks=("recall",), seeds=1, out=tmp_path))
    found = tuned("ppo", "recall")
    assert [job.agent_spec.settings for job in jobs] == [{}, found | {"n_epochs": 3}]
    jobs[0].preparation.path.parent.mkdir()
    jobs[0].preparation.path.write_text('{"fingerprint": ""}')
    before = [job.fingerprint() for job in jobs]
    monkeypatch.setattr("agents.benchmark.agents.tuned", lambda algo, task: found | {"learning_rate": 1e-5})
    after = [job.fingerprint() for job in jobs]
    assert after[0] == before[0] and after[1] != before[1]


def test_every_agent_has_a_name_that_is_known():
    for name in NAMES:
        check(parse(name))


def test_failures_are_results_and_the_others_go_on(tmp_path, capsys):
    agents = ",".join(f"{OWN}:{name}" for name in ("Plays", "Crashes", "Diverges", "Dies"))
    assert bench(tmp_path, tasks="lock-4", agents=agents, seeds=1, tokens=500) == 0
    found = {c.agent.split(":")[1]: c for c in read_results(tmp_path)}
    assert {name: c.status for name, c in found.items()} == {
        "Plays": "done",
        "Crashes": "crashed",
        "Diverges": "diverged",
        "Dies": "crashed",
    }
    assert "what was looked for" in found["Crashes"].error and "own_agents.py" in found["Crashes"].error
    assert found["Diverges"].error == "the loss is nan" and "SIGKILL" in found["Dies"].error
    assert found["Crashes"].score == found["Dies"].score == 0 and found["Plays"].measure("length") > 0
    assert (tmp_path / "report.html").is_file()


def test_a_hanging_cell_is_killed(tmp_path, monkeypatch):
    assert bench(tmp_path, tasks="exact-smooth", agents=f"{OWN}:Plays", seeds=1, tokens=500) == 0
    # The task is prepared already, and again it may take a busy machine longer than the limit
    monkeypatch.setattr(Job, "done", lambda job: not job.agent)
    assert bench(tmp_path, tasks="exact-smooth", agents=f"{OWN}:Hangs", seeds=1, limit=2) == 0
    cell = next(cell for cell in read_results(tmp_path) if cell.agent.endswith("Hangs"))
    assert cell.status == "timeout" and "2 s" in cell.error


@pytest.mark.slow
def test_a_higher_limit_runs_a_cell_again(tmp_path, monkeypatch):
    assert bench(tmp_path / "prepared", tasks="exact-smooth", agents=f"{OWN}:Plays", seeds=1) == 0
    shutil.copytree(tmp_path / "prepared" / "tasks", tmp_path / "tasks")
    done = Job.done
    monkeypatch.setattr(Job, "done", lambda job: not job.agent or done(job))  # preparing may take a busy machine longer than the limit
    for limit, status in ((2, "timeout"), (60, "done")):
        assert bench(tmp_path, tasks="exact-smooth", agents=f"{OWN}:Sleeps", seeds=1, limit=limit) == 0
        assert [cell.status for cell in read_results(tmp_path)] == [status]


def test_what_is_done_is_not_run_again_unless_its_inputs_change(tmp_path):
    log = tmp_path / "log"
    settings = {"tasks": "exact-smooth", "agents": f"{OWN}:Plays:log={log}", "seeds": 2, "tokens": 500}
    for _ in range(2):
        assert bench(tmp_path / "out", **settings) == 0
    assert len(log.read_text().splitlines()) == 2
    assert bench(tmp_path / "out", **settings | {"seeds": 3}) == 0
    assert len(log.read_text().splitlines()) == 3
    assert bench(tmp_path / "out", **settings | {"tokens": 600}) == 0
    assert len(log.read_text().splitlines()) == 5
    assert [c.budget for c in read_results(tmp_path / "out")] == [600, 600]  # the third seed learned with 500
    assert "1 results of other inputs left out" in (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "out" / "cells").joinpath(next((tmp_path / "out" / "cells").glob("*--0.json")).name).write_text("{half a fi")
    assert bench(tmp_path / "out", **settings | {"tokens": 600}) == 0
    assert len(log.read_text().splitlines()) == 6  # the damaged one


@pytest.mark.slow
def test_two_runners_on_one_folder_run_no_cell_twice(tmp_path):
    log = tmp_path / "log"
    arguments = [
        "bench", "--tasks", "exact-smooth,exact-wide", "--agents", f"{OWN}:Plays:log={log}", "--seeds", "3", "--tokens", "500",
        "--texts", "32", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    command = [sys.executable, "-m", "agents.cli", *arguments]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not log.exists():  # from then on both want the cells that are left
        assert other.poll() is None
        time.sleep(0.05)
    assert main(arguments) == 0
    output = other.communicate(timeout=120)[0]
    assert other.returncode == 0, output
    assert len(log.read_text().splitlines()) == 6 == len(read_results(tmp_path / "out"))


def test_a_cell_is_measured_and_says_where_it_comes_from(tmp_path):
    assert bench(tmp_path, tasks="exact-smooth", agents="reference,ppo:learning_rate=2e-3,best-of-n:n=2,dpo", seeds=1, tokens=3000) == 0
    found = {c.agent: c for c in read_results(tmp_path)}
    ppo, base = found["ppo:learning_rate=2e-3"], found["reference"]
    assert base.score == pytest.approx(0, abs=1e-6) and base.measure("kl_exact") == pytest.approx(0, abs=1e-6)
    assert ppo.score > 0.2 and ppo.measure("kl_exact") > 0.01
    # the exact KL, and its estimate from 32 texts
    assert ppo.measure("kl_per_sequence") == pytest.approx(ppo.measure("kl_exact"), abs=0.6)
    assert ppo.measure("value") == pytest.approx(
        ppo.score * (ppo.measure("optimum") - ppo.measure("reference_value")) + ppo.measure("reference_value")
    )
    assert ppo.curve[-1]["tokens"] >= 3000 and ppo.measure("tokens_per_second") > 0 and ppo.measure("peak_memory_mib") > 50
    assert np.isnan(found["best-of-n:n=2"].measure("kl_exact")) and 0 < found["best-of-n:n=2"].measure("kl_per_sequence") <= kl_bound(2)
    assert ppo.manifest["seed"] == 0 and ppo.manifest["versions"]["torch"] and ppo.manifest["hardware"]["cores"] >= 1
    assert sum(ppo.finish_reasons.values()) == pytest.approx(1)
    again = json.loads(json.dumps([c.score for c in read_results(tmp_path)]))
    for path in (tmp_path / "cells").iterdir():
        path.unlink()
    assert bench(tmp_path, tasks="exact-smooth", agents="reference,ppo:learning_rate=2e-3,best-of-n:n=2,dpo", seeds=1, tokens=3000) == 0
    assert [c.score for c in read_results(tmp_path)] == again  # bit by bit


def test_kl_of_best_by_hand_and_against_the_bound():
    # scores 0, 0, 1, 1 and n = 2: the best is 1 with chance 3/4
    assert kl_of_best(np.array([[0.0, 0.0, 1.0, 1.0]]), 2) == pytest.approx(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    assert kl_of_best(np.ones((3, 8)), 8) == 0
    assert kl_of_best(np.arange(4096.0)[None], 8) == pytest.approx(kl_bound(8), abs=1e-3)


def test_what_stays_beside_new_results(tmp_path):
    """Other agents and other tasks stay; what had another budget, other texts or other settings does not."""
    path = tmp_path / "current.json"

    class Made:
        def __init__(self, task, agent, seed, settings="s", given="g"):
            self.name = f"{task}--{agent}--{seed}"
            self.row = {
                "task": task,
                "agent": agent,
                "fingerprint": f"{settings}{given}{seed}",
                "settings": settings + given,
                "given": given,
            }

        def record(self):
            return self.row

    def after(*jobs):
        kept = kept_beside(jobs, path)
        path.write_text(json.dumps(kept))
        return sorted(kept)

    assert after(Made("lock", "ppo", 0), Made("lock", "ppo", 1)) == ["lock--ppo--0", "lock--ppo--1"]
    assert after(Made("lock", "dpo", 0)) == ["lock--dpo--0", "lock--ppo--0", "lock--ppo--1"]  # agents are collected
    assert after(Made("hack", "ppo", 0, given="h")) == ["hack--ppo--0", "lock--dpo--0", "lock--ppo--0", "lock--ppo--1"]
    assert after(Made("lock", "ppo", 0, settings="t")) == [
        "hack--ppo--0",
        "lock--dpo--0",
        "lock--ppo--0",
    ]  # its other seed had other settings
    assert after(Made("lock", "dpo", 1, given="h")) == ["hack--ppo--0", "lock--dpo--1"]  # a new budget, for all
