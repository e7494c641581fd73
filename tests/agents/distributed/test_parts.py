"""Models of which each process reads its part: the weights of the whole, and trainings that no single process has memory for."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.models.loading import load_lm, save_lm
from agents.utils.free_memory import available

from ..conftest import EOS, LLAMA
from .launch import found_by, run, torchrun
from .parts import LIMITS, MODELS, STEPS, hidden, local

LARGE = {
    **LLAMA, "hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 11, "num_attention_heads": 8, "num_key_value_heads": 8,
    "initializer_range": 0.02,
}  # fmt: skip


@pytest.fixture
def found(two_ranks):
    return two_ranks / "parts"


@pytest.mark.parametrize("name", MODELS)
def test_parts_are_the_whole(found, name):
    whole = load_lm(found / "models" / name)
    of_ranks = found_by(found, name)
    numbers = sum(p.numel() for p in whole.parameters())
    layers = sum(p.numel() for key, p in whole.named_parameters() if any(part.isdigit() for part in key.split(".")))
    for parts, held, resting, *_ in of_ranks:
        assert parts == (name != "incomplete")
        assert abs(held - (numbers - layers / 2 if parts else numbers)) < 0.05 * numbers  # those outside of layers are cut with the rest
        assert abs(resting - numbers / 2) < 0.05 * numbers
    assert sum(resting for _, _, resting, *_ in of_ranks) == numbers
    (_, _, _, weights, logits, buffers, training, ends), (*_, other, _, _, _) = of_ranks
    assert weights.keys() == whole.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(weights[key], value)
    for key, value in whole.named_buffers():
        assert torch.equal(buffers[key], value)
    assert not training and ends == whole.generation_config.eos_token_id == [EOS, 5]
    with torch.no_grad():
        torch.testing.assert_close(logits, hidden(whole))
    assert torch.equal(logits, other)
    saved = load_lm(found / "saved" / name).state_dict()
    assert all(torch.equal(saved[key], value) for key, value in whole.state_dict().items())


def test_trained_from_parts_as_from_the_whole(found):
    first, second = found_by(found, "trained")
    for name in ("sft", "dpo", "ppo"):
        (begun, whole, stored), (sharded, parts, divided) = first[name, False], first[name, True]
        assert len(begun) == len(sharded) and max(abs(a - b) for a, b in zip(begun, sharded, strict=True)) < 1e-5  # PPO: its tokens
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-5)
        for item in ("weights", "gradients", "optimizer", "reference"):
            assert divided[item] == -(-stored[item] // 2)
        assert second[name, True][2] == divided
    assert not first["lora"] and not first["separate"]
    for name in ("sft", "ppo"):
        whole, parts = (AutoModelForCausalLM.from_pretrained(found / f"{name}-{shard}") for shard in (False, True))
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(available(torch.device("cpu")) is None, reason="reads limits of a process from /proc")
def test_what_no_process_has_memory_for_is_trained_by_two(tmp_path):
    torch.manual_seed(0)
    lm = load_lm(LARGE)
    size = 4 * local(lm)
    assert 4 * size > LIMITS[0] and 5 * size > LIMITS[1]  # weights, gradients and moments; and a reference
    lm.save_pretrained(tmp_path / "large", max_shard_size="10MB")
    save_lm(load_lm(LLAMA), tmp_path / "tiny")
    del lm
    run(torchrun("tests.agents.distributed.parts", "limited", tmp_path))
    for said, held in found_by(tmp_path, "limited-2"):
        assert not said
        (losses, *_), (texts, *_) = held
        assert len(losses) == STEPS and losses[-1] < losses[0] and texts >= 4
    run(torchrun("tests.agents.distributed.parts", "limited", tmp_path, size=1))
    ((said, held),) = found_by(tmp_path, "limited-1", 1)
    assert not held
    assert "this training needs about" in said[0] and "this training needs about" in said[1]
    assert "annot allocate memory" in said[2] and "annot allocate memory" in said[3]


def test_what_is_compared_of_files_tells_other_weights(tmp_path):
    from agents.distributed.sharded_checkpoint import _beginning

    for name, seed in {"one": 0, "two": 1}.items():
        torch.manual_seed(seed)
        save_lm(load_lm(LLAMA), tmp_path / name)
    one, two = (_beginning(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one != two and one[0] == two[0]
    assert json.loads((tmp_path / "one" / "config.json").read_text())["model_type"] == "llama"
