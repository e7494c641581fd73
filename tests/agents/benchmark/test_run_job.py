"""What a cell of a benchmark depends on."""

import json
import os

import pytest
import torch

from agents.benchmark.run_job import Job, prepare, run
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
