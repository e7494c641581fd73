"""Commands with --device from end to end: everything computes there, and nothing stays behind on the host."""

import dataclasses
import json
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agents.pipelines.demo
import agents.pipelines.feedback_loop
from agents.benchmark.bench import jobs_of
from agents.benchmark.flags import Bench
from agents.benchmark.run_job import work
from agents.cli.evaluate import run_evaluate
from agents.cli.flags import Evaluate, Generate
from agents.cli.generate import run_generate
from agents.cli.train import run_train
from agents.cli.train_flags import Train
from agents.pipelines.demo import run_demo
from agents.pipelines.feedback_loop import run_loop
from agents.pipelines.flags import Demo, Loop
from agents.training.base_policies import base_policy
from agents.utils.run_folder import RunFolder
from rewards.utils.devices import auto_device, get_device, has_float64
from textrl_env import make_task

from .waits import line

# the pretend device's own: operators are given an output of no size to fill
pytestmark = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
# a choice of threads, a mixture of two scores, and what is tried on a model that was just read
ON_THE_HOST = ("threads.py", "losses.py", "model_checks.py")


class Single(TorchDispatchMode):
    """The device without double precision, as Apple's GPUs are; `products` are the lines that multiply matrices, by device."""

    def __init__(self):
        super().__init__()
        self.products = {"cpu": set(), "pretend": set()}

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type == "pretend" and value.dtype == torch.float64:
                raise TypeError("Cannot convert a pretend tensor to float64, which its framework does not support")
        if function._schema.name in ("aten::mm", "aten::addmm", "aten::bmm") and (where := line()) not in self.products[result.device.type]:
            files = [frame.f_code.co_filename for frame, _ in traceback.walk_stack(None)]
            if not any(file.endswith(ON_THE_HOST) for file in files):
                self.products[result.device.type].add(where)
        return result


@pytest.fixture
def there(pretend_gpu):
    """Yield the name of the device, which is without double precision; whatever multiplies matrices meanwhile does so there."""
    has_float64.cache_clear()
    single = Single()
    with single:
        yield "pretend"
    has_float64.cache_clear()
    assert single.products["pretend"]
    assert not single.products["cpu"]
    assert get_device() == torch.device("cpu")  # the flag is the command's alone


def short(*args, **kwargs):
    """`make_task`, but its base policy learns for 3 steps."""
    task = make_task(*args, **kwargs)
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, steps=3))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Base policies of an hour ago are no help: those of these tests are made here, on the device that asks first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        for module in (agents.pipelines.demo, agents.pipelines.feedback_loop):
            patch.setattr(module, "make_task", short)
        yield


@pytest.mark.parametrize("algo", ["ppo", "sft", "dpo", "expert-iteration"])
def test_train_evaluate_and_generate(algo, there, tmp_path, capsys):
    task = short("recall")
    with auto_device(there):
        model = str(base_policy(task))
    words, run = task.tokenizer.words[1:5], tmp_path / "run"
    rows = [{"prompt": words[i % 4], "chosen": f" {words[0]}", "rejected": f" {words[1 + i % 3]}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"total_tokens": 60, "n_episodes": 8} if algo == "ppo" else {"steps": 1}
    own |= {"preferences": tmp_path / "pairs.jsonl"} if algo in ("sft", "dpo") else {}
    run_train(Train(algo=algo, task="recall", model=model, eval_texts=4, device=there, out=run, **own))
    assert "on pretend:0" in " ".join(capsys.readouterr().out.split())
    assert RunFolder(run).facts(algo)["device"] == "pretend:0"
    run_evaluate(Evaluate(run=run, texts=4, device=there))
    assert json.loads((run / f"evaluation-{algo}.json").read_text())["texts"] == 4
    run_generate(Generate(run=run, prompts=(words[0], words[1]), device=there, out=tmp_path / "texts.jsonl"))
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 2


def test_demo(there, tmp_path, monkeypatch):
    monkeypatch.setattr(agents.pipelines.demo, "HELD_OUT_PAIRS", 20)
    run_demo(Demo(out=tmp_path, pairs=50, total_tokens=50, n_episodes=8, batch_size=8, texts=8, device=there))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["versions"]["device"] == "pretend" and results["variants"]["kl"]["kl_per_sequence"] > 0
    run_demo(Demo(out=tmp_path, pairs=50, total_tokens=50, n_episodes=8, batch_size=8, texts=8, device=there))  # nothing but the judgement


def test_loop(there, tmp_path):
    run_loop(Loop(out=tmp_path, rounds=2, labels=20, total_tokens=50, texts=4, n_episodes=8, device=there))
    assert len(json.loads((tmp_path / "rounds.json").read_text())["rounds"]) == 2


def test_bench(there, tmp_path):
    agents_of_all_kinds = ("random", "best-of-n:n=2", "dpo:epochs=1", "rloo")
    jobs = jobs_of(
        Bench(agents=agents_of_all_kinds, tasks=("exact-smooth",), seeds=1, total_tokens=50, texts=8, device=there, out=tmp_path)
    )
    for job in (jobs[0].preparation, *jobs):
        assert work(job) == 0
    cells = [json.loads(job.path.read_text()) for job in jobs]
    assert [cell["error"] for cell in cells] == [None] * 4
    assert {cell["manifest"]["hardware"]["device"] for cell in cells} == {"pretend"}
