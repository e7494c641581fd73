"""What a cell of a benchmark depends on."""

import json
import os

import pytest
import torch

from agents import SFT
from agents.benchmark.run_job import Job, forget_failure, prepare, record_failure, run, task_of
from agents.benchmark.spec import parse
from agents.evaluation.policy_texts import make_policy, write_texts
from agents.models.loading import load_lm, save_lm
from textrl_env import make_task


def model(folder, seed, task="recall"):
    tokenizer = make_task(task).tokenizer
    torch.manual_seed(seed)
    config = {
        "model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    save_lm(load_lm(config), folder)


@pytest.mark.reports("textrl bench trains and judges by the reward that a task's spec names")
def test_the_reward_of_the_spec_is_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "lm", 1)
    (tmp_path / "mine.py").write_text("def by_length(prompts, completions):\n    return [float(len(c)) for c in completions]\n")
    job = Job(str(tmp_path / "out"), "recall:model=lm:reward=mine.py:by_length", "reinforce", tokens=200, texts=8)
    prepare(job.preparation)
    run(job)
    cell = json.loads(job.path.read_text())
    assert cell["error"] is None
    assert [one["reward"] for one in cell["samples"]] == [len(one["response"]) for one in cell["samples"]]
    assert cell["measures"]["reward"] > 2 and cell["curve"][0]["reward"] > 2  # the task's own is at most 1


@pytest.mark.reports("A finished cell of textrl bench is run again when its model folder or its agent's source changed")
def test_a_cell_depends_on_the_contents_of_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model(tmp_path / "lm", 1)
    (tmp_path / "cell_agent.py").write_text("class Mine:\n    learn = predict = print\n")
    jobs = [Job(str(tmp_path / "out"), "recall:model=lm", agent, tokens=100, texts=8) for agent in ("reference", "cell_agent:Mine")]
    prepare(jobs[0].preparation)
    run(jobs[0])
    assert jobs[0].done() and json.loads(jobs[0].path.read_text())["status"] == "done"
    prints = [job.fingerprint() for job in jobs]
    (tmp_path / "cell_agent.py").write_text("class Mine:\n    learn = predict = repr\n")
    assert [job.fingerprint() == before for job, before in zip(jobs, prints, strict=True)] == [True, False]
    times = os.stat(tmp_path / "lm" / "model.safetensors")
    model(tmp_path / "lm", 2)
    os.utime(tmp_path / "lm" / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    prepare(jobs[0].preparation)
    assert not jobs[0].done()


@pytest.mark.reports("A cell of textrl bench that reached --limit counts 0 for good, however long the limit is later")
def test_a_failure_from_outside_is_not_for_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "lm", 1)
    job = Job(str(tmp_path / "out"), "recall:model=lm", "reference", tokens=100, texts=8)
    prepare(job.preparation)
    for status, seconds, limit, again in (("timeout", 2.0, 2.0, False), ("timeout", 2.0, 60.0, True), ("crashed", 9.0, 2.0, True)):
        record_failure(job, status, "what happened", seconds)
        forget_failure(job, limit)
        assert job.done() is not again
    run(job)
    forget_failure(job, 1e9)
    assert job.done()  # what an agent itself came to stays


@pytest.mark.reports("An agent of one's own pays nothing for its KL on exact tasks")
def test_an_agent_of_ones_own_has_no_value_on_exact_tasks(tmp_path):
    job = Job(str(tmp_path), "exact-smooth", "tests.agents.benchmark.own_agents:Plays", tokens=100, texts=8)
    prepare(job.preparation)
    run(job)
    cell = json.loads(job.path.read_text())
    assert cell["status"] == "done" and cell["score"] is cell["measures"]["value"] is None and cell["measures"]["length"] > 0


def test_a_task_that_knows_answers_to_its_own_prompts_only(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / "cache"))
    learn = SFT.learn
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: learn(self, texts, min(steps, 2), *args, **kwargs))
    job = Job(str(tmp_path / "out"), "reasoning:dataset=count_bits:max_n=200:size=16:max_new_tokens=4", "best-of-n:n=2", tokens=8, texts=20)
    prepare(job.preparation)
    run(job)
    prepared, cell = (json.loads(one.path.read_text()) for one in (job.preparation, job))
    assert cell["error"] is None and cell["status"] == "done"
    test = task_of(parse(job.task), "test", prompt_order="sequential")
    again = write_texts(make_policy(test, prepared["base"]), test, 16 * 20, seed=job.preparation.drawn_seed("base 16"))
    assert prepared["value"] == pytest.approx(test.gold(again.prompts, again.responses).mean()) and len(prepared["gold"]) == 20
    assert prepared["length"] == again.lengths.mean()
    asked = {row["prompt"] for row in cell["samples"]}
    assert asked <= {prompt.text for prompt in task_of(parse(job.task), "test").prompts}
    assert not asked & {prompt.text for prompt in task_of(parse(job.task)).prompts}
    assert cell["measures"]["wins_texts"] <= 0.5  # nothing is better than a right answer


@pytest.mark.reports("Cells of textrl bench that another machine has run are done here too, wherever their folders are")
def test_cells_of_another_machine_are_done(tmp_path, monkeypatch):
    learn = SFT.learn
    monkeypatch.setattr(SFT, "learn", lambda self, texts, steps, *args, **kwargs: learn(self, texts, min(steps, 2), *args, **kwargs))
    jobs = {}
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        monkeypatch.setenv("TEXTRL_CACHE", str(tmp_path / machine / "cache"))
        monkeypatch.setattr("agents.benchmark.run_job._processor", lambda machine=machine: machine)
        jobs[machine] = Job(str(tmp_path / machine / "out"), "hack-1", "reference", tokens=100, texts=8, facts=(("git", machine),))
        prepare(jobs[machine].preparation)
    here = jobs["two"]
    run(jobs["one"])
    here.path.parent.mkdir()
    here.path.write_bytes(jobs["one"].path.read_bytes())
    assert here.done() and json.loads(here.path.read_text())["manifest"]["git"] == "one"
    # Where the processor rounds otherwise, the base policy has other weights, and the cell is another one
    (weights,) = (tmp_path / "two").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    prepare(here.preparation)
    assert not here.done()
    weights.write_bytes(next((tmp_path / "one").rglob("model.safetensors")).read_bytes())
    prepare(here.preparation)
    assert here.done()
