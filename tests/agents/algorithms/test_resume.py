"""A run that is killed goes on from its checkpoint bit by bit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents import TextPPO

from .resumable import TOTAL, make_env, make_model

ROOT = Path(__file__).resolve().parents[3]


def outcome(model):
    controller = model.kl_controller
    assert model.rollout_buffer.kl_shaping.controller is controller
    return model.policy.state_dict(), model.policy.optimizer.state_dict()["state"], controller.beta, model.num_timesteps, model.num_rollouts


@pytest.mark.parametrize("where", ["rollout", "update"])
@pytest.mark.slow
def test_killed_and_resumed_equals_never_killed(tmp_path, where):
    torch.set_num_threads(1)
    straight = make_model()
    straight.learn(TOTAL)
    assert straight.num_rollouts > 5

    run = subprocess.run(
        [sys.executable, "-m", "tests.agents.algorithms.resumable", str(tmp_path), where], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    resumed = TextPPO.load(tmp_path / "model.zip", env=make_env(), device="cpu")
    assert resumed.num_rollouts == (3 if where == "rollout" else 2)  # the rollout under way is collected again
    resumed.learn(TOTAL - resumed.num_timesteps, reset_num_timesteps=False)

    weights, optimizer, *rest = outcome(straight)
    again, optimizer_again, *rest_again = outcome(resumed)
    assert rest == rest_again
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    for one, two in zip(optimizer.values(), optimizer_again.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)


def test_saving_does_not_disturb_training(tmp_path):
    torch.set_num_threads(1)
    one = make_model()
    one.learn(250)
    one.save(tmp_path / "model.zip")
    saved = one.num_rollouts
    one.learn(200, reset_num_timesteps=False)
    assert one.num_rollouts > saved + 1 > 2

    two = TextPPO.load(tmp_path / "model.zip", env=make_env(), device="cpu")
    two.learn(200, reset_num_timesteps=False)
    one_outcome, two_outcome = outcome(one), outcome(two)
    assert one_outcome[2:] == two_outcome[2:]
    assert all(torch.equal(a, b) for a, b in zip(one_outcome[0].values(), two_outcome[0].values(), strict=True))


def test_another_environment_is_told(tmp_path):
    model = make_model()
    model.learn(100)
    model.save(tmp_path / "model.zip")
    other = make_env()
    other = type(other)(5, task=other.task, reward=other.reward_model)
    loaded = TextPPO.load(tmp_path / "model.zip", env=other, device="cpu", force_reset=True)
    with pytest.warns(UserWarning, match="the state is that of 8 rows, the environment has 5"):
        loaded.learn(50, reset_num_timesteps=False)
