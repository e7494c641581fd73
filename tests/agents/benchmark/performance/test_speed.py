"""The speed benchmark: the same work for all, figures that follow from it, and TRL where it is installed.

`TRL_PYTHON=path/to/python pytest tests/agents/benchmark/performance/test_speed.py` takes TRL from another environment.
"""

import dataclasses
import json
import mmap
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from agents.benchmark.performance import hardware as machine
from agents.benchmark.performance import speed_contenders as contest
from agents.benchmark.performance.hardware import peak_mib, resident_mib, rollout_operations, update_operations
from agents.benchmark.performance.speed import _summary, draw, main
from agents.benchmark.performance.speed_contenders import Contender, contenders, trl_python
from agents.benchmark.performance.speed_workload import Speed, make_ours, make_stock, model_config
from tests.figures import check_labels, tick_labels

TINY = {"vocabulary": 64, "layers": 1, "width": 16, "heads": 2, "prompt": 4, "new_tokens": 6, "episodes": 8, "epochs": 2, "batch": 4}
TINY |= {"repeats": 1, "threads": 1}
TRAINERS = ("ppo", "ppo-small-critic", "grpo", "rloo")
TRL_PYTHON = Path(os.environ["TRL_PYTHON"]) if "TRL_PYTHON" in os.environ else None
HAS_TRL = TRL_PYTHON is not None or find_spec("trl") is not None


@pytest.mark.slow
def test_the_table_the_json_and_the_picture(tmp_path, capsys):
    trainers = ("ppo", "rloo") if HAS_TRL else ()
    figures = main(Speed(**TINY, stock_minibatches=1, trl=TRL_PYTHON, trl_trainers=trainers, out=tmp_path))
    rows = figures["contenders"]
    assert list(rows) == ["ours", "SB3 PPO", "SB3 PPO, our policy", *(f"TRL {name}" for name in trainers)]
    for row in rows.values():
        assert row["tokens_per_second"] == pytest.approx(8 * 6 / row["seconds"]) and row["memory_mib"] > 1
        assert row["ratio"] == pytest.approx(row["seconds"] / rows["ours"]["seconds"])
        assert 0 < row["update_utilisation"] < 1 and 0 < row["rollout_utilisation"] < 1
        assert len(row["iterations"]) == 2
    assert json.loads((tmp_path / "speed.json").read_text()) == figures
    assert (tmp_path / "speed.png").is_file()
    shown = capsys.readouterr().out
    assert "SB3 PPO" in shown and ("pip install torch trl==1.12.0" in shown) != HAS_TRL


def test_the_plot_has_a_bar_for_each_and_reaches_from_slowest_to_fastest():
    names = {"ours": 600.0, "SB3 PPO": 20.0, "SB3 PPO, our policy": 60.0, "TRL ppo-small-critic": 380.0}
    rows = {
        name: {"tokens_per_second": v, "memory_mib": v + 300, "iterations": [{"seconds": s * 48 / v} for s in (9, 0.5, 1, 2)]}
        for name, v in names.items()
    }
    figure = draw({"contenders": rows}, Speed(**TINY))  # 48 tokens an iteration
    check_labels(figure)
    left, right = figure.axes
    slow_to_fast = ["SB3 PPO", "SB3 PPO, our policy", "TRL ppo-small-critic", "ours"]
    assert [label.get_text() for label in tick_labels(left.yaxis)] == slow_to_fast
    assert [bar.get_width() for bar in left.patches] == [20, 60, 380, 600]
    assert [bar.get_width() for bar in right.patches] == [320, 360, 680, 900]
    reaches = [segment[:, 0].tolist() for segment in left.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(reaches, [(v / 2, 2 * v) for v in (20, 60, 380, 600)])
    assert len({bar.get_facecolor() for bar in left.patches}) == 2


def test_medians_leave_the_first_round_out_and_utilisation_is_of_the_same_round():
    speed = Speed(**{**TINY, "repeats": 3})
    rows = [{"seconds": 3 * s, "rollout_seconds": s, "update_seconds": 2 * s} for s in (100.0, 4.0, 1.0, 2.0)]
    found = _summary(speed, SimpleNamespace(rows=rows, memory_mib=1.0, versions={}), [1e9, 1e6, 2e6, 3e6])
    assert (found["seconds"], found["tokens_per_second"]) == (6.0, 8 * 6 / 6.0)
    assert found["update_utilisation"] == pytest.approx(update_operations(speed) / 8e6)  # of 1/8e6, 1/4e6 and 1/12e6


@pytest.mark.skipif(not HAS_TRL, reason="TRL is not installed")
@pytest.mark.parametrize("trainer", TRAINERS)
def test_trl_does_the_same_work(trainer):
    speed = Speed(**TINY, trl=TRL_PYTHON, trl_trainers=(trainer,))
    one = Contender(*contenders(speed)[-1])
    try:
        one.wait()
        one.iterate()
        one.iterate()
        one.finish()
    finally:
        one.close()
    for row in one.rows:
        assert row["tokens"] == 8 * 6 and row["optimizer_steps"] == 2 * 2
        assert row["positions"]["policy, update"] == 2 * 8 * 10 and row["positions"]["reference"] == 8 * 10
        assert row["positions"].get("critic, update", 0) == (2 * 8 * 10 if trainer.startswith("ppo") else 0)
    assert "trl" in one.versions and one.memory_mib > 0


def test_trl_is_given_the_default_work():
    pytest.importorskip("datasets")
    from agents.benchmark.performance.trl_peer import Work

    speed, work = Speed(), Work()
    assert work.model == model_config(speed)
    assert work.config().eos_token_id is None  # or a text may end early, and is filled up with an id that the model does not have
    for name in ("prompt", "new_tokens", "episodes", "epochs", "batch", "threads", "precision"):
        assert getattr(work, name) == getattr(speed, name)


def test_a_contender_that_fails_says_why(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("import sys\nprint('{}', flush=True)\nsys.exit('no such trainer')")
    one = Contender("broken", [sys.executable, str(script)])
    try:
        one.wait()
        with pytest.raises(RuntimeError, match=r"broken ended with code 1:\nno such trainer"):
            one.iterate()
    finally:
        one.close()


def test_where_trl_is_looked_for(monkeypatch):
    with pytest.raises(ValueError, match=r"trl=nowhere/python: there is no such Python; give"):
        trl_python(Path("nowhere/python"))
    monkeypatch.setattr(contest.importlib.util, "find_spec", lambda name: None)
    assert trl_python(None) is None and len(contenders(Speed())) == 3
    assert trl_python(Path(sys.executable)) == Path(sys.executable) and len(contenders(Speed(trl=Path(sys.executable)))) == 7


def test_sizes_and_shapes_name_what_they_say():
    for name, weights in (("6M", 6.3e6), ("45M", 42.0e6), ("135M", 134.5e6)):
        speed = Speed(size=name).spelt_out()
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config(speed)))
        assert sum(p.numel() for p in lm.parameters()) == pytest.approx(weights, rel=0.01)
    speed = Speed(size="6M", shape="256+64").spelt_out()
    assert (speed.prompt, speed.new_tokens, speed.group, speed.width, speed.size, speed.shape) == (256, 64, 8, 256, None, None)
    here = Path(sys.executable)
    both = contenders(dataclasses.replace(speed, stock=False, trl=Path("/bin/true"), trl_newest=here))
    assert [name for name, _ in both] == ["ours", "ours, GRPO", *(f"TRL {name}" for name in TRAINERS)]
    assert [command[0] for _, command in both[2:]] == ["/bin/true"] * 2 + [str(here)] * 2


def test_of_a_group_the_work_reads_the_prompt_once():
    groups, texts = (Speed(prompt=256, new_tokens=64, group=group) for group in (8, 1))
    tokens = (4 * 256 + 32 * 64) / (32 * 320)  # 0.3 of the tokens go through the trunk, all responses through the head
    head = 6 * 4 * 256 * 4096 * 64 * 32
    attention = [12 * 4 * 4 * 256 * (number * 256**2 + 32 * (2 * 256 + 64) * 64) for number in (4, 32)]
    trunk = [update_operations(speed) - head - of for speed, of in zip((groups, texts), attention, strict=True)]
    assert trunk[0] / trunk[1] == pytest.approx(tokens)
    assert rollout_operations(groups) < 0.5 * rollout_operations(texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 3}, "episodes=8 are no multiple of group=3"),
        ({"repeats": 0}, "repeats=0"),
        ({"batch": 3}, "episodes=8 are no multiple of batch=3"),
    ],
)
def test_numbers_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        main(Speed(**{**TINY, **change}))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_operations_of_a_rollout_are_those_that_torch_counts(architecture):
    speed = Speed(
        architecture=architecture,
        vocabulary=512,
        layers=2,
        width=64,
        heads=2,
        prompt=8,
        new_tokens=24,
        episodes=8,
        epochs=2,
        batch=4,
        threads=1,
    )
    model = make_ours(speed)
    _, callback = model._setup_learn(1)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 1)  # tries cached decoding once, which is not counted
    model.rollout_buffer.reset()
    with FlopCounterMode(display=False) as counter:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 1)
    block = {"llama": 16, "gpt2": 12}[architecture] * 64**2  # weights of a layer
    reference = 2 * 8 * (2 * block * 32 + 64 * 512 * 24) + 8 * 4 * 2 * 64 * 32 * 32  # weights and head, then attention
    assert counter.get_total_flops() == pytest.approx(rollout_operations(speed) + reference, rel=0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_policies_of_stock_ppo_are_one_model(architecture):
    """With the same weights they say the same of a text."""
    plain, ours = (make_stock(Speed(**TINY, architecture=architecture), own_policy=own) for own in (False, True))
    trunk = plain.policy.features_extractor.trunk
    ours.policy.lm.base_model.load_state_dict(trunk.state_dict())
    ours.policy.lm.get_output_embeddings().weight = plain.policy.action_net.weight
    with torch.no_grad():
        plain.policy.action_net.bias.zero_()
        ours.policy.value_head.load_state_dict(plain.policy.value_net.state_dict())
    obs = {"prompt": torch.tensor([[5, 6, 7, 8]] * 2), "response": torch.tensor([[-1] * 6, [3, 9, -1, -1, -1, -1]])}
    actions = torch.tensor([11, 12])
    (value, log_prob, _), others = plain.policy.evaluate_actions(obs, actions), ours.policy.evaluate_actions(obs, actions)
    logits = plain.policy.get_distribution(obs).distribution.logits
    without_eos = logits[:, 1:].logsumexp(-1)  # our sampler withholds the end of the text
    torch.testing.assert_close(log_prob - without_eos, others[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, others[0], atol=1e-5, rtol=1e-5)
    assert (plain.batch_size, plain.n_steps, plain.n_epochs) == (ours.batch_size, ours.n_steps, ours.n_epochs)


def test_stock_ppo_fits_into_memory():
    assert make_stock(Speed(**TINY), own_policy=True).batch_size == 4 * 6
    long = make_stock(Speed(**{**TINY, "new_tokens": 252, "batch": 8}), own_policy=False)
    assert long.batch_size == 126 and 8 * 252 % 126 == 0  # of 256 tokens each


def test_memory_is_that_of_this_process():
    before = resident_mib()
    with mmap.mmap(-1, 64 << 20) as block:
        for page in range(0, 64 << 20, mmap.PAGESIZE):
            block[page] = 1
        assert resident_mib() - before == pytest.approx(64, abs=4) and peak_mib() >= resident_mib() - 1
        highest = peak_mib()
    assert resident_mib() - before < 4 and peak_mib() >= highest - 1


def test_memory_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_STATUS", tmp_path / "none")
    assert peak_mib() > 0
