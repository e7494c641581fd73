"""Names of devices, and generators that are seeded for a while."""

import os

import pytest
import torch

from rewards.utils.devices import auto_device, get_device, has_float64, seeded

needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here")


def test_auto_is_a_gpu_if_there_is_one_as_in_stable_baselines3():
    from stable_baselines3.common.utils import get_device as theirs

    assert get_device() == get_device("auto") == theirs("auto")
    assert get_device("cpu") == get_device(torch.device("cpu")) == torch.device("cpu")


@needs_none
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda", "device='cuda': .*CUDA|device='cuda': .*built without cuda"),
        ("cpu:3", "there are 1, cpu:0 to cpu:0"),
        ("gpu", "device='gpu': torch knows no such device; name 'auto', 'cpu', 'cuda'"),
        ("meta", "torch knows no such device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_the_reason_and_the_fix(name, reason):
    with pytest.raises(ValueError, match=reason):
        get_device(name)
    with pytest.raises(ValueError, match=reason), auto_device(name):
        pass
    assert "TEXTRL_DEVICE" not in os.environ


@needs_none
def test_what_auto_stands_for_can_be_said(monkeypatch):
    with auto_device("cpu"):
        assert os.environ["TEXTRL_DEVICE"] == "cpu" and get_device() == torch.device("cpu")
        with auto_device("auto"):
            assert os.environ["TEXTRL_DEVICE"] == "cpu"
    assert "TEXTRL_DEVICE" not in os.environ
    monkeypatch.setenv("TEXTRL_DEVICE", "cuda:7")
    with pytest.raises(ValueError, match="TEXTRL_DEVICE or --device says is 'cuda:7'"):
        get_device()
    assert get_device("cpu") == torch.device("cpu")


def test_a_seed_for_a_while():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cpu_computes_in_double_precision():
    assert has_float64(torch.device("cpu"))
