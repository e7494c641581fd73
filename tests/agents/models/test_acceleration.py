"""CUDA graphs and torch.compile: the same numbers, and a clean way back where they cannot be had."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from agents import TextPPO, TransformerPolicy
from agents.benchmark.performance.architectures import architectures
from agents.benchmark.performance.model_families import Families, measure
from agents.models import cuda_graphs

from ..conftest import GPT2, LLAMA, VOCAB
from .test_cached_decoder import play_and_compare
from .test_families import OWN

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_policy(env, model, **settings):
    policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=model, **settings)
    policy.set_training_mode(False)
    return policy


def record_without_a_gpu(run):
    """What a graph does, done from Python: the same shapes, the same memory, and warm-up passes that must do no harm."""
    for _ in range(3):
        run()
    return run


@pytest.mark.parametrize("model", [LLAMA, GPT2, architectures(VOCAB)["mistral"], OWN["nano"]], ids=["llama", "gpt2", "mistral", "nano"])
def test_steps_on_fixed_shapes_equal_full_passes(make_env, monkeypatch, model):
    recorded = []
    monkeypatch.setattr(cuda_graphs, "record", lambda run: recorded.append(run) or record_without_a_gpu(run))
    env = make_env(num_envs=6)
    policy = make_policy(env, model, cuda_graphs=True)
    worst, ends = play_and_compare(policy, env, steps=60)
    assert worst < 1e-5 and ends > 15 and recorded
    env.begin_rollout(9)
    worst, ends = play_and_compare(policy, env, steps=60)
    assert worst < 1e-5 and ends == 9
    assert len(recorded) < 12  # one for each size of the buffers, not one a step


def test_without_a_gpu_decoding_goes_on(make_env):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    env = make_env(num_envs=3)
    policy = make_policy(env, LLAMA, cuda_graphs=True)
    with pytest.warns(UserWarning, match="no CUDA graph of this model"):
        worst, _ = play_and_compare(policy, env, steps=20)  # a second warning would be an error
    assert worst < 1e-5


def test_a_compiler_that_fails_is_done_without(make_env, monkeypatch):
    def broken(function, **settings):
        def fail(*arguments):
            raise RuntimeError("no C++ compiler\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    env = make_env()
    agent = TextPPO("TransformerPolicy", env, n_episodes=8, batch_size=4, policy_kwargs={"model": LLAMA, "compile": True})
    with pytest.warns(UserWarning, match=r"torch\.compile failed \(no C\+\+ compiler\)"):
        agent.learn(20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_compiled_passes_equal_plain_ones(make_env):
    env = make_env()
    agent = TextPPO("TransformerPolicy", env, n_episodes=12, batch_size=6, seed=0, policy_kwargs={"model": LLAMA, "compile": True})
    agent.learn(60)
    assert agent.policy.backbone._compiles and agent.policy.backbone._compiled is not None
    samples = agent.rollout_buffer.samples(np.arange(12))
    compiled = agent.policy.evaluate_actions(samples.observations, samples.actions)
    agent.policy.backbone._compiles = False
    for one, two in zip(compiled, agent.policy.evaluate_actions(samples.observations, samples.actions), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", architectures(VOCAB))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_family_on_a_gpu(name, precision):
    config = Families(width=64, rows=8, new_tokens=24, device="cuda", precision=precision)
    cached, ratio, gradient, saved, *_ = measure(architectures(config.vocabulary, config.width, 256)[name], config)
    limit = 1e-4 if precision == "float32" else 0.2
    assert cached < limit and ratio < limit and saved
    assert gradient < (1e-4 if precision == "float32" else 0.1)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("model", [LLAMA, GPT2, OWN["nano"]], ids=["llama", "gpt2", "nano"])
def test_cuda_graphs_equal_the_ordinary_steps(make_env, model):
    env = make_env(num_envs=6)
    policy = make_policy(env, model, cuda_graphs=True).to("cuda")
    obs = env.reset()
    for _ in range(40):
        tensors = {key: torch.as_tensor(value, device="cuda") for key, value in obs.items()}
        with torch.no_grad():
            actions, _, log_probs = policy(tensors)
            full = policy.evaluate_actions(tensors, actions)[1]
        assert (log_probs - full).abs().max() < 1e-4
        obs = env.step(actions.cpu().numpy())[0]
    assert policy._caches["acting"]._graphs.usable


@pytest.mark.slow
def test_the_table_of_families(tmp_path):
    command = [
        sys.executable,
        "-m",
        "agents.benchmark.performance.model_families",
        "--only",
        "llama",
        "--width",
        "16",
        "--rows",
        "4",
        "--new-tokens",
        "12",
    ]
    subprocess.run([*command, "--device", "cpu", "--out", str(tmp_path / "table.md")], check=True, capture_output=True, timeout=120)
    cells = [cell.strip() for cell in (tmp_path / "table.md").read_text().splitlines()[-1].split("|")[1:-1]]
    assert cells[0] == "llama" and cells[4] == "yes"
    assert all(float(cell) < 1e-5 for cell in cells[1:4])


@pytest.mark.parametrize("graphs", [False, True])
def test_the_decoding_benchmark(monkeypatch, graphs):
    from agents.benchmark.performance.decoding import Decode, main

    recorded = []
    monkeypatch.setattr(cuda_graphs, "record", lambda run: recorded.append(run) or record_without_a_gpu(run))
    size = {"rows": 4, "shortest": 2, "longest": 6, "width": 16, "layers": 1, "vocabulary": 64}
    speeds = main(Decode(**size, repeats=1, device="cpu", cuda_graphs=graphs))
    assert all(speed > 0 for speed in speeds.values())
    assert (len(speeds), sum(kind.endswith("CUDA graphs") for kind in speeds), bool(recorded)) == (
        (8, 4, True) if graphs else (4, 0, False)
    )
