"""Generation against a plain loop over full forward passes."""

import pytest
import torch

from agents.evaluation import make_policy
from agents.generation import generate, stream
from agents.policy import TransformerPolicy
from textrl_env import IntegerTokenizer
from textrl_env.shell import spaces_of

from .conftest import EOS, LLAMA, VOCAB

TOKENIZER = IntegerTokenizer(VOCAB, EOS)
PROMPTS = ["1 2 3", "4", "5 6 7 8 9 10", "11 12", "13"]


@pytest.fixture
def policy(task):
    return make_policy(task, LLAMA, temperature=0.8)


def greedy(policy, prompt, limit):
    ids, written = TOKENIZER.encode_batch([prompt])[0], []
    for _ in range(limit):
        token = int(policy.lm(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        written.append(token)
        if token == EOS:
            break
    return TOKENIZER.decode_batch([written])[0]


def test_greedy_texts_are_those_of_full_forward_passes(policy):
    texts = generate(policy, TOKENIZER, PROMPTS, 12, deterministic=True, num_rows=2)
    assert texts == [greedy(policy, prompt, 12) for prompt in PROMPTS]
    assert len(set(texts)) > 2


def test_a_seed_decides_and_leaves_the_global_generator_alone(policy):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (generate(policy, TOKENIZER, PROMPTS, 12, seed=s) for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), before)


def test_streamed_pieces_add_up_and_stop_strings_are_never_shown(policy):
    for settings in ({}, {"stop_strings": ["1 1", "2", " 7 "]}):
        pieces = list(stream(policy, TOKENIZER, "4", 30, seed=3, **settings))
        assert "".join(pieces) == generate(policy, TOKENIZER, ["4"], 30, seed=3, num_rows=1, **settings)[0]
        assert len(pieces) > 1


def test_what_save_pretrained_writes_opens_with_transformers_and_with_the_policy(policy, task, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.nn.init.normal_(policy.value_head.weight)
    policy.save_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 2, 3]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(theirs(input_ids=ids).logits, policy.lm(input_ids=ids).logits)
    again = TransformerPolicy(*spaces_of(task), lambda _: 0.0, model=str(tmp_path / "out"))
    assert torch.equal(again.value_head.weight, policy.value_head.weight)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "value_head.safetensors"
    ]  # fmt: skip
