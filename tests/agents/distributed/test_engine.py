"""Torch's engines behind one interface: two processes give the weights of one, and shards hold half of everything."""

import pytest
import torch

from agents.distributed.engine import DDPEngine, Engine, FSDPEngine, engine_of
from agents.distributed.ranks import Ranks

from .engines import Model, learn, texts
from .launch import found_by


@pytest.fixture(scope="module")
def both(two_ranks):
    return found_by(two_ranks, "engines")


@pytest.fixture(scope="module")
def alone():
    model = Model()
    optimizer, norms, notes = learn(model, Engine(Ranks()), lambda ids: [ids])
    return model, optimizer, norms, notes


@pytest.mark.parametrize("kind", ["DDPEngine", "FSDPEngine"])
def test_two_ranks_give_the_weights_of_one(both, alone, kind):
    model, optimizer, norms, notes = alone
    first, second = (found[kind] for found in both)
    assert first[0] == pytest.approx(norms, rel=1e-12) and second[0] == pytest.approx(norms, rel=1e-12)
    assert min(norms) > 0.5  # each was clipped
    sums = [sum(one) + sum(other) for one, other in zip(first[1], second[1], strict=True)]
    assert sums == pytest.approx([sum(parts) for parts in notes], rel=1e-12)
    weights, states = first[3]["model"], first[3]["optimizer"]
    assert len({*weights} ^ {*model.state_dict()}) == 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-12)
    assert not torch.equal(weights["layers.0.0.weight"], Model().state_dict()["layers.0.0.weight"])
    for index, state in optimizer.state_dict()["state"].items():
        assert float(states[index]["step"]) == float(state["step"]) == (6 if index == 0 else 5)  # layers stood still for one
        torch.testing.assert_close(states[index]["exp_avg_sq"], state["exp_avg_sq"], rtol=0, atol=1e-12)
    assert states.keys() == optimizer.state_dict()["state"].keys()  # the unused part has none
    with torch.no_grad():
        expected = model(texts(1))
    for alone_of in (first[4], second[4]):
        torch.testing.assert_close(alone_of, expected, rtol=0, atol=1e-12)


def test_shards_hold_half(both, alone):
    model, optimizer, *_ = alone
    weights = sum(p.numel() for p in model.parameters())
    moments = sum(v.numel() for s in optimizer.state.values() for v in s.values())
    frozen = Model()(texts(1)).sum().item()
    for found in both:
        assert found["DDPEngine"][2] == (weights, moments)
        _, _, held, _, _, (resting, read), back, after, reference = found["FSDPEngine"]
        assert held[0] <= 0.6 * weights and held[1] <= 0.6 * moments
        assert resting == after == held[0] and reference == held[0]
        assert back == weights
        assert read == pytest.approx(frozen, rel=1e-12)
    assert sum(found["FSDPEngine"][2][0] for found in both) == weights


def test_sums_are_equal_on_all(both):
    for found in both:
        total, each = found["sums"]
        assert total.tolist() == [3.0, 1.0] and each.tolist() == [[[0, 2]], [[1, 2]]]


def test_which_engine(monkeypatch):
    assert type(engine_of(Ranks())) is Engine
    with pytest.raises(ValueError, match="shard=True in one process"):
        engine_of(Ranks(), shard=True)
    several = Ranks()
    several.size = 2
    assert type(engine_of(several)) is DDPEngine and type(engine_of(several, shard=True)) is FSDPEngine
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert type(engine_of(several)) is FSDPEngine
