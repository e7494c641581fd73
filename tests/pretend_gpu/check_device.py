"""The pretend GPU itself: as strict as CUDA, the CPU's numbers, and every wait counted."""

import copy

import numpy as np
import pytest
import torch


def test_tensors_of_host_and_device_do_not_mix(pretend_gpu):
    x = torch.arange(6.0, device=pretend_gpu).view(2, 3)  # (2, 3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, but found at least two devices"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        torch.ones(3)[torch.tensor([0], device=pretend_gpu)]
    with pytest.raises(TypeError, match="can't convert"):
        x.numpy()
    assert (x + torch.tensor(1.0)).cpu().tolist() == [[1, 2, 3], [4, 5, 6]]  # single numbers do, as on CUDA
    assert x[torch.tensor([1])].cpu().tolist() == [[3, 4, 5]]


def test_its_random_numbers_are_its_own(pretend_gpu):
    torch.manual_seed(3)
    torch.rand(5)
    drawn = torch.rand(2, device=pretend_gpu).cpu()
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))  # the device began at the same seed, where the host's five draws left no trace
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.rand(2, device=pretend_gpu, generator=torch.Generator())


def test_a_model_trains_on_it_as_on_the_cpu(pretend_gpu):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), torch.randn(5, 4)
    weights = []
    for device in ("cpu", pretend_gpu):
        own = copy.deepcopy(model).to(device)
        optimizer = torch.optim.Adam(own.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            own(x.to(device)).square().mean().backward()
            optimizer.step()
        weights.append([p.detach().cpu() for p in own.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))


def test_what_the_counter_counts(pretend_gpu, count_waits):
    x, mask = torch.arange(4.0, device=pretend_gpu), torch.tensor([True, False, True, False], device=pretend_gpu)
    with count_waits() as counter:
        (x + 1).softmax(-1).argmax()
        x[mask] = 0.0
    assert counter.total == 0
    waiting = [
        lambda: x.sum().item(),
        lambda: x.cpu(),
        lambda: x.tolist(),
        lambda: x[mask],
        lambda: mask.nonzero(),
        lambda: bool(mask.any()),
    ]
    for wait in waiting:
        with count_waits() as counter:
            wait()
        assert counter.waits.total() == 1 and counter.copies.total() == 0 and counter.own == 0
        ((_, line),) = counter.waits
        assert "tests/pretend_gpu/check_device.py" in line
    copying = [
        lambda: torch.ones(2).to(pretend_gpu),
        lambda: torch.tensor([1.0], device=pretend_gpu),
        lambda: torch.as_tensor(np.ones(2), device=pretend_gpu),
        lambda: x.new_tensor(1.0),
        lambda: x[torch.tensor([1])],
    ]
    for copy_once in copying:
        with count_waits() as counter:
            copy_once()
        assert counter.copies.total() == 1 and counter.waits.total() == 0
