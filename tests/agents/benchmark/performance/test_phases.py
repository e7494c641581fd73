"""Where the time of an iteration goes: phases that add up, of a folder with weights and a tokenizer."""

import numpy as np
import pytest
import torch

from agents.benchmark.performance.phases import PHASES, Phases, main, make, operations
from agents.models.loading import load_lm, save_lm
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer

from ...conftest import LLAMA, VOCAB


@pytest.fixture
def folder(tmp_path):
    save_lm(load_lm(LLAMA), tmp_path / "model", {}, IntegerTokenizer(VOCAB, 0).pretrained_files())
    return str(tmp_path / "model")


@pytest.mark.parametrize("algo", slow_but(["rloo", "ppo"], ["rloo", "grpo", "ppo"]))
def test_phases_add_up_to_the_iteration(folder, algo, capsys):
    threads = torch.get_num_threads()
    figures = main(Phases(folder, algo, '{"r": 2}', prompt=4, new_tokens=5, episodes=8, group_size=4, batch=4, repeats=1))
    torch.set_num_threads(threads)
    assert sum(figures[phase] for phase in PHASES[:-1]) == pytest.approx(figures["iteration"])
    assert all(figures[phase] > 0 for phase in PHASES) and 0 < figures["matrix_products"] < 1
    assert "CPU seconds of an iteration" in capsys.readouterr().out


def test_shares_of_operations():
    """Of known work: products of 2 x 500^3 operations beside sums of 500 x 500 numbers, often enough that a pause decides nothing."""

    class Multiplies:
        def learn(self, tokens, reset_num_timesteps):
            a = torch.ones(500, 500)
            for layer in 4 * (lambda x: x @ a, torch.nn.Linear(500, 500), lambda x: torch.bmm(x[None], a[None])[0]):
                layer(a) + a

    shares = operations(Multiplies())
    assert sum(shares.values()) == pytest.approx(1) and next(iter(shares)) == "matrix products" and shares["matrix products"] > 0.5
    assert "aten::add" in shares and not any(name.endswith(("mm", "linear")) and share > 0.1 for name, share in shares.items())


def test_the_work_is_what_was_asked_for(folder):
    agent = make(Phases(folder, prompt=4, new_tokens=5, episodes=8, group_size=4, batch=8, micro_batch_size=2))
    agent.learn(1)
    segments = agent.rollout_buffer.segments
    assert [len(segment.context) for segment in segments] == [4] * 8 and np.diff(agent.rollout_buffer._offsets).tolist() == [5] * 8
    assert len({segment.prompt_id for segment in segments}) == 2
    assert agent.policy.settings.micro_batch_size == 2
