"""A device that is slow in bfloat16 is named, once."""

import platform
import warnings
from pathlib import Path

import pytest
import torch

from agents.models.mixed_precision import lacking_for_bfloat16, warn_without_bfloat16
from agents.policies.transformer_policy import TransformerPolicy

from ..conftest import LLAMA

CPU, INFO = torch.device("cpu"), Path("/proc/cpuinfo")


@pytest.fixture(autouse=True)
def anew():
    warn_without_bfloat16.cache_clear()
    yield
    warn_without_bfloat16.cache_clear()


@pytest.mark.skipif(not INFO.is_file() or platform.machine() != "x86_64", reason="the flags of the processor are read from Linux")
def test_this_processor_has_what_the_kernel_says_it_has():
    flags = set(INFO.read_text().split())
    assert (lacking_for_bfloat16(CPU) is None) == bool({"avx512_bf16", "amx_tile"} & flags)


@pytest.mark.filterwarnings("error")
def test_a_policy_warns_once_on_a_processor_without(make_env, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    env = make_env()

    def act(precision):
        policy = TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=LLAMA, precision=precision)
        policy.predict(env.reset())

    act("float32")
    with pytest.warns(UserWarning, match="on a processor with neither avx512_bf16 nor amx_bf16: .*--precision float32"):
        act("bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        act("bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert lacking_for_bfloat16(CPU) is None


def test_gpus_before_ampere_lack_it(monkeypatch):
    capability = {"cuda:0": (7, 5), "cuda:1": (8, 0), "cuda:2": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[str(device)])
    said = [lacking_for_bfloat16(torch.device(name)) for name in capability]
    assert said[0] == "a GPU of compute capability 7.5, where products of bfloat16 need 8.0" and said[1:] == [None, None]
    assert lacking_for_bfloat16(torch.device("meta")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_asked_itself():
    device = torch.device("cuda", 0)
    assert (lacking_for_bfloat16(device) is None) == (torch.cuda.get_device_properties(device).major >= 8)
