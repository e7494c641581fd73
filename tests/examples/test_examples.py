"""Other people's agents learn a toy on our environments, each from its script under examples/."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_cleanrl_ppo():
    example = load("cleanrl_ppo")
    curve = example.main(example.Config(updates=10))
    assert curve[0] < 0.3 and curve[-1] > 0.8


# The best scores are 2 (six sevens), and 1 under the mask (three sevens in odd places)
@pytest.mark.parametrize(
    ("algorithm", "tokens", "reached"),
    [
        ("a2c", 10_000, 1.2),
        ("dqn", 12_000, 1.0),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in [("ppo", 8000, 1.2), ("trpo", 8000, 1.2), ("maskable-ppo", 8000, 0.8), ("qrdqn", 12_000, 1.0)]
        ),
    ],
)
def test_agents_of_stable_baselines3(algorithm, tokens, reached):
    example = load("sb3_agents")
    before, after = example.main(example.Config(algorithm, tokens))
    assert before < 0.8 and after > reached


def test_an_agent_that_ignores_masks_plays_on_and_pays(capsys):
    import numpy as np

    env = load("sb3_agents").make_env(masked=True)
    env.reset()
    _, rewards, dones, infos = env.step(np.array([2, 1, 3, 4, 5, 7, 6, 1]))
    assert dones.tolist() == [True, False, False, True, False, False, True, False]
    assert rewards[0] == -1 and infos[0]["finish_reason"] == "illegal"


def test_torchrl():
    pytest.importorskip("torchrl", reason="torchrl is not installed: pip install 'textrl-env[test]'")
    example = load("torchrl_agent")
    curve = example.main(example.Config(updates=15))
    assert curve[0] < 0.6 and curve[-1] > 0.8


def test_torchrl_makes_registered_environments():
    libs = pytest.importorskip("torchrl.envs", reason="torchrl is not installed: pip install 'textrl-env[test]'")
    env = libs.GymEnv("textrl/Review-v0", reward="length")
    assert env.rollout(3)["next", "response"].shape == (3, 26)


@pytest.mark.slow
def test_custom_transformer():
    example = load("custom_transformer")
    assert example.main(example.Config(timesteps=1000)) < 0.15  # where it starts
    assert example.main(example.Config(timesteps=15_000)) > 0.22


@pytest.mark.slow
def test_one_string_swaps_five_kinds_of_reward(tmp_path):
    import threading

    import uvicorn

    import rewards
    from agents.cli.reward_serve import listen
    from rewards.remote.reward_server import make_app

    example = load("swap_reward")
    example.prepare(example.Prepare(tmp_path))
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(rewards.make("vader")), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/score"
        kinds = ["vader", "chrf", str(tmp_path / "preference"), f'{{"name": "http", "url": "{url}"}}']
        kinds.append(f'{{"name": "classifier", "path": "{tmp_path / "classifier"}", "label": "positive"}}')
        curves = {kind: example.train(example.Train(kind, tokens=5000)) for kind in kinds}
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    for kind, (before, after) in curves.items():
        assert after > before + 0.1, (kind, before, after)
    assert curves["vader"] == curves[kinds[3]]  # the same reward at hand and over HTTP: the same run
