"""SFT and DPO on several processes: the weights of one, checkpoints of any number for any other, and no half of one."""

import re

import pytest
import torch

from agents import SFT
from agents.models.loading import load_lm
from rewards.fitting.engines import Alone
from textrl_env import IntegerTokenizer

from ..conftest import VOCAB
from .launch import found_by, run, torchrun
from .offline import CASES, STEPS, double, fitted, learn, make


def tasks(*names, size=2, **settings):
    return run(torchrun("tests.agents.distributed.offline", *names, size=size), **settings)


@pytest.fixture(scope="module")
def alone():
    return {case: learn(case) for case in CASES}


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_weights_of_one(two_ranks, alone, case, shard):
    losses, notes, loss, trainer = alone[case]
    first, second = found_by(two_ranks, f"{case}-{shard}")
    begun, _ = make(case)
    assert first[:3] == second[:3]
    assert first[0] == pytest.approx(losses, abs=1e-12) and len(losses) == STEPS
    assert first[1] == notes
    assert first[2] == pytest.approx(loss, abs=1e-12)
    weights = trainer.lm.state_dict()
    assert first[3].keys() == weights.keys()
    assert max(float((first[3][name] - value).abs().max()) for name, value in weights.items()) <= 1e-10
    assert max(float((value - begun.lm.state_dict()[name]).abs().max()) for name, value in weights.items()) > 0.01


def test_what_shards_save_is_a_whole_model(two_ranks, alone):
    for case in CASES:
        saved = load_lm(two_ranks / f"{case}-True").state_dict()
        for name, value in load_lm(two_ranks / f"{case}-False").state_dict().items():
            torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-6)


def test_expert_iteration_imitates_the_best_of_what_all_wrote(two_ranks):
    first, second = found_by(two_ranks, "imitated")
    assert first[:2] == second[:2] and first[3] == second[3]
    assert "n_prompts=1: each of 2 processes writes for one at least" in first[4]
    for number, chosen in enumerate(first[3]):
        best, scores = [], []
        for _, _, texts, *_ in (first, second):
            scored = texts[number][1]
            best += [max(scored[i : i + 3]) for i in range(0, len(scored), 3)]
            scores += scored
        assert first[2][number] != second[2][number]
        assert [actions.count(7) for _, actions in chosen] == best and len(best) == 5
        assert first[0][number] == pytest.approx(sum(scores) / 15, abs=1e-12)


def test_two_ranks_fit_the_reward_model_of_one(two_ranks):
    first, second = found_by(two_ranks, "fitted")
    for one, other, expected in zip(first, second, fitted(None, Alone()), strict=True):
        assert one[1] % 4 in (1, 3)  # uneven
        assert one[1:] == other[1:]
        for name, losses in expected[2].items():
            assert one[2][name] == pytest.approx(losses, abs=1e-4)
        assert one[3] == pytest.approx(expected[3], abs=1e-3)
        for name, value in expected[0].items():
            assert torch.equal(one[0][name], other[0][name])
            if not name.endswith("head.bias"):  # which cancels in a comparison: its gradient is rounding, and Adam makes steps of it
                torch.testing.assert_close(one[0][name], value, rtol=0, atol=1e-4)


def test_reward_models_are_not_fitted_in_shards():
    engine = Alone()
    engine.sharded = True
    with pytest.raises(ValueError, match="all its weights in each process: fit it without shards"):
        fitted(None, engine)


@pytest.mark.slow
def test_a_checkpoint_of_two_goes_on_with_one_and_with_three(tmp_path, alone):
    tasks("begun", tmp_path)
    for case in ("sft", "dpo"):
        *_, trainer = learn(case, stop=13, folder=tmp_path / case)  # goes on behind the fifth step; ten are saved
        assert len(trainer.losses) == 13
    tasks("ended", tmp_path, size=3)
    for case in ("sft", "dpo"):
        losses, *_, whole = alone[case]
        found, notes, _, trainer = learn(case, folder=tmp_path / case)
        assert not notes  # nothing was left to do
        assert found == pytest.approx(losses, abs=1e-10)
        for name, value in whole.lm.state_dict().items():
            torch.testing.assert_close(trainer.lm.state_dict()[name], value, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_saves_leaves_the_last_checkpoint_whole(tmp_path):
    done = tasks("killed", tmp_path / "c", check=False)
    assert done.returncode != 0
    assert re.search(r"rank 1 \(process \d+\) is gone; the same command goes on from the last checkpoint", " ".join(done.stderr.split()))
    losses, *_ = learn("sft")
    trainer, texts = make("sft")
    steps = []
    with double(trainer):
        trainer.learn(texts, STEPS, checkpoint=tmp_path / "c", callback=steps.append)
    assert steps == list(range(6, STEPS + 1))
    assert trainer.losses == pytest.approx(losses, abs=1e-10)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_shards_need_several_processes():
    with pytest.raises(ValueError, match="shard=True in one process"):
        SFT(CASES["sft"][1], IntegerTokenizer(VOCAB, 0), shard=True)
