"""A generator in another process: what is said, what it writes, and how it fails."""

import dataclasses
import importlib.util
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import LocalDecoder, VLLMGenerator
from agents.generation.generator import Request, decode
from agents.generation.generator_process import ServedGenerator
from agents.models.sampler import Sampler

from ..conftest import EOS, LLAMA, VOCAB
from .test_generator import T5, make

NANO = {"class": "tests.agents.models.own_models:Nano", "vocab_size": VOCAB, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture
def served(tmp_path):
    generator = ServedGenerator("local", sys.executable, folder=tmp_path, timeout=120)
    yield generator
    generator.close()
    assert not list(tmp_path.iterdir())  # nothing is left behind


def request_of(seed, **rules):
    prompts = tuple(np.array(p) for p in ([1, 2, 3], [4], [4]) for _ in range(4))
    return Request(prompts, 9, Sampler(**rules, eos_token_id=EOS), (EOS, 7), VOCAB, seed)


def equal(one, two):
    return [(list(t.tokens), list(t.log_probs)) for t in one] == [(list(t.tokens), list(t.log_probs)) for t in two]


@pytest.mark.slow
def test_it_learns_with_the_weights_of_each_rollout(make_env, served):
    """Two models that are the same learn alike, whether texts are written here or there."""
    here, there = make(make_env(20), n_epochs=1, batch_size=20), make(make_env(20), n_epochs=1, batch_size=20)
    here.generator, there.generator = LocalDecoder(), served
    for model in (here, there):
        torch.manual_seed(5)
        np.random.seed(5)  # of the order in minibatches
        for _ in range(3):
            model.learn(1, reset_num_timesteps=False)
            assert model.logger.name_to_value["policy/clip_fraction"] == 0
            assert model.logger.name_to_value["policy/approx_kl"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(here.rollout_buffer.actions, there.rollout_buffer.actions)
    for one, two in zip(here.policy.parameters(), there.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    asked = request_of(3, temperature=0.7, min_new_tokens=2, banned_tokens=(5,))
    before = served.generate(asked)
    served.load(there.policy)  # what the last update made of it
    assert equal(served.generate(asked), decode(there.policy.backbone, asked)) and not equal(before, served.generate(asked))
    there.save(served.folder / "model")
    (served.folder / "model.zip").unlink()


@pytest.mark.slow
def test_adapters_and_failures(make_env, served):
    pytest.importorskip("peft")
    model = make(make_env(), rules={"lora": {"r": 2}})
    with torch.no_grad():
        for p in model.policy.actor_parameters():
            p.add_(0.1 * torch.randn_like(p))
    served.load(model.policy)
    assert equal(served.generate(request_of(1)), decode(model.policy.backbone, request_of(1)))  # adapters are folded in
    bad = dataclasses.replace(request_of(0), prompts=(np.array([VOCAB + 1]),))
    with pytest.raises(RuntimeError, match="failed at 'generate'"):
        served.generate(bad)
    assert len(served.generate(request_of(0))) == 12  # it is still there
    os.kill(served.process.pid, signal.SIGKILL)
    with pytest.raises(ConnectionError, match="ended with status -9"):
        served.generate(request_of(0))
    served.load(model.policy)  # another one
    os.kill(served.process.pid, signal.SIGSTOP)
    served._connection.settimeout(0.2)
    with pytest.raises(TimeoutError, match="did not answer 'generate'"):
        served.generate(request_of(0))


def test_an_interpreter_that_is_none(make_env, tmp_path):
    model = make(make_env())
    with pytest.raises(OSError, match="cannot be started"):
        ServedGenerator("local", tmp_path / "python", folder=tmp_path).load(model.policy)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_an_interpreter_without_vllm(make_env, tmp_path):
    generator = VLLMGenerator(sys.executable, folder=tmp_path)
    with pytest.raises(RuntimeError, match="No module named 'vllm'"):
        generator.load(make(make_env()).policy)
    generator.close()


@pytest.mark.parametrize(("model", "told"), [(NANO, "a module of your own"), (T5, "an encoder-decoder")], ids=["own", "t5"])
def test_models_that_vllm_cannot_serve(make_env, tmp_path, model, told):
    with pytest.raises(TypeError, match=told):
        VLLMGenerator(tmp_path / "python", folder=tmp_path).load(make(make_env(), model).policy)


def test_rules_that_vllm_has_otherwise(make_env, tmp_path):
    generator = VLLMGenerator(tmp_path / "python", folder=tmp_path)
    with pytest.raises(ValueError, match=r"withholds only end-of-text, 0; in vLLM it would withhold all of \[0, 7\]"):
        generator.generate(request_of(0, min_new_tokens=2))
    large = make(make_env(), {**LLAMA, "vocab_size": 2000})
    with pytest.raises(OSError, match="cannot be started"):
        generator.load(large.policy)
    with pytest.raises(ValueError, match=r"0 banned tokens and 1976 rows .* at most 1024"):
        generator.generate(request_of(0))


@pytest.mark.gpu
@pytest.mark.skipif("TEXTRL_VLLM_PYTHON" not in os.environ, reason="set TEXTRL_VLLM_PYTHON to an interpreter with vLLM")
def test_vllm(make_env, tmp_path):
    """Log-probabilities of its texts are like those of our own: the same distribution wrote them."""
    large = {**LLAMA, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1}
    model = make(make_env(), large, rules={"temperature": 0.8, "banned_tokens": [5]})
    settings = {"dtype": "float32", "gpu_memory_utilization": 0.3, "enforce_eager": True}
    generator = VLLMGenerator(Path(os.environ["TEXTRL_VLLM_PYTHON"]), folder=tmp_path, **settings)
    prompts = tuple(np.array([1, 2, 3]) for _ in range(2000))
    for update in range(2):
        with torch.no_grad():
            model.policy.lm.lm_head.weight[update + 8] += 0.2  # the second `load` has other weights
        generator.load(model.policy)
        asked = Request(prompts, 9, model.policy.sampler, (EOS,), VOCAB, seed=update)
        theirs, ours = ([text.tokens for text in by] for by in (generator.generate(asked), decode(model.policy.backbone, asked)))
        for position in (0, 2):
            shares = [np.bincount([t[position] for t in texts if len(t) > position], minlength=VOCAB) / 2000 for texts in (theirs, ours)]
            assert np.abs(shares[0] - shares[1]).max() < 0.05 and shares[0][5] == 0
    learner = make(make_env(20), large, rules={"temperature": 0.8, "banned_tokens": [5]})
    learner.generator = generator
    learner.learn(1)  # its log-probabilities are of temperature and bans: after processing
    mismatch = learner.rollout_buffer.stats.mismatch
    assert mismatch.largest_log_ratio < 1e-3 and mismatch.sums.mean == pytest.approx(1, abs=1e-3)
    generator.close()
